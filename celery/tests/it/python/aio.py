"""An aio-celery app, for its worker and for client programs: `from aio import *`."""

import asyncio
import json
import os

from aio_celery import Celery
from aio_celery.canvas import chain, signature

# Seconds after which a test fails instead of waiting longer.
TIMEOUT = 30

app = Celery()
app.conf.update(
    broker_url=os.environ["CELERY_BROKER_URL"],
    result_backend=os.environ["CELERY_RESULT_BACKEND"],
    task_queue_max_priority=json.loads(os.environ["TEST_SETTINGS"]).get("task_queue_max_priority"),
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


@app.task(name="test.record")
async def record(number, after=0):
    return number


@app.task(name="test.language")
async def language():
    return "aio"


@app.task(name="test.hop")
async def hop(path):
    return [*path, "aio"]


@app.task(name="test.retry", bind=True, max_retries=None)
async def retry(self, times, delay=0.2):
    if self.request.retries < times:
        await self.retry(countdown=delay)
    return self.request.retries


async def send(name, *args, **options):
    return await app.send_task(name, args=args, **options)


async def call(name, *args, **options):
    result = await send(name, *args, **options)
    return await result.get(timeout=TIMEOUT, interval=0.02)


async def final(result):
    """Waits for the final value. aio-celery's own `get` treats RETRY as a final state."""
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
