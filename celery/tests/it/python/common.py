"""Helpers of the tests' Python programs: `from common import *`."""

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

# Seconds after which a test fails instead of waiting longer.
TIMEOUT = 30

app.conf.accept_content = ["json", "msgpack", "yaml"]
settings.apply(app)


def send(name, args=(), kwargs=None, **options):
    """Sends a task by its name, without its code."""
    return app.send_task(name, args, kwargs or {}, **options)


def get(result):
    """Waits for the value of a result."""
    return result.get(timeout=TIMEOUT)


def call(name, *args, **kwargs):
    """Sends a task and waits for its value."""
    return get(send(name, args, kwargs))


def failure(result):
    """Waits for the exception of a task; a returned value fails the test."""
    try:
        value = get(result)
    except Exception as error:
        return error
    raise AssertionError(f"it returned {value!r}")


def until(what, look):
    """Polls `look` until it returns a true value, and returns that value."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(0.01)
    raise AssertionError(f"not within {TIMEOUT} s: {what}")


def same(found, expected):
    """Asserts equal values of equal types."""
    assert found == expected and type(found) is type(expected), f"{found!r} is not {expected!r}"


def declare():
    """Declares all configured queues, as a starting worker does."""
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()
