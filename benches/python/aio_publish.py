"""Publishes additions with aio-celery: aio_publish.py URL NUMBER QUEUE

All calls run concurrently, as in the first example of its README. Prints the time of the first
call in seconds since 1970; the caller measures when the broker has the last message.
"""

import asyncio
import sys
import time

from aio_celery import Celery

url, number, queue = sys.argv[1], int(sys.argv[2]), sys.argv[3]
app = Celery()
app.conf.update(broker_url=url, task_default_queue=queue)


@app.task(name="tasks.add", ignore_result=True)
async def add(x, y):
    return x + y


async def main():
    async with app.setup():
        begin = time.time()
        await asyncio.gather(*[add.delay(i, i) for i in range(number)])
        print(begin)


asyncio.run(main())
