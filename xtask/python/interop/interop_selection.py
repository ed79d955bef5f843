"""Selects the tests to run and their time limits."""
import os
from pathlib import Path
from types import FunctionType

#: The time limit of a test in seconds, and those of slow tests: they wait for something that must
#: not happen, or run many tasks.
TIME_LIMIT = 60
LONG_TIME_LIMITS = {
    "test_retry": 90,
    "test_revoked_by_headers_simple_canvas": 120,
    "test_revoked_by_headers_complex_canvas": 180,
    "test_enabling_flag_allow_error_cb_on_chord_header": 300,
    "test_disabling_flag_allow_error_cb_on_chord_header": 450,
    "test_flag_allow_error_cb_on_chord_header_on_upgraded_chord": 300,
    "test_nested_chord_header_link_error": 90,
    "test_large_group_pipeline": 90,
}


class Exclusion:
    """A line of exclusions.tsv: a test, class or file; a condition; a reason."""

    def __init__(self, line):
        self.name, self.condition, self.reason = line.split("\t")
        self.has_matched = False

    def excludes(self, test):
        matches = test == self.name or test.startswith((f"{self.name}::", f"{self.name}["))
        self.has_matched |= matches
        return matches and (self.condition == "always" or self.condition in conditions())


def conditions():
    """The conditions of this run: the broker, `mixed`, `fast`."""
    return os.environ["INTEROP_CONDITIONS"].split()


def exclusions():
    lines = Path(__file__).with_name("exclusions.tsv").read_text().splitlines()
    return [Exclusion(line) for line in lines if line and not line.startswith("#")]


def exclusion_reason(table, test):
    """Returns why the test is excluded, or None. Marks every line that matches."""
    return next((line.reason for line in [line for line in table if line.excludes(test)]), None)


def time_limit(name):
    return LONG_TIME_LIMITS.get(name.partition("[")[0], TIME_LIMIT)


def shorten_timeouts(module):
    """Shortens the timeout of a minute with which the suite waits for results."""
    timeout = int(os.environ["INTEROP_RESULT_TIMEOUT"])
    default = getattr(module, "TIMEOUT", 0)
    if default <= timeout:
        return
    module.TIMEOUT = timeout
    for name, function in vars(module).items():
        if name.startswith("await_") and isinstance(function, FunctionType):
            defaults = function.__defaults__ or ()
            function.__defaults__ = tuple(timeout if d == default else d for d in defaults)
