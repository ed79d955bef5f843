"""The example tasks, in Python: the counterpart of the `worker` and `client` examples in Rust.

    pip install 'celery[redis]'
    export CELERY_BROKER_URL=redis://localhost:6379/0
    export CELERY_RESULT_BACKEND=redis://localhost:6379/0
    celery -A tasks worker --loglevel INFO        # serve the tasks from Python
    python client.py                              # or call them, on a worker in either language

Tasks are identified by their names, so a client in either language can call a worker in the
other. Run the worker on one side and the client on the other.
"""

import os
import time

from celery import Celery

app = Celery(
    "tasks",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost:6379/0"),
)
app.conf.broker_connection_retry_on_startup = True
# A list of names such as "json,msgpack,yaml"; Celery's own default is JSON alone.
if os.environ.get("CELERY_ACCEPT_CONTENT"):
    app.conf.accept_content = os.environ["CELERY_ACCEPT_CONTENT"].split(",")


@app.task(name="tasks.add")
def add(x, y):
    return x + y


@app.task(name="tasks.sub")
def sub(x, y):
    return x - y


@app.task(name="tasks.mul")
def mul(x, y):
    return x * y


@app.task(name="tasks.divide")
def divide(x, y):
    return x / y


@app.task(name="tasks.xsum")
def xsum(numbers):
    return sum(numbers)


@app.task(name="tasks.sleep")
def sleep(seconds):
    time.sleep(seconds)
    return seconds


@app.task(name="tasks.fail")
def fail(message):
    raise ValueError(message)


@app.task(name="tasks.retry", bind=True, max_retries=None)
def retry(self, times=1):
    """Retries `times` times, then returns the number of retries."""
    if self.request.retries < times:
        # With a countdown: Celery stores RETRY after it has sent the retry, and would
        # overwrite the result of an attempt that has already ended.
        raise self.retry(countdown=0.2)
    return self.request.retries


@app.task(name="tasks.echo")
def echo(*args, **kwargs):
    return {"args": args, "kwargs": kwargs}


@app.task(name="tasks.progress", bind=True)
def progress(self, steps=3):
    """Reports the state PROGRESS after each step, and returns the number of steps."""
    for step in range(1, steps + 1):
        self.update_state(state="PROGRESS", meta={"current": step, "total": steps})
        time.sleep(0.05)
    return steps
