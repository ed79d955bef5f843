"""An app of aio-celery, for its worker and for programs: `from aio import *`."""

import asyncio
import json
import os

from aio_celery import Celery
from aio_celery.canvas import chain, signature

# Seconds that anything may take that has to happen.
PATIENCE = 30

app = Celery()
app.conf.update(
    broker_url=os.environ["CELERY_BROKER_URL"],
    result_backend=os.environ["CELERY_RESULT_BACKEND"],
    task_queue_max_priority=json.loads(os.environ["STORY_SETTINGS"]).get("task_queue_max_priority"),
    worker_prefetch_multiplier=1,
    inspection_http_server_port=0,
)


@app.task(name="tasks.add")
async def add(x, y):
    return x + y


@app.task(name="tasks.fail")
async def fail(message):
    raise ValueError(message)


@app.task(name="tasks.echo")
async def echo(*args, **kwargs):
    return {"args": args, "kwargs": kwargs}


@app.task(name="story.mark")
async def mark(number, after=0):
    return number


@app.task(name="story.who")
async def who():
    return "aio"


@app.task(name="story.hop")
async def hop(path):
    return [*path, "aio"]


@app.task(name="story.again", bind=True, max_retries=None)
async def again(self, times, delay=0.2):
    if self.request.retries < times:
        await self.retry(countdown=delay)
    return self.request.retries


async def send(name, *args, **options):
    return await app.send_task(name, args=args, **options)


async def call(name, *args, **options):
    result = await send(name, *args, **options)
    return await result.get(timeout=PATIENCE, interval=0.02)


async def final(result):
    """Its own `get` takes RETRY for the end."""
    while await app.AsyncResult(result.id).state not in ("SUCCESS", "FAILURE"):
        await asyncio.sleep(0.02)
    return await app.AsyncResult(result.id).result


def same(found, expected):
    assert found == expected and type(found) is type(expected), f"{found!r} is not {expected!r}"


def run(main):
    async def inside():
        async with app.setup():
            await main()

    asyncio.run(inside())
