"""The values that kombu reads from a message, in the form of the fixtures."""
from __future__ import annotations

import base64

import kombu
from kombu.utils.json import loads

from tagged import tag

PICKLE = "application/x-python-serialize"


def expect_message(raw):
    envelope = loads(raw)
    properties = dict(envelope["properties"])
    info = properties.get("delivery_info") or {}
    content_type = envelope.get("content-type")
    encoding = envelope.get("content-encoding") or "utf-8"
    body = envelope["body"]
    body = base64.b64decode(body) if properties.get("body_encoding") == "base64" else body.encode()
    return expect_body(body, {"content_type": content_type, "content_encoding": encoding},
                       envelope["headers"], {
        "properties": expect_properties(properties, content_type, encoding, info),
        "headers": tag(envelope["headers"]),
    })


def expect_properties(properties, content_type, encoding, info):
    named = {name: properties.get(name) for name in (
        "correlation_id", "reply_to", "delivery_mode", "priority", "expiration", "delivery_tag")}
    return tag(dict(
        named, content_type=content_type, content_encoding=encoding,
        exchange=info.get("exchange", ""), routing_key=info.get("routing_key", ""),
        redelivered=bool(info.get("redelivered", False))))


def expect_body(body, properties, headers, expect):
    """Add the content of the body, which kombu decodes as in a worker."""
    if properties["content_type"] == PICKLE:
        return dict(expect, refused=PICKLE)
    message = kombu.Message(
        body=body, channel=None, content_type=properties["content_type"],
        content_encoding=properties["content_encoding"], headers=headers,
        accept={"application/json", "application/x-msgpack", "application/x-yaml"})
    payload = message.decode()
    if isinstance(payload, dict):
        slots = ("args", "kwargs", "callbacks", "errbacks", "chord")
        embed = {name: payload.get(name) for name in ("callbacks", "errbacks", "chord")}
        task = {name: value for name, value in payload.items() if name not in slots}
        return dict(expect, protocol=1, task=tag(task), args=tag(payload["args"]),
                    kwargs=tag(payload["kwargs"]), embed=tag(dict(embed, chain=None)))
    args, kwargs, embed = payload
    return dict(expect, protocol=2, args=tag(args), kwargs=tag(kwargs), embed=tag(embed))
