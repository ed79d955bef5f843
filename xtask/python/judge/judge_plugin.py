"""pytest plugin: runs Celery's integration suite with a worker outside of pytest.

The suite starts one worker for the session, in its own process. Here its place
is taken by the program whose command line is in `JUDGE_WORKER`, a JSON array in
which `{node}` is replaced by the name that the suite looks for.

    JUDGE_WORKER   the command line
    JUDGE_REPORT   a file that gets one line of JSON for each test
    JUDGE_LOG      a file that gets what the worker prints

What some tests look up in the worker's memory is found out in other ways: the
tasks that succeeded from events, the process id from the process. A worker
forgets revoked stamps by being restarted.
"""
import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

#: Seconds for one test, and for those that take their time.
LIMIT = 60
LONG = {"test_retry": 90, "test_revoked_by_headers_simple_canvas": 120}

#: Seconds that the worker has to answer its first ping, and to end.
START, STOP = 30, 15


class OutsideWorker:
    """The worker's process, as often as it is started."""

    current = None

    def __init__(self, app):
        from celery.utils.nodenames import anon_nodename

        self.app = app
        self.hostname = anon_nodename()
        self.process = None

    def start(self):
        words = json.loads(os.environ["JUDGE_WORKER"])
        with open(os.environ["JUDGE_LOG"], "ab") as log:
            self.process = subprocess.Popen(
                [word.replace("{node}", self.hostname) for word in words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + START
        while not self.ask("ping", limit=1):
            if self.process.poll() is not None:
                raise RuntimeError(f"the worker ended at once: {self.process.returncode}")
            if time.monotonic() > end:
                raise RuntimeError(f"the worker does not answer for {START} s")
        # What succeeded is told by events.
        self.ask("enable_events", limit=1)

    def ask(self, command, **options):
        return self.app.control.broadcast(
            command, destination=[self.hostname], reply=True, timeout=1, **options)

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def renew(self):
        """A worker that knows nothing of what was before."""
        self.stop()
        self.app.control.purge()
        self.start()

    @property
    def is_alive(self):
        return self.process is not None and self.process.poll() is None


class Stamps(dict):
    """Stands for the revoked stamps of the worker, of which tests only forget all."""

    def clear(self):
        super().clear()
        if OutsideWorker.current is not None:
            OutsideWorker.current.stop()
            OutsideWorker.current.start()


class Successes(threading.Thread):
    """Notes the ids of tasks that succeeded where tests look for them."""

    def __init__(self, app):
        super().__init__(daemon=True)
        self.app = app
        self.listens = threading.Event()
        self.ended = threading.Event()

    def run(self):
        from celery.worker import state

        def note(event):
            state.successful_requests.add(event["uuid"])

        with self.app.connection_for_read() as connection:
            receiver = self.app.events.Receiver(connection, handlers={"task-succeeded": note})
            with receiver.consumer_context(wakeup=False) as (used, _, _):
                self.listens.set()
                while not self.ended.is_set():
                    with contextlib.suppress(socket.timeout):
                        used.drain_events(timeout=0.5)


@contextlib.contextmanager
def outside(app, **_):
    """Takes the place of what starts a worker in this process."""
    from celery.result import _set_task_join_will_block, allow_join_result
    from celery.worker import state

    app.finalize()
    app.set_default()
    app.set_current()
    # As in a program that is no worker.
    _set_task_join_will_block(False)
    state.revoked_stamps = Stamps()
    successes = Successes(app)
    successes.start()
    if not successes.listens.wait(START):
        raise RuntimeError("events cannot be received")
    worker = OutsideWorker(app)
    try:
        worker.start()
        OutsideWorker.current = worker
        with allow_join_result():
            yield worker
    finally:
        OutsideWorker.current = None
        worker.stop()
        successes.ended.set()
        successes.join()


def pytest_configure():
    from celery.contrib.testing import worker

    worker.start_worker = outside


def left_out():
    """Parts of names of tests that are not run, with the reasons."""
    lines = Path(__file__).with_name("left_out.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def is_part(name, test):
    """Whether a test, or the class that it is of, has this name, with or without parameters."""
    return name in test.split("::") or name in test.partition("[")[0].split("::")


def pytest_collection_modifyitems(config, items):
    table = left_out()
    kept, dropped = [], []
    for item in items:
        reason = next((why for name, why in table if is_part(name, item.nodeid)), None)
        if reason is None:
            kept.append(item)
        else:
            dropped.append(item)
            report(item.nodeid, "left out", reason)
        # Once, and not as often as it takes.
        own = [mark for mark in item.own_markers if mark.name not in ("flaky", "timeout")]
        item.own_markers = own
        limit = LONG.get(item.name.partition("[")[0], LIMIT)
        item.add_marker(pytest.mark.timeout(limit), append=False)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.fixture(autouse=True)
def the_process_of_the_worker(request, monkeypatch):
    """A test compares the worker's process id with that of its own process."""
    worker = OutsideWorker.current
    if request.node.name == "test_stats" and worker is not None:
        monkeypatch.setattr(os, "getpid", lambda: worker.process.pid)


class Course:
    """What has happened in the test that runs."""

    failed = False


def pytest_runtest_setup(item):
    """A failure must not spoil the next test."""
    worker = OutsideWorker.current
    if worker is not None and (Course.failed or not worker.is_alive):
        worker.renew()
    Course.failed = False


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    result = outcome.get_result()
    if result.failed:
        Course.failed = True
        report(item.nodeid, "failed", f"in {result.when}")
    elif result.skipped:
        why = result.longrepr[2] if isinstance(result.longrepr, tuple) else result.longrepr
        report(item.nodeid, "skipped", str(why))
    elif result.when == "call":
        report(item.nodeid, "passed", "")


def report(test, outcome, why):
    """Adds a line; of several for one test a failure counts, else the last."""
    line = {"test": test.rpartition("/")[2], "outcome": outcome, "why": why}
    with open(os.environ["JUDGE_REPORT"], "a") as file:
        file.write(json.dumps(line) + "\n")
