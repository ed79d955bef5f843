"""pytest plugin: runs Celery's integration suite with workers outside of pytest.

The suite starts one worker for the session, in its own process. This plugin
starts programs instead: interop_workers.py. Substitutes provide what tests
read from the memory of the worker: interop_substitutes.py. exclusions.tsv
lists the tests that cannot run against another worker, and why.

    INTEROP_WORKERS         the command lines
    INTEROP_CONDITIONS      conditions that lines of exclusions.tsv depend on
    INTEROP_WHOLE           not empty if every test of the suite is collected
    INTEROP_RESULT_TIMEOUT  seconds that tests wait for results
    INTEROP_REPORT          a file to which lines of JSON about each test are appended
    INTEROP_LOG_PREFIX      the path prefix of the workers' log files
"""
import contextlib
import functools
import json
import os
from unittest import mock

import pytest

import interop_selection
from interop_substitutes import (
    EventReceiver, MessageMonitor, RevokedIds, RevokedStamps, wait_for_signals)
from interop_workers import START_TIMEOUT, Fleet


@contextlib.contextmanager
def start_workers(app, **_):
    """Replaces the function of Celery that starts a worker in this process."""
    from celery.result import _set_task_join_will_block, allow_join_result
    from celery.worker import state

    app.finalize()
    app.set_default()
    app.set_current()
    # This process is a client, not a worker.
    _set_task_join_will_block(False)
    fleet = Fleet(app)
    state.revoked_stamps = RevokedStamps(fleet)
    state.revoked = RevokedIds()
    broker = os.environ["TEST_BROKER"]
    monitor = MessageMonitor(broker) if broker.startswith("redis") else None
    if monitor is not None:
        monitor.start()
    receiver = EventReceiver(app, fleet, monitor)
    receiver.start()
    if not receiver.is_consuming.wait(START_TIMEOUT):
        raise RuntimeError(f"the event receiver does not consume within {START_TIMEOUT} s")
    try:
        fleet.start()
        Fleet.current, EventReceiver.current = fleet, receiver
        with allow_join_result():
            yield fleet
    finally:
        Fleet.current, EventReceiver.current = None, None
        fleet.stop()
        receiver.stop()


def with_reply_limit(wait):
    """Limits the replies of `inspect` to one for each worker, so that it need not time out."""

    def wait_until_idle(manager):
        control = manager.app.control
        inspect = functools.partial(control.inspect, limit=len(Fleet.current.workers))
        with mock.patch.object(control, "inspect", inspect):
            wait(manager)

    return wait_until_idle


def pytest_configure():
    from celery.contrib.testing import manager, worker

    worker.start_worker = start_workers
    manager.ManagerMixin.wait_until_idle = with_reply_limit(manager.ManagerMixin.wait_until_idle)


def pytest_ignore_collect(collection_path):
    """Excludes files that cannot be imported."""
    for line in interop_selection.exclusions():
        if line.condition == "unread" and line.name == collection_path.name:
            record(line.name, "excluded", line.reason)
            return True
    return None


def pytest_collectreport(report):
    """Fails if a file skips itself, because its tests would be missing in the report."""
    if report.skipped:
        raise pytest.UsageError(f"{report.nodeid} skips itself and is not in exclusions.tsv")


def pytest_itemcollected(item):
    """Records each collected test, so that one which another plugin deselects is noticed."""
    if os.environ["INTEROP_WHOLE"]:
        record(item.nodeid, "not run", "")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    table = interop_selection.exclusions()
    kept, dropped = [], []
    for item in items:
        reason = interop_selection.exclusion_reason(table, short_name(item.nodeid))
        if reason is None:
            kept.append(item)
        else:
            dropped.append(item)
            record(item.nodeid, "excluded", reason)
        # The suite repeats flaky tests; here each test runs once, with our time limit.
        own = [mark for mark in item.own_markers if mark.name not in ("flaky", "timeout")]
        item.own_markers = own
        item.add_marker(pytest.mark.timeout(interop_selection.time_limit(item.name)), append=False)
    for module in {item.module for item in items}:
        interop_selection.shorten_timeouts(module)
    if os.environ["INTEROP_WHOLE"]:
        unused = [line.name for line in table
                  if not line.has_matched and line.condition != "unread"]
        if unused:
            raise pytest.UsageError(f"exclusions.tsv names tests that do not exist: {unused}")
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.fixture(autouse=True)
def worker_in_other_process(request, monkeypatch):
    wait_for_signals(monkeypatch)
    # A test compares the worker's process id with that of its own process.
    if request.node.name == "test_stats" and Fleet.current is not None:
        monkeypatch.setattr(os, "getpid", lambda: Fleet.current.pid)


class PreviousTest:
    """The outcome and the module of the previous test."""

    failed = False
    module = None


def pytest_runtest_setup(item):
    """Restarts the workers after a failure, after an exit, and between files."""
    fleet = Fleet.current
    is_new_module = PreviousTest.module not in (None, item.module)
    if fleet is not None and (PreviousTest.failed or is_new_module or not fleet.is_alive):
        fleet.restart()
    PreviousTest.failed, PreviousTest.module = False, item.module


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    result = outcome.get_result()
    if result.failed:
        PreviousTest.failed = True
        record(item.nodeid, "failed", f"in {result.when}")
    elif result.skipped:
        expected = hasattr(result, "wasxfail")
        reason = result.longrepr[2] if isinstance(result.longrepr, tuple) else result.longrepr
        reason = result.wasxfail if expected else str(reason)
        record(item.nodeid, "xfailed" if expected else "skipped", reason)
    elif result.when == "call":
        record(item.nodeid, "passed", "")


def short_name(test):
    return test.removeprefix("t/integration/")


def record(test, outcome, reason):
    """Appends a line. Of several lines about one test a failure wins, otherwise the last line."""
    line = {"test": short_name(test), "outcome": outcome, "reason": reason}
    with open(os.environ["INTEROP_REPORT"], "a") as file:
        file.write(json.dumps(line) + "\n")
