"""What the Python programs have in common that watch and steer workers: `from fleet import *`."""

import collections
import os
import subprocess
import threading

from story import *


class Node:
    """A worker that is asked by its name: one that does not answer is an error."""

    def __init__(self, name):
        self.name = name
        self.inspect = app.control.inspect(destination=[name], timeout=PATIENCE)

    def ask(self, method, **arguments):
        """The answer to a command, whichever it is."""
        return self._only(app.control.broadcast(
            method, arguments=arguments, destination=[self.name], reply=True, timeout=PATIENCE))

    def question(self, method, *args, **kwargs):
        """The answer to a question, asked by Celery's own method for it."""
        return self._only([getattr(self.inspect, method)(*args, **kwargs)])

    def order(self, method, *args, **kwargs):
        """The answer to an order, given by Celery's own method for it."""
        kwargs.update(destination=[self.name], reply=True, timeout=PATIENCE)
        return self._only(getattr(app.control, method)(*args, **kwargs))

    def _only(self, replies):
        assert replies and replies[0], f"{self.name} does not answer"
        [reply] = replies
        [(name, answer)] = reply.items()
        same(name, self.name)
        return answer

    def until_ids(self, method, *results):
        """Waits until a question is answered by exactly these tasks."""
        ids = {result.id for result in results}

        def look():
            found = [one.get("request", one)["id"] for one in self.question(method)]
            return len(found) == len(ids) and set(found) == ids
        until(f"{method} are {ids}", look)


class Watch:
    """All events from now on. The workers have to show signs of life."""

    def __init__(self):
        self.events, self.counts = [], collections.Counter()
        threading.Thread(target=self._capture, daemon=True).start()
        until("a worker is heard", lambda: self.of("worker-heartbeat"))

    def _capture(self):
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": self._note})
            receiver.capture(limit=None, timeout=None, wakeup=True)

    def _note(self, event):
        self.events.append(event)
        self.counts[event["type"]] += 1

    def of(self, kind, result=None):
        return [event for event in list(self.events)
                if event["type"] == kind and (result is None or event.get("uuid") == result.id)]

    def kinds(self, result):
        """What was told of a task, in order."""
        return [event["type"] for event in list(self.events) if event.get("uuid") == result.id]

    def wait(self, kind, result=None):
        return until(f"{kind} is told", lambda: self.of(kind, result))[0]


def celery(*arguments, code=0):
    """Runs the real command; answers what it printed."""
    done = subprocess.run([sys.executable, "-m", "celery", "-A", "more", *arguments],
                          capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, (done.returncode, arguments, done.stdout, done.stderr)
    return done.stdout


def state_is(result, state):
    until(f"it is {state}", lambda: result.state == state)
