"""Applies the settings that a test shares with Rust, as JSON in the environment."""

import json
import os

from kombu import Exchange, binding
from kombu.common import Broadcast


def apply(app):
    settings = json.loads(os.environ.get("TEST_SETTINGS", "{}"))
    queues = settings.get("task_queues", {})
    settings.update(task_queues={name: queue(name, **entry) for name, entry in queues.items()} or None)
    app.conf.update(settings)


def queue(name, broadcast=False, bindings=(), **entry):
    """Builds a queue that Celery cannot read from a plain entry: a broadcast, or several bindings."""
    if broadcast:
        return Broadcast(name)
    if bindings:
        entry["bindings"] = [
            binding(Exchange(one["exchange"], type=one.get("exchange_type", "direct")),
                    one["routing_key"], one.get("arguments"))
            for one in bindings
        ]
    return entry
