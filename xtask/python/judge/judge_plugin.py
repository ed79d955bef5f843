"""pytest plugin: runs Celery's integration suite with workers outside of pytest.

The suite starts one worker for the session, in its own process. Here its place
is taken by programs: judge_fleet.py. What tests look up in the memory of the
worker is found out in other ways: judge_stand_ins.py. Which tests cannot judge
a worker, and why, is in left_out.tsv.

    JUDGE_WORKERS     the command lines
    JUDGE_CONDITIONS  words that lines of left_out.tsv depend on
    JUDGE_WHOLE       not empty if every test of the suite is to be run
    JUDGE_WAIT        seconds that tests wait for results
    JUDGE_REPORT      a file that gets lines of JSON about each test
    JUDGE_LOG         the beginning of the files that get what the workers print
"""
import contextlib
import functools
import json
import os
from unittest import mock

import pytest

import judge_choice
from judge_fleet import START, Fleet
from judge_stand_ins import Events, Revoked, Stamps, Tap, wait_for_signals


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
    fleet = Fleet(app)
    state.revoked_stamps = Stamps(fleet)
    state.revoked = Revoked()
    broker = os.environ["TEST_BROKER"]
    tap = Tap(broker) if broker.startswith("redis") else None
    if tap is not None:
        tap.start()
    events = Events(app, fleet, tap)
    events.start()
    if not events.listens.wait(START):
        raise RuntimeError("events cannot be received")
    try:
        fleet.start()
        Fleet.current, Events.current = fleet, events
        with allow_join_result():
            yield fleet
    finally:
        Fleet.current, Events.current = None, None
        fleet.stop()
        events.stop()


def hurried(wait):
    """As each worker answers once, nobody has to wait whether there will be more."""

    def wait_until_idle(manager):
        control = manager.app.control
        ask = functools.partial(control.inspect, limit=len(Fleet.current.workers))
        with mock.patch.object(control, "inspect", ask):
            wait(manager)

    return wait_until_idle


def pytest_configure():
    from celery.contrib.testing import manager, worker

    worker.start_worker = outside
    manager.ManagerMixin.wait_until_idle = hurried(manager.ManagerMixin.wait_until_idle)


def pytest_ignore_collect(collection_path):
    """A file that cannot be read is left out as a whole."""
    for line in judge_choice.left_out():
        if line.when == "unread" and line.name == collection_path.name:
            note(line.name, "left out", line.why)
            return True
    return None


def pytest_collectreport(report):
    """A file that takes itself out would not be missed."""
    if report.skipped:
        raise pytest.UsageError(f"{report.nodeid} is not run, and left_out.tsv does not say why")


def pytest_itemcollected(item):
    """Nobody else shall take a test out."""
    if os.environ["JUDGE_WHOLE"]:
        note(item.nodeid, "not run", "")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    table = judge_choice.left_out()
    kept, dropped = [], []
    for item in items:
        why = judge_choice.reason(table, short(item.nodeid))
        if why is None:
            kept.append(item)
        else:
            dropped.append(item)
            note(item.nodeid, "left out", why)
        # Once, and not as often as it takes.
        own = [mark for mark in item.own_markers if mark.name not in ("flaky", "timeout")]
        item.own_markers = own
        item.add_marker(pytest.mark.timeout(judge_choice.limit(item.name)), append=False)
    for module in {item.module for item in items}:
        judge_choice.shorten_waits(module)
    if os.environ["JUDGE_WHOLE"]:
        idle = [line.name for line in table
                if not line.fits_something and line.when != "unread"]
        if idle:
            raise pytest.UsageError(f"left_out.tsv names what is not there: {idle}")
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.fixture(autouse=True)
def what_happens_elsewhere(request, monkeypatch):
    wait_for_signals(monkeypatch)
    # A test compares the worker's process id with that of its own process.
    if request.node.name == "test_stats" and Fleet.current is not None:
        monkeypatch.setattr(os, "getpid", lambda: Fleet.current.pid)


class Course:
    """What has happened before the test that runs."""

    failed = False
    module = None


def pytest_runtest_setup(item):
    """A failure must not spoil the next test, nor what is left of one file the next file."""
    fleet = Fleet.current
    is_other = Course.module not in (None, item.module)
    if fleet is not None and (Course.failed or is_other or not fleet.is_alive):
        fleet.renew()
    Course.failed, Course.module = False, item.module


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    result = outcome.get_result()
    if result.failed:
        Course.failed = True
        note(item.nodeid, "failed", f"in {result.when}")
    elif result.skipped:
        expected = hasattr(result, "wasxfail")
        why = result.longrepr[2] if isinstance(result.longrepr, tuple) else result.longrepr
        why = result.wasxfail if expected else str(why)
        note(item.nodeid, "xfailed" if expected else "skipped", why)
    elif result.when == "call":
        note(item.nodeid, "passed", "")


def short(test):
    return test.removeprefix("t/integration/")


def note(test, outcome, why):
    """Adds a line; of several for one test a failure counts, else the last."""
    line = {"test": short(test), "outcome": outcome, "why": why}
    with open(os.environ["JUDGE_REPORT"], "a") as file:
        file.write(json.dumps(line) + "\n")
