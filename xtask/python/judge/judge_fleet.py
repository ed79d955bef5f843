"""The workers outside of pytest.

The command lines are in `JUDGE_WORKERS`, a JSON array of arrays in which
`{node}` is replaced by the name of the node. The first has the name that the
suite looks for and is the one that is asked; others share its queue.
"""
import json
import os
import signal
import subprocess
import time

#: Seconds that a worker has to answer its first ping.
START = 30

#: How a worker is stopped: what it is sent, and the seconds that it has then.
WARM = ((signal.SIGTERM, 15), (signal.SIGQUIT, 5), (signal.SIGKILL, 5))
#: The same when something went wrong and nobody cares about the tasks that run.
COLD = ((signal.SIGTERM, 1), (signal.SIGQUIT, 3), (signal.SIGKILL, 5))


class Fleet:
    """All workers; what the suite takes for its only one."""

    #: The fleet of the session, while it runs.
    current = None

    def __init__(self, app):
        from celery.utils.nodenames import anon_nodename

        self.app = app
        self.hostname = anon_nodename()
        lines = json.loads(os.environ["JUDGE_WORKERS"])
        nodes = [self.hostname]
        nodes += [f"companion{number}@judge" for number in range(1, len(lines))]
        self.workers = [Worker(app, *pair) for pair in zip(nodes, lines)]

    def start(self):
        for worker in self.workers:
            worker.start()
        for worker in self.workers:
            worker.wait()

    def stop(self, how=WARM):
        for worker in self.workers:
            worker.stop(how)

    def renew(self):
        """Workers that know nothing of what was before, and none of its tasks."""
        self.stop(COLD)
        self.app.control.purge()
        self.start()

    @property
    def is_alive(self):
        return all(worker.is_alive for worker in self.workers)

    @property
    def pid(self):
        return self.workers[0].process.pid


class Worker:
    """One program, as often as it is started."""

    def __init__(self, app, node, line):
        self.app = app
        self.node = node
        self.line = [word.replace("{node}", node) for word in line]
        self.process = None

    def start(self):
        path = f"{os.environ['JUDGE_LOG']}-{self.node.partition('@')[0].rstrip('0123456789')}.log"
        with open(path, "ab") as log:
            self.process = subprocess.Popen(
                self.line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self):
        """Until it answers; from then on it tells what it does."""
        end = time.monotonic() + START
        while not self.ask("ping"):
            if not self.is_alive:
                raise RuntimeError(f"a worker ended at once: {self.process.returncode}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.node} does not answer for {START} s")
        self.ask("enable_events")

    def ask(self, command):
        return self.app.control.broadcast(
            command, destination=[self.node], reply=True, timeout=1, limit=1)

    def stop(self, how):
        if self.process is None:
            return
        for number, seconds in how:
            self.process.send_signal(number)
            try:
                self.process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                continue

    @property
    def is_alive(self):
        return self.process is not None and self.process.poll() is None
