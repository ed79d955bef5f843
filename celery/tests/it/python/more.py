"""The example tasks and more: an app for Python workers that tests talk to."""

import json
import os
import time

from celery.exceptions import Reject

import settings
from tasks import app

app.conf.broker_transport_options = json.loads(os.environ.get("MORE_TRANSPORT_OPTIONS", "{}"))
app.conf.result_serializer = os.environ.get("MORE_RESULT_SERIALIZER", "json")
app.conf.task_acks_late = bool(os.environ.get("MORE_ACKS_LATE"))
settings.apply(app)


# These have namesakes in Rust.


@app.task(name="story.hop")
def hop(path):
    """Appends the worker's language to the path."""
    return [*path, "python"]


@app.task(name="story.who")
def who():
    return "python"


@app.task(name="story.mark")
def mark(number, after=0):
    return number


@app.task(name="story.again", bind=True, max_retries=None)
def again(self, times, delay=0.2):
    if self.request.retries < times:
        raise self.retry(countdown=delay)
    return self.request.retries


@app.task(name="story.now")
def now():
    return time.time()


@app.task(name="story.refuse", bind=True, acks_late=True)
def refuse(self, requeue):
    if self.request.delivery_info["redelivered"]:
        return True
    raise Reject("not now", requeue=requeue)


# These exist in Python alone.


@app.task(name="more.label")
def label(value, text="python"):
    return f"{text}:{value}"


@app.task(name="more.request", bind=True)
def request(self, *args):
    """What the task knows about its own message."""
    names = ("id", "root_id", "parent_id", "retries", "eta", "expires", "timelimit", "shadow",
             "ignore_result", "correlation_id", "reply_to", "origin", "group")
    seen = {name: getattr(self.request, name, None) for name in names}
    seen["priority"] = self.request.delivery_info["priority"]
    seen["routing_key"] = self.request.delivery_info["routing_key"]
    seen["color"] = self.request.get("color")
    return seen


@app.task(name="more.errback")
def errback(failed_id):
    return f"{failed_id} failed"
