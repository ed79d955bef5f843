"""Runs the workers as programs outside of pytest.

The command lines are in `INTEROP_WORKERS`, a JSON array of arrays in which
`{node}` is replaced by the node name. The first worker has the node name that
the suite addresses; the others consume the same queue.
"""
import json
import os
import signal
import subprocess
import time

#: Seconds within which a worker must answer its first ping.
START_TIMEOUT = 30

#: How to stop a worker: the signals to send, and the seconds to wait after each.
WARM_STOP = ((signal.SIGTERM, 15), (signal.SIGQUIT, 5), (signal.SIGKILL, 5))
#: The signals after a failure, when the running tasks do not matter.
COLD_STOP = ((signal.SIGTERM, 1), (signal.SIGQUIT, 3), (signal.SIGKILL, 5))


class Fleet:
    """All workers of the session; the suite sees them as one worker."""

    #: The fleet of the session while it runs.
    current = None

    def __init__(self, app):
        from celery.utils.nodenames import anon_nodename

        self.app = app
        self.hostname = anon_nodename()
        commands = json.loads(os.environ["INTEROP_WORKERS"])
        nodes = [self.hostname]
        nodes += [f"companion{number}@interop" for number in range(1, len(commands))]
        self.workers = [Worker(app, *pair) for pair in zip(nodes, commands)]

    def start(self):
        for worker in self.workers:
            worker.start()
        for worker in self.workers:
            worker.wait()

    def stop(self, signals=WARM_STOP):
        for worker in self.workers:
            worker.stop(signals)

    def restart(self):
        """Replaces the workers by new ones without state, and purges the queue."""
        self.stop(COLD_STOP)
        self.app.control.purge()
        self.start()

    @property
    def is_alive(self):
        return all(worker.is_alive for worker in self.workers)

    @property
    def pid(self):
        return self.workers[0].process.pid


class Worker:
    """A worker program, which can be restarted."""

    def __init__(self, app, node, command):
        self.app = app
        self.node = node
        self.command = [word.replace("{node}", node) for word in command]
        self.process = None

    def start(self):
        name = self.node.partition("@")[0].rstrip("0123456789")
        path = f"{os.environ['INTEROP_LOG_PREFIX']}-{name}.log"
        with open(path, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self):
        """Waits until the worker answers a ping, then enables its events."""
        end = time.monotonic() + START_TIMEOUT
        while not self.call("ping"):
            if not self.is_alive:
                raise RuntimeError(
                    f"{self.node} exited during its start with {self.process.returncode}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.node} does not answer a ping within {START_TIMEOUT} s")
        self.call("enable_events")

    def call(self, command):
        return self.app.control.broadcast(
            command, destination=[self.node], reply=True, timeout=1, limit=1)

    def stop(self, signals):
        if self.process is None:
            return
        for number, seconds in signals:
            self.process.send_signal(number)
            try:
                self.process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                continue

    @property
    def is_alive(self):
        return self.process is not None and self.process.poll() is None
