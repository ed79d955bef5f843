"""Helpers of Python programs that monitor and control workers: `from workers import *`."""

import collections
import os
import subprocess
import threading

from common import *


class Node:
    """A worker addressed by its name. A call without a reply fails."""

    def __init__(self, name):
        self.name = name
        self._inspect = app.control.inspect(destination=[name], timeout=TIMEOUT)

    def command(self, method, **arguments):
        """Broadcasts a raw command to this worker and returns its reply."""
        return self._only(app.control.broadcast(
            method, arguments=arguments, destination=[self.name], reply=True, timeout=TIMEOUT))

    def inspect(self, method, *args, **kwargs):
        """Calls a method of Celery's `Inspect` and returns the reply."""
        return self._only([getattr(self._inspect, method)(*args, **kwargs)])

    def control(self, method, *args, **kwargs):
        """Calls a method of Celery's `Control` and returns the reply."""
        kwargs.update(destination=[self.name], reply=True, timeout=TIMEOUT)
        return self._only(getattr(app.control, method)(*args, **kwargs))

    def _only(self, replies):
        assert replies and replies[0], f"{self.name} does not reply"
        [reply] = replies
        [(name, answer)] = reply.items()
        same(name, self.name)
        return answer

    def wait_for_ids(self, method, *results):
        """Waits until an inspect method lists exactly these tasks."""
        ids = {result.id for result in results}

        def look():
            found = [one.get("request", one)["id"] for one in self.inspect(method)]
            return len(found) == len(ids) and set(found) == ids
        until(f"{method} are {ids}", look)


class EventMonitor:
    """Records all events from now on. At least one worker has to send heartbeats."""

    def __init__(self):
        self.events, self.counts = [], collections.Counter()
        threading.Thread(target=self._capture, daemon=True).start()
        until("a heartbeat is received", lambda: self.of("worker-heartbeat"))

    def _capture(self):
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": self._record})
            receiver.capture(limit=None, timeout=None, wakeup=True)

    def _record(self, event):
        self.events.append(event)
        self.counts[event["type"]] += 1

    def of(self, kind, result=None):
        """The events of a type, of one task if given."""
        return [event for event in list(self.events)
                if event["type"] == kind and (result is None or event.get("uuid") == result.id)]

    def kinds(self, result):
        """The types of a task's events, in order of arrival."""
        return [event["type"] for event in list(self.events) if event.get("uuid") == result.id]

    def wait(self, kind, result=None):
        """Waits for an event of a type and returns the first one."""
        return until(f"{kind} is received", lambda: self.of(kind, result))[0]


def celery(*arguments, code=0):
    """Runs the `celery` command and returns its standard output."""
    done = subprocess.run([sys.executable, "-m", "celery", "-A", "worker_app", *arguments],
                          capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == code, (done.returncode, arguments, done.stdout, done.stderr)
    return done.stdout


def state_is(result, state):
    """Waits until a result has this state."""
    until(f"the state is {state}", lambda: result.state == state)
