"""Substitutes for the parts of the worker's memory that tests read.

The suite expects the worker in its own process. The substitutes get the same
data in other ways:

- succeeded tasks: from events;
- the signal `task_received`: from events, with the message taken from the
  commands that a Redis server executes (MONITOR);
- revoked stamps, which tests only clear: by restarting the workers;
- the time of a revocation: always 0, because no test depends on it.
"""
import base64
import codecs
import collections
import contextlib
import json
import re
import socket
import threading

#: Seconds to wait for an expected event or message.
TIMEOUT = 5


class RevokedStamps(dict):
    """Substitutes the revoked stamps of the worker."""

    def __init__(self, fleet):
        super().__init__()
        self.fleet = fleet

    def clear(self):
        super().clear()
        # Also purges the queue: messages of this test would delay the next one.
        self.fleet.restart()


class RevokedIds:
    """Substitutes the revoked ids of the worker; each has the revocation time 0."""

    def as_dict(self):
        return collections.defaultdict(float)

    def discard(self, _):
        pass


class EventReceiver(threading.Thread):
    """Receives the events of the workers and updates the state that tests read."""

    #: The receiver of the session while it runs.
    current = None

    def __init__(self, app, fleet, monitor):
        super().__init__(daemon=True)
        self.app, self.fleet, self.monitor = app, fleet, monitor
        self.is_consuming = threading.Event()
        self.stopping = threading.Event()
        self.received = set()
        self.changed = threading.Condition()

    def run(self):
        handlers = {"task-succeeded": self.on_succeeded, "task-received": self.on_received}
        with self.app.connection_for_read() as connection:
            receiver = self.app.events.Receiver(connection, handlers=handlers)
            with receiver.consumer_context(wakeup=False) as (used, _, _):
                self.is_consuming.set()
                while not self.stopping.is_set():
                    with contextlib.suppress(socket.timeout):
                        used.drain_events(timeout=0.5)

    def on_succeeded(self, event):
        from celery.worker import state

        state.successful_requests.add(event["uuid"])

    def on_received(self, event):
        from celery.signals import task_received

        if task_received.receivers and self.monitor is not None:
            self.send_signal(event["uuid"])
        with self.changed:
            self.received.add(event["uuid"])
            self.changed.notify_all()

    def send_signal(self, task_id):
        """Sends the signal `task_received` as a Python worker does."""
        from celery.signals import task_received
        from celery.worker.request import Request

        message = self.monitor.message(task_id)
        # No test reads the signal of a message of protocol 1, which has no headers.
        if message is not None and "id" in message.headers:
            request = Request(message, app=self.app, hostname=self.fleet.hostname)
            task_received.send(sender=self.fleet, request=request)

    def wait_for(self, task_id):
        """Waits until the signal for this task was sent, if it has receivers."""
        from celery.signals import task_received

        if task_received.receivers and self.monitor is not None:
            with self.changed:
                seen = self.changed.wait_for(lambda: task_id in self.received, TIMEOUT)
            assert seen, f"no event task-received for {task_id} within {TIMEOUT} s"

    def stop(self):
        self.stopping.set()
        self.join()


class MessageMonitor(threading.Thread):
    """Records the messages pushed to the task queues of a Redis server."""

    PUSH = re.compile(rb'"[LR]PUSH" "celery(?:[^\w]|")', re.IGNORECASE)
    ARGUMENT = re.compile(rb'"((?:[^"\\]|\\.)*)"')

    def __init__(self, url):
        super().__init__(daemon=True)
        from redis import Redis

        self.connection = Redis.from_url(url, socket_timeout=None).connection_pool.get_connection()
        self.messages = {}
        self.changed = threading.Condition()

    def run(self):
        self.connection.send_command("MONITOR")
        # A daemon thread: it ends with the process of the session.
        while True:
            line = self.connection.read_response(disable_decoding=True)
            if self.PUSH.search(line):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self.record(self.ARGUMENT.findall(line)[2:])

    def record(self, arguments):
        for argument in arguments:
            envelope = json.loads(codecs.escape_decode(argument)[0])
            with self.changed:
                # The task id in both protocols.
                self.messages[envelope["properties"]["correlation_id"]] = envelope
                self.changed.notify_all()

    def message(self, task_id):
        """Returns the latest message of this task as a consumer receives it, or None."""
        from kombu.message import Message

        with self.changed:
            self.changed.wait_for(lambda: task_id in self.messages, TIMEOUT)
            envelope = self.messages.get(task_id)
        if envelope is None:
            return None
        properties = envelope["properties"]
        body = envelope["body"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body)
        return Message(
            body=body,
            headers=envelope["headers"],
            properties=properties,
            delivery_info=properties["delivery_info"],
            content_type=envelope["content-type"],
            content_encoding=envelope["content-encoding"],
            accept=["application/json"],
        )


def wait_for_signals(monkeypatch):
    """Makes `get` return only after the signal `task_received` for its task was sent."""
    from celery.result import AsyncResult, EagerResult, ResultSet

    def wait_for(*results):
        for result in results:
            if EventReceiver.current is not None and not isinstance(result, EagerResult):
                EventReceiver.current.wait_for(result.id)

    def with_wait(get, tasks):
        def get_after_signal(self, *args, **kwargs):
            try:
                return get(self, *args, **kwargs)
            finally:
                wait_for(*tasks(self))
        return get_after_signal

    monkeypatch.setattr(AsyncResult, "get", with_wait(AsyncResult.get, lambda result: [result]))
    monkeypatch.setattr(ResultSet, "get", with_wait(ResultSet.get, lambda group: group.results))
