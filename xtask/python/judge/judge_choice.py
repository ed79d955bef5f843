"""Which tests are run, and how long each may take."""
import os
from pathlib import Path
from types import FunctionType

#: Seconds for one test, and for those that wait for something not to happen, or for much.
LIMIT = 60
LONG = {
    "test_retry": 90,
    "test_revoked_by_headers_simple_canvas": 120,
    "test_revoked_by_headers_complex_canvas": 180,
    "test_enabling_flag_allow_error_cb_on_chord_header": 300,
    "test_disabling_flag_allow_error_cb_on_chord_header": 450,
    "test_flag_allow_error_cb_on_chord_header_on_upgraded_chord": 300,
    "test_nested_chord_header_link_error": 90,
    "test_large_group_pipeline": 90,
}


class LeftOut:
    """A line of left_out.tsv: a test, a class or a file, when, and why."""

    def __init__(self, line):
        self.name, self.when, self.why = line.split("\t")
        self.fits_something = False

    def fits(self, test):
        fits = test == self.name or test.startswith((f"{self.name}::", f"{self.name}["))
        self.fits_something |= fits
        return fits and (self.when == "always" or self.when in conditions())


def conditions():
    """The broker, and what else is not as usual."""
    return os.environ["JUDGE_CONDITIONS"].split()


def left_out():
    lines = Path(__file__).with_name("left_out.tsv").read_text().splitlines()
    return [LeftOut(line) for line in lines if line and not line.startswith("#")]


def reason(table, test):
    """Why the test is left out, if it is. Every line that fits is noted."""
    return next((line.why for line in [line for line in table if line.fits(test)]), None)


def limit(name):
    return LONG.get(name.partition("[")[0], LIMIT)


def shorten_waits(module):
    """The suite waits a minute for what comes at once or never."""
    wait = int(os.environ["JUDGE_WAIT"])
    usual = getattr(module, "TIMEOUT", 0)
    if usual <= wait:
        return
    module.TIMEOUT = wait
    for name, function in vars(module).items():
        if name.startswith("await_") and isinstance(function, FunctionType):
            defaults = function.__defaults__ or ()
            function.__defaults__ = tuple(wait if d == usual else d for d in defaults)
