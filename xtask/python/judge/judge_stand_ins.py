"""What stands for the worker's memory where tests look into it.

The suite takes it for granted that the worker runs in its own process. What a
test looks up there is found out in other ways:

- tasks that succeeded: from events;
- the signal `task_received`: from events, too, with the message as it was seen
  in the commands that a Redis server carries out;
- revoked stamps, of which tests only forget all: by workers that start anew;
- the time of a revocation: it is taken for the worker's business.
"""
import base64
import codecs
import collections
import contextlib
import json
import re
import socket
import threading

#: Seconds for an event or a message that has to come.
PATIENCE = 5


class Stamps(dict):
    """Stands for the revoked stamps of the worker."""

    def __init__(self, fleet):
        super().__init__()
        self.fleet = fleet

    def clear(self):
        super().clear()
        # What the test has left in the queue would keep the next one waiting.
        self.fleet.renew()


class Revoked:
    """Stands for the revoked ids of the worker, each as old as can be."""

    def as_dict(self):
        return collections.defaultdict(float)

    def discard(self, _):
        pass


class Events(threading.Thread):
    """Hears what the workers tell, and passes it on to where tests look for it."""

    #: The one of the session, while it listens.
    current = None

    def __init__(self, app, fleet, tap):
        super().__init__(daemon=True)
        self.app, self.fleet, self.tap = app, fleet, tap
        self.listens = threading.Event()
        self.ended = threading.Event()
        self.received = set()
        self.more = threading.Condition()

    def run(self):
        handlers = {"task-succeeded": self.on_succeeded, "task-received": self.on_received}
        with self.app.connection_for_read() as connection:
            receiver = self.app.events.Receiver(connection, handlers=handlers)
            with receiver.consumer_context(wakeup=False) as (used, _, _):
                self.listens.set()
                while not self.ended.is_set():
                    with contextlib.suppress(socket.timeout):
                        used.drain_events(timeout=0.5)

    def on_succeeded(self, event):
        from celery.worker import state

        state.successful_requests.add(event["uuid"])

    def on_received(self, event):
        from celery.signals import task_received

        if task_received.receivers and self.tap is not None:
            self.send(event["uuid"])
        with self.more:
            self.received.add(event["uuid"])
            self.more.notify_all()

    def send(self, task_id):
        """Sends the signal as a worker in Python does."""
        from celery.signals import task_received
        from celery.worker.request import Request

        message = self.tap.message(task_id)
        # No test looks at one of protocol 1, which says everything in its body.
        if message is not None and "id" in message.headers:
            request = Request(message, app=self.app, hostname=self.fleet.hostname)
            task_received.send(sender=self.fleet, request=request)

    def wait_for(self, task_id):
        """Until the signal for this task was sent, if there is anybody to receive it."""
        from celery.signals import task_received

        if task_received.receivers and self.tap is not None:
            with self.more:
                seen = self.more.wait_for(lambda: task_id in self.received, PATIENCE)
            assert seen, f"no event tells that {task_id} was received"

    def stop(self):
        self.ended.set()
        self.join()


class Tap(threading.Thread):
    """Reads along what is put into the task queues of a Redis server."""

    PUSH = re.compile(rb'"[LR]PUSH" "celery(?:[^\w]|")', re.IGNORECASE)
    ARGUMENT = re.compile(rb'"((?:[^"\\]|\\.)*)"')

    def __init__(self, url):
        super().__init__(daemon=True)
        from redis import Redis

        self.connection = Redis.from_url(url, socket_timeout=None).connection_pool.get_connection()
        self.messages = {}
        self.more = threading.Condition()

    def run(self):
        self.connection.send_command("MONITOR")
        # It ends with the session's process.
        while True:
            line = self.connection.read_response(disable_decoding=True)
            if self.PUSH.search(line):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self.see(self.ARGUMENT.findall(line)[2:])

    def see(self, arguments):
        for argument in arguments:
            envelope = json.loads(codecs.escape_decode(argument)[0])
            with self.more:
                # The task's id, in both protocols.
                self.messages[envelope["properties"]["correlation_id"]] = envelope
                self.more.notify_all()

    def message(self, task_id):
        """The latest message for this task, as a consumer gets it."""
        from kombu.message import Message

        with self.more:
            self.more.wait_for(lambda: task_id in self.messages, PATIENCE)
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
    """A result is there for a test only when the signal for its task was sent."""
    from celery.result import AsyncResult, EagerResult, ResultSet

    def wait(*results):
        for result in results:
            if Events.current is not None and not isinstance(result, EagerResult):
                Events.current.wait_for(result.id)

    def waiting(get, tasks):
        def patient(self, *args, **kwargs):
            try:
                return get(self, *args, **kwargs)
            finally:
                wait(*tasks(self))
        return patient

    monkeypatch.setattr(AsyncResult, "get", waiting(AsyncResult.get, lambda one: [one]))
    monkeypatch.setattr(ResultSet, "get", waiting(ResultSet.get, lambda many: many.results))
