"""The app of the tests' Python workers: the example tasks and the tasks below."""

import json
import os
import time

from celery.exceptions import Reject

import settings
from tasks import app

app.conf.broker_transport_options = json.loads(os.environ.get("TEST_TRANSPORT_OPTIONS", "{}"))
app.conf.result_serializer = os.environ.get("TEST_RESULT_SERIALIZER", "json")
app.conf.task_acks_late = bool(os.environ.get("TEST_ACKS_LATE"))
settings.apply(app)


# Tasks that `support/tasks.rs` has in Rust, too.


@app.task(name="test.hop")
def hop(path):
    """Appends the worker's language to the path."""
    return [*path, "python"]


@app.task(name="test.language")
def language():
    return "python"


@app.task(name="test.record")
def record(number, after=0):
    return number


@app.task(name="test.retry", bind=True, max_retries=None)
def retry(self, times, delay=0.2):
    if self.request.retries < times:
        raise self.retry(countdown=delay)
    return self.request.retries


@app.task(name="test.now")
def now():
    return time.time()


@app.task(name="test.reject", bind=True, acks_late=True)
def reject(self, requeue):
    if self.request.delivery_info["redelivered"]:
        return True
    raise Reject("not now", requeue=requeue)


# Tasks that exist in Python only.


@app.task(name="python.label")
def label(value, text="python"):
    return f"{text}:{value}"


@app.task(name="python.request", bind=True)
def request(self, *args):
    """Returns the properties of the task's own message."""
    names = ("id", "root_id", "parent_id", "retries", "eta", "expires", "timelimit", "shadow",
             "ignore_result", "correlation_id", "reply_to", "origin", "group")
    seen = {name: getattr(self.request, name, None) for name in names}
    seen["priority"] = self.request.delivery_info["priority"]
    seen["routing_key"] = self.request.delivery_info["routing_key"]
    seen["color"] = self.request.get("color")
    return seen


@app.task(name="python.errback")
def errback(failed_id):
    return f"{failed_id} failed"
