"""What the Python programs of the tests have in common: `from story import *`."""

import datetime
import json
import math
import sys
import time
import uuid
from datetime import timedelta, timezone
from decimal import Decimal

from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

import settings
import tasks
from tasks import app

# Seconds that anything may take that has to happen.
PATIENCE = 30

app.conf.accept_content = ["json", "msgpack", "yaml"]
settings.apply(app)


def send(name, args=(), kwargs=None, **options):
    """Sends a task by its name, as a program does that lacks its code."""
    return app.send_task(name, args, kwargs or {}, **options)


def get(result):
    return result.get(timeout=PATIENCE)


def call(name, *args, **kwargs):
    return get(send(name, args, kwargs))


def failure(result):
    """The exception of a task that has to fail."""
    try:
        value = get(result)
    except Exception as error:
        return error
    raise AssertionError(f"it returned {value!r}")


def until(what, look):
    """Looks again and again, and answers the first thing seen that is true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(0.01)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


def same(found, expected):
    assert found == expected and type(found) is type(expected), f"{found!r} is not {expected!r}"


def declare():
    """Makes all queues that the settings know, as a worker does that starts."""
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()
