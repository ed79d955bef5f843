"""Check that Python reads the messages and results written by the Rust crate.

    python verify.py CASES

`CASES` is a JSON file with an array of cases, each with a `name`, an `expect`
in the fixture form and either an `envelope` of kombu or a result document
(`document_base64` with its `serializer`). One line is printed per difference;
the exit code is 1 if there was any.
"""
from __future__ import annotations

import base64
import json
import sys

from celery import Celery

from reading import expect_message
from tagged import same, tag


def differences(case):
    """Yield the differences between a case's expectation and the values that Python reads."""
    read = read_result(case) if "document_base64" in case else expect_message(case["envelope"])
    for part, expected in case["expect"].items():
        found = read.get(part)
        if part in case.get("at_least", ()):
            found = {name: found.get(name) for name in expected}
        if not same(found, expected):
            yield f"{part}: expected {json.dumps(expected)}, read {json.dumps(found)}"


def read_result(case):
    """Read a document like the result backend of a client."""
    serializer = case["serializer"]
    app = Celery(set_as_current=False, backend="cache+memory://", result_serializer=serializer,
                 accept_content=[serializer])
    payload = base64.b64decode(case["document_base64"])
    read = {"document": tag(app.backend.decode(payload))}
    meta = app.backend.decode_result(payload)
    if isinstance(meta.get("result"), BaseException):
        read["exception"] = type(meta["result"]).__name__
    return read


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        cases = json.load(file)
    failed = 0
    for case in cases:
        try:
            found = list(differences(case))
        except Exception as error:  # any error while Python reads the bytes
            found = [f"{type(error).__name__}: {error}"]
        for line in found:
            print(f"{case['name']}: {line}")
        failed += bool(found)
    print(f"{len(cases) - failed} read back, {failed} failed")
    sys.exit(1 if failed or not cases else 0)


if __name__ == "__main__":
    main()
