"""The form of Python values in fixtures.

Values that JSON represents exactly are plain JSON; every other value is an
object whose key ``$`` names the Python type. Both sides of the comparison (the
Rust tests and ``verify.py``) read this form, so that the expected values do not
depend on a Celery serializer.
"""
from __future__ import annotations

import math
import uuid
from datetime import date, datetime, time
from decimal import Decimal


def tag(value):
    """Return `value` in the fixture form."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return tag_text(value)
    if isinstance(value, int):
        fits = -(2**63) <= value < 2**64
        return value if fits else {"$": "int", "text": str(value)}
    if isinstance(value, float):
        return {"$": "float", "text": repr(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"$": "bytes", "hex": bytes(value).hex()}
    if isinstance(value, (list, tuple)):
        return [tag(item) for item in value]
    if isinstance(value, dict):
        return tag_map(value)
    return tag_extended(value)


def tag_text(text):
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return {"$": "surrogates", "text": text.encode("utf-8", "backslashreplace").decode()}
    return str(text)


def tag_map(mapping):
    if all(isinstance(key, str) for key in mapping) and "$" not in mapping:
        return {tag_text(key): tag(item) for key, item in mapping.items()}
    return {"$": "map", "items": [[tag(key), tag(item)] for key, item in mapping.items()]}


def tag_extended(value):
    # A datetime is also a date, so it is checked first.
    for kind, python_type in (
        ("datetime", datetime),
        ("date", date),
        ("time", time),
    ):
        if isinstance(value, python_type):
            return {"$": kind, "text": value.isoformat()}
    if isinstance(value, Decimal):
        return {"$": "decimal", "text": str(value)}
    if isinstance(value, uuid.UUID):
        return {"$": "uuid", "text": value.hex}
    raise TypeError(f"no fixture form for {type(value)!r}: {value!r}")


def same(left, right):
    """Return whether two tagged values are equal; maps may be in any order."""
    if isinstance(left, dict) and isinstance(right, dict):
        if left.get("$") == "map" and right.get("$") == "map":
            key = lambda pair: repr(pair)
            return same(sorted(left["items"], key=key), sorted(right["items"], key=key))
        if left.get("$") == "float" and right.get("$") == "float":
            return same_float(float(left["text"]), float(right["text"]))
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def same_float(left, right):
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return left == right and math.copysign(1, left) == math.copysign(1, right)
