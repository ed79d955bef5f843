"""Record the fixtures of celery-protocol from a real Python Celery.

    python record.py --redis redis://localhost:6379/0 --out celery-protocol/fixtures

Celery itself publishes every message. A fixture contains the bytes from Redis
and the values that kombu reads from them. Ids, clock, host name and process id
are pinned, so that recording again with the same versions gives the same
files. The script flushes the database of the URL.
"""
from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import json
import os
import sys
import uuid
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import celery.app.amqp
import kombu.transport
import kombu.transport.memory
import kombu.transport.pyamqp
import redis
from celery import Celery, chain, chord, group
from celery.app.task import Context
from celery.canvas import StampingVisitor
from celery.exceptions import Reject, SoftTimeLimitExceeded
from kombu.utils.uuid import uuid as new_id

from reading import expect_body, expect_message
from tagged import tag

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
LATER = NOW + timedelta(minutes=5)
ORIGIN = "gen1@host"
REPLY_TO = "d9bfa6ba-6a1f-3f6e-8f0a-0c9b8c7d6e5f"
VERSIONS = {name: importlib.metadata.version(name) for name in ("celery", "kombu")}


class Recorder:
    """Runs one case at a time and writes its files."""

    def __init__(self, url: str, out: Path):
        self.url = url
        self.out = out
        self.redis = redis.Redis.from_url(url)
        self.written: list[str] = []

    def app(self, **settings) -> Celery:
        app = Celery("demo", broker=self.url, backend=self.url, set_as_current=False)
        app.conf.update(settings)
        app.now = lambda: NOW
        app._local.oid = REPLY_TO
        for name in ("add", "mul", "xsum", "echo", "fail"):
            app.task(name=f"tasks.{name}")(never_run)
        app.task(name="tasks.quiet", ignore_result=True)(never_run)
        return app

    def messages(self, name, shows, publish, *, settings=None):
        """Record every message that `publish(app)` leaves in Redis."""
        self.redis.flushdb()
        app = self.app(**(settings or {}))
        with pinned_ids(name):
            publish(app)
        found = self.queued()
        assert found, f"{name} published nothing"
        for number, (key, raw) in enumerate(found, 1):
            suffix = f"-{number}" if len(found) > 1 else ""
            self.write(name + suffix, {
                "shows": shows,
                "origin": dict(VERSIONS, transport="redis"),
                "key": key,
                "envelope": raw,
                "expect": expect_message(raw),
            })
        app.close()

    def queued(self):
        """Return every queued envelope with the name of its list, oldest first."""
        return [
            (key.decode(), raw.decode("utf-8"))
            for key in sorted(self.redis.keys("*"))
            if not key.startswith((b"_kombu.", b"celery-task", b"unacked"))
            for raw in reversed(self.redis.lrange(key, 0, -1))
        ]

    def document(self, name, shows, store, *, settings=None, task_id=None):
        """Record the result document that `store(app, task_id)` leaves in Redis."""
        self.redis.flushdb()
        app = self.app(**(settings or {}))
        with pinned_ids(name):
            task_id = task_id or new_id()
            store(app, task_id)
        (key,) = self.redis.keys("celery-task*-meta-*")
        raw = self.redis.get(key)
        meta = app.backend.decode(raw)
        self.write(name, {
            "shows": shows,
            "origin": dict(VERSIONS, transport="redis result backend"),
            "key": key.decode(),
            "serializer": app.conf.result_serializer,
            **stored_bytes(raw),
            "expect": {"document": tag(meta)},
        })
        app.close()

    def by_hand(self, name, shows, origin, envelope: str, expect=None):
        """Write the message of another producer, which is defined in this script."""
        self.write(name, {
            "shows": shows,
            "origin": {"producer": origin, "transport": "redis, written by hand"},
            "key": "celery",
            "envelope": envelope,
            "expect": expect or expect_message(envelope),
        })

    def amqp(self, name, shows, publish, *, settings=None):
        """Record the message that py-amqp encodes into frames; needs no server."""
        RECORDED.clear()
        app = self.app(**(settings or {}))
        app.conf.broker_url = "recording://"
        with pinned_ids(name):
            publish(app)
        for number, (message, exchange, routing_key) in enumerate(RECORDED, 1):
            properties = through_frame(message)
            headers = properties.pop("application_headers", {})
            suffix = f"-{number}" if len(RECORDED) > 1 else ""
            self.write(name + suffix, {
                "shows": shows,
                "origin": dict(VERSIONS, transport="amqp",
                               **{"py-amqp": importlib.metadata.version("amqp")}),
                "properties": tag(properties),
                "headers": tag(headers),
                "exchange": exchange,
                "routing_key": routing_key,
                "body_base64": base64.b64encode(body_bytes(message.body)).decode(),
                "expect": expect_body(body_bytes(message.body), properties, headers, {}),
            })
        app.close()

    def write(self, name, fixture):
        path = self.out / f"{name}.json"
        assert path.name not in self.written, f"{name} is recorded twice"
        path.write_text(json.dumps(fixture, indent=1) + "\n")
        self.written.append(path.name)

    def remove_stale(self):
        for path in self.out.glob("*.json"):
            if path.name not in self.written:
                path.unlink()


def never_run(*args, **kwargs):
    """The body of every task: the tasks are sent and never run."""


def stored_bytes(raw):
    try:
        return {"document": raw.decode("utf-8")} if b"\0" not in raw else {
            "document_base64": base64.b64encode(raw).decode()}
    except UnicodeDecodeError:
        return {"document_base64": base64.b64encode(raw).decode()}


# A transport that prepares messages as py-amqp does and stores them in a list.

RECORDED = []


class RecordingChannel(kombu.transport.memory.Channel):
    def prepare_message(self, *args, **kwargs):
        return kombu.transport.pyamqp.Channel.prepare_message(self, *args, **kwargs)

    def basic_publish(self, message, exchange, routing_key, **kwargs):
        RECORDED.append((message, exchange, routing_key))


class RecordingTransport(kombu.transport.memory.Transport):
    Channel = RecordingChannel


kombu.transport.TRANSPORT_ALIASES["recording"] = f"{__name__}:RecordingTransport"


def through_frame(message):
    """Return the properties as a peer reads them from the content header frame."""
    from amqp.basic_message import Message
    from amqp.spec import Basic
    frame = message._serialize_properties()
    read = Message()
    read._load_properties(Basic.CLASS_ID, frame, 0)
    return read.properties


def body_bytes(body):
    return body.encode() if isinstance(body, str) else bytes(body)


# Pinning of the values that differ between runs.

@contextmanager
def pinned_ids(seed):
    """Derive ids from the name of the case; pin the host name and process id."""
    count = iter(range(10_000))

    def pinned():
        digest = hashlib.md5(f"{seed} {next(count)}".encode()).digest()
        return uuid.UUID(bytes=digest, version=4)

    before = new_id.__defaults__, celery.app.amqp.anon_nodename
    new_id.__defaults__ = (pinned,)
    celery.app.amqp.anon_nodename = lambda: ORIGIN
    try:
        yield
    finally:
        new_id.__defaults__, celery.app.amqp.anon_nodename = before


# The cases.

TYPES = {
    "datetime": NOW,
    "datetime-naive": NOW.replace(tzinfo=None, microsecond=0),
    "date": date(2030, 1, 2),
    "time": time(3, 4, 5, 678901),
    "decimal": Decimal("1.10"),
    "uuid": uuid.UUID("12345678123442348234123456789abc"),
    "bytes-text": b"abc",
    "bytes-other": b"\xff\x00",
}
NUMBERS = {
    "i64": [-(2**63), 2**63 - 1],
    "u64": [2**64 - 1],
    "floats": [0.1, -0.0, 1.0, 1e16, 1e-7, 1.7976931348623157e308, 5e-324],
}
TEXTS = ["naïve", "Ünïcödé ✓", "日本語", "👍", 'quote " backslash \\ slash /', "line\nbreak\ttab", "\x00\x1f\x7f"]


def send(name="tasks.add", args=(2, 3), kwargs=None, **options):
    return lambda app: app.tasks[name].apply_async(args, kwargs, **options)


def bodies(recorder):
    record = recorder.messages
    record("v2-json-no-params", "a call without arguments", send(args=None))
    record("v2-json-args", "positional arguments", send())
    record("v2-json-kwargs", "keyword arguments", send(args=(), kwargs={"x": 2, "y": 3}))
    record("v2-json-both", "positional and keyword arguments", send(args=(2,), kwargs={"y": 3}))
    record("v2-json-args-list", "arguments passed as a list, as argsrepr shows", send(args=[1, 2]))
    record("v2-json-nested", "arrays and maps inside the arguments",
           send("tasks.echo", [[1, [2, [3, {}]]], {"a": {"b": [None, True, False]}}]))
    record("v2-json-texts", "non-ASCII and control characters, escaped by Python",
           send("tasks.echo", TEXTS, {"schlüssel": "wert"}))
    record("v2-json-numbers", "the limits of 64-bit integers and of floats", send("tasks.echo", [NUMBERS]))
    record("v2-json-long-argsrepr", "arguments beyond the 1024 characters of argsrepr",
           send("tasks.echo", ["x" * 3000]))
    record("v2-json-deep", "arguments deeper than argsrepr's three levels",
           send("tasks.echo", [[[[[["deep"]]]]]]))
    record("v2-json-extended-types", "every type of kombu's __type__ extension",
           send("tasks.echo", [TYPES], {"at": NOW}))
    record("v2-json-big-integers", "integers of 80 and of 200 bits",
           send("tasks.xsum", [[2**80, -(2**80), 2**200]]))
    record("v2-json-nan-infinity", "NaN and the infinities, bare words that are not JSON",
           send("tasks.xsum", [[float("nan"), float("inf"), float("-inf")]]))
    record("v2-json-lone-surrogate", "a lone surrogate, which UTF-8 cannot represent",
           send("tasks.echo", ["\ud800"], {"fine": 1}))
    record("v2-json-type-lookalike", "a map with __type__ and other keys is an ordinary map",
           send("tasks.echo", [{"__type__": "datetime", "__value__": "x", "other": 1}]))
    record("v2-json-non-string-keys", "keys that Python converts to text",
           send("tasks.echo", [{1: "int", 1.5: "float", None: "none", True: "true"}]))
    record("v2-send-task", "send_task: a name without a registered task",
           lambda app: app.send_task("elsewhere.task"))
    for protocol in (1, 2):
        settings = {"task_protocol": protocol}
        for serializer in ("json", "msgpack", "yaml", "pickle"):
            if (protocol, serializer) == (2, "json"):
                continue
            record(f"v{protocol}-{serializer}-both", f"protocol {protocol} in {serializer}",
                   send(args=(2, "é"), kwargs={"y": 3.0, "z": None}, serializer=serializer),
                   settings=settings)
    record("v1-json-no-params", "protocol 1 without arguments", send(args=None),
           settings={"task_protocol": 1})
    record("v2-msgpack-values", "values that msgpack supports: bytes, 64 bits, infinity",
           send("tasks.echo", [b"\xff\x00", NUMBERS, TEXTS, float("inf")],
                serializer="msgpack"))
    record("v2-yaml-values", "values that YAML supports: bytes, keys of any type, big integers",
           send("tasks.echo", [b"\xff\x00", {1: "one"}, NUMBERS, TEXTS, float("inf"), 2**80,
                               ["yes", "1", "1.5", "null", "~", "2030-01-02", "", " ", "a: b", "#", "x\ny\n"]],
                serializer="yaml"))
    record("v1-links", "protocol 1 with callbacks, errbacks and a chord",
           lambda app: app.tasks["tasks.add"].apply_async(
               (2, 3), link=app.tasks["tasks.mul"].s(2), link_error=app.tasks["tasks.fail"].s(),
               chord=app.tasks["tasks.xsum"].s(), task_id="v1-links", group_id="g-1"),
           settings={"task_protocol": 1})
    record("v1-options", "protocol 1 with eta, expires, retries and time limits",
           send(countdown=10, expires=60, retries=1, time_limit=30, soft_time_limit=20, group_id="g-1"),
           settings={"task_protocol": 1})


def compressions(recorder):
    for name in ("gzip", "bzip2", "lzma", "brotli", "zstd"):
        recorder.messages(f"v2-compressed-{name}", f"a body compressed with {name}",
                          send("tasks.echo", ["text " * 100], compression=name))
    recorder.messages("v2-compressed-msgpack", "a msgpack body compressed with zlib",
                      send("tasks.echo", ["text " * 100], compression="zlib", serializer="msgpack"))
    recorder.messages("v1-compressed-gzip", "protocol 1, compressed",
                      send(compression="gzip"), settings={"task_protocol": 1})


class Tracer(StampingVisitor):
    def on_signature(self, sig, **headers):
        return {"trace": "abc", "customers": [1, 2], "stamped_headers": ["trace", "customers"]}


def stamped(app):
    sig = app.tasks["tasks.add"].s(2, 3)
    sig.stamp(Tracer())
    sig.apply_async()


def options(recorder):
    record = recorder.messages
    record("option-countdown", "a countdown becomes an eta in UTC", send(countdown=10))
    record("option-eta-aware", "an eta with an offset",
           send(eta=LATER.astimezone(timezone(timedelta(hours=2)))))
    record("option-eta-naive", "a naive eta, which is sent without offset", send(eta=LATER.replace(tzinfo=None)))
    record("option-eta-whole-second", "an eta without microseconds",
           send(eta=LATER.replace(microsecond=0)))
    record("option-expires-seconds", "expires as seconds, with the expiration property", send(expires=60))
    record("option-expires-time", "expires as a time", send(expires=LATER))
    record("option-expires-past", "an expiry in the past", send(expires=NOW - timedelta(hours=1)))
    record("option-time-zone", "a countdown with a time zone in the settings",
           send(countdown=10), settings={"timezone": "Europe/Paris"})
    for priority in (3, 9):
        record(f"option-priority-{priority}", f"priority {priority}", send(priority=priority))
    record("option-time-limits", "hard and soft time limits, one of them a float",
           send(time_limit=30, soft_time_limit=20.5))
    record("option-headers", "custom headers, beside those of Celery",
           send(headers={"trace_id": "abc", "nested": {"list": [1, None, 2.5]}}))
    record("option-header-override", "a sender's header that overrides a standard one",
           send(headers={"origin": "me"}))
    record("option-ignore-result", "ignore_result set on the call", send(ignore_result=True))
    record("option-ignore-result-task", "ignore_result set on the task", send("tasks.quiet", ()))
    record("option-shadow", "a display name", send(shadow="other name"))
    record("option-stamps", "stamps and their names", stamped)
    record("option-transient", "a transient message", send(delivery_mode=1))
    record("option-queue", "a named queue", send(queue="slow"))
    record("option-reply-to", "a reply queue and a custom id",
           send(reply_to="replies", task_id="my-id", root_id="root", parent_id="parent"))
    record("option-group-retries", "a retry inside a group",
           send(group_id="g-1", group_index=7, retries=3))
    record("envelope-inline-body", "a transport without body_encoding: the body is text", send(),
           settings={"broker_transport_options": {"body_encoding": None}})
    record("envelope-redelivered", "rejected and requeued: the redelivered flag", requeued)


def requeued(app):
    app.tasks["tasks.add"].apply_async((2, 3))
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        app.amqp.queues["celery"](channel).declare()
        message = channel.basic_get("celery")
        channel.basic_reject(message.delivery_tag, requeue=True)


def canvas(recorder):
    record = recorder.messages
    def task(app, name):
        return app.tasks[f"tasks.{name}"]
    record("canvas-link", "callbacks and errbacks",
           lambda app: task(app, "add").apply_async(
               (2, 3), link=[task(app, "mul").s(10), task(app, "echo").si("done")],
               link_error=task(app, "fail").s(reason="x")))
    record("canvas-chain", "a chain: the rest in reverse order",
           lambda app: chain(task(app, "add").s(1, 2), task(app, "mul").s(3),
                             task(app, "echo").si(4).set(priority=3, queue="slow"), app=app).delay())
    record("canvas-group", "a group of two",
           lambda app: group([task(app, "add").s(1, 2), task(app, "mul").s(3, 4)], app=app).delay())
    record("canvas-chord", "a chord: header tasks with the body in their embed",
           lambda app: chord([task(app, "add").s(i, i) for i in range(2)],
                             task(app, "xsum").s(), app=app).delay())
    record("canvas-nested", "a chain with a group upgraded to a chord, and a group as its last step",
           lambda app: chain(
               task(app, "add").s(1, 2),
               group([task(app, "mul").s(2), chain(task(app, "mul").s(3), task(app, "mul").s(4), app=app)], app=app),
               task(app, "xsum").s(),
               group([task(app, "echo").s(), task(app, "echo").s()], app=app), app=app).delay())
    record("canvas-starmap", "starmap with the inner signature in its keyword arguments",
           lambda app: task(app, "add").starmap([(1, 2), (3, 4)]).delay())
    record("canvas-chunks", "chunks: the client sends starmaps",
           lambda app: task(app, "add").chunks([(i, i) for i in range(4)], 2).delay())
    record("canvas-signature-argument", "a signature as an ordinary argument",
           lambda app: task(app, "echo").delay(task(app, "add").s(1, y=2)))
    record("canvas-chain-msgpack", "a chain whose messages are msgpack",
           lambda app: chain(task(app, "add").s(1, 2), task(app, "mul").s(3), app=app).apply_async(
               serializer="msgpack"))
    # There is no case in YAML: PyYAML's safe dumper rejects Celery's signature objects.


def amqp(recorder):
    record = recorder.amqp
    record("amqp-json", "over AMQP: headers as a table, the body without base64", send())
    record("amqp-msgpack", "over AMQP in msgpack", send(serializer="msgpack"))
    record("amqp-yaml", "over AMQP in YAML", send(serializer="yaml"))
    record("amqp-pickle", "over AMQP in pickle", send(serializer="pickle"))
    record("amqp-options", "over AMQP with every option of the header table",
           send(countdown=10, expires=60, time_limit=30, soft_time_limit=20.5, priority=5,
                headers={"trace_id": "abc", "ratio": 0.5, "big": 2**40}, compression="zlib"))
    record("amqp-v1", "over AMQP in protocol 1", send(), settings={"task_protocol": 1})
    record("amqp-link", "over AMQP with a link",
           lambda app: app.tasks["tasks.add"].apply_async((2, 3), link=app.tasks["tasks.mul"].s(2)))


def request(app, task_id, **more):
    fields = dict(id=task_id, task="tasks.add", args=[2, 3], kwargs={"z": None}, hostname="worker@host",
                  retries=1, delivery_info={"exchange": "", "routing_key": "celery"})
    return Context(dict(fields, **more))


def fails(app, task_id, exc, **more):
    text = "Traceback (most recent call last):\n  File \"tasks.py\", line 1, in fail\n"
    app.backend.mark_as_failure(task_id, exc, traceback=f"{text}{type(exc).__name__}: {exc}\n",
                                request=request(app, task_id, **more))


class DemoError(Exception):
    """An exception class of the application."""


DemoError.__module__ = "demo.errors"


def children(app, task_id):
    with pinned_ids("child"):
        child = app.tasks["tasks.add"].apply_async((1, 2))
        several = group([app.tasks["tasks.add"].s(i, i) for i in range(2)], app=app).apply_async()
    done(app, task_id, 5, _children=[child, several])


def done(app, task_id, value, **more):
    app.backend.mark_as_done(task_id, value, request=request(app, task_id, **more))


def results(recorder):
    record = recorder.document
    extended = {"result_extended": True}
    record("result-success", "a return value", lambda app, id: done(app, id, 5))
    record("result-none", "a task that returns nothing", lambda app, id: done(app, id, None))
    record("result-group-parent", "a member of a group that another task sent",
           lambda app, id: done(app, id, 5, group="g-1", parent_id="p-1"))
    record("result-extended", "result_extended", lambda app, id: done(app, id, 5, group="g-1", parent_id="p-1"),
           settings=extended)
    record("result-extended-stamps", "result_extended with stamps beside it",
           lambda app, id: done(app, id, 5, stamped_headers=["trace"], stamps={"trace": "abc"}),
           settings=extended)
    record("result-values", "extended types, big integers, non-ASCII in a result",
           lambda app, id: done(app, id, [TYPES, NUMBERS, TEXTS, 2**80]))
    record("result-nan", "NaN and infinity in a result",
           lambda app, id: done(app, id, [float("nan"), float("inf")]))
    record("result-children", "children: a task and a group", children)
    record("result-no-request", "stored without a request: children are null",
           lambda app, id: app.backend.store_result(id, 5, "SUCCESS"))
    record("result-failure", "a failure", lambda app, id: fails(app, id, ValueError("boom", 42)))
    record("result-failure-no-args", "an exception without arguments",
           lambda app, id: fails(app, id, SoftTimeLimitExceeded()))
    record("result-failure-custom", "an exception class of the application",
           lambda app, id: fails(app, id, DemoError({"code": 7}, "non-ASCII: é")))
    record("result-failure-unserializable", "an argument that cannot be serialized is replaced by its repr",
           lambda app, id: fails(app, id, ValueError(1, {1, }, "text")))
    record("result-failure-extended", "a failure with result_extended",
           lambda app, id: fails(app, id, ValueError("boom")), settings=extended)
    record("result-rejected", "a rejected task is a failure",
           lambda app, id: fails(app, id, Reject("no", requeue=False)))
    record("result-retry", "a pending retry: the cause of the retry",
           lambda app, id: app.backend.mark_as_retry(
               id, ValueError("not yet"), traceback="Traceback\n", request=request(app, id)))
    record("result-revoked", "revoked", lambda app, id: app.backend.mark_as_revoked(
        id, "terminated", request=request(app, id)))
    record("result-expired", "expired", lambda app, id: app.backend.mark_as_revoked(
        id, "expired", request=request(app, id)))
    record("result-started", "started", lambda app, id: app.backend.mark_as_started(
        id, pid=1, hostname="worker@host"))
    record("result-progress", "a custom state of the task",
           lambda app, id: app.backend.store_result(
               id, {"current": 1, "total": 3}, "PROGRESS", request=request(app, id)))
    record("result-group-saved", "the saved result of a group", saved_group)
    for serializer in ("msgpack", "yaml"):
        settings = {"result_serializer": serializer, "accept_content": [serializer]}
        record(f"result-{serializer}", f"a success in {serializer}",
               lambda app, id: done(app, id, [5, "é", b"\xff", None]), settings=settings)
        record(f"result-{serializer}-failure", f"a failure in {serializer}",
               lambda app, id: fails(app, id, ValueError("boom", 42)), settings=settings)
    for name in ("gzip", "bzip2", "lzma", "brotli", "zstd"):
        record(f"result-compressed-{name}", f"result_compression={name}",
               lambda app, id: done(app, id, ["text " * 100]), settings={"result_compression": name})


def saved_group(app, task_id):
    with pinned_ids("member"):
        result = group([app.tasks["tasks.add"].s(i, i) for i in range(2)], app=app).apply_async()
    result.save(backend=app.backend)


def other_producers(recorder):
    properties = {"correlationId": "id-1", "replyTo": "reply-1", "delivery_mode": 2, "priority": 0,
                  "delivery_info": {"exchange": "celery", "routing_key": "celery"},
                  "body_encoding": "base64", "delivery_tag": "tag-1"}
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    encode = lambda body: base64.b64encode(json.dumps(body).encode()).decode()
    node = {"body": encode([[2, 3], {}, embed]), "content-type": "application/json",
            "content-encoding": "utf-8", "headers": {"lang": "js", "task": "tasks.add", "id": "id-1"},
            "properties": properties}
    expect = expect_message(json.dumps(node))
    expect["properties"].update(correlation_id="id-1", reply_to="reply-1")
    recorder.by_hand("foreign-node", "three headers, camel-case properties",
                     "celery-node", json.dumps(node), expect)
    rust = {"body": encode([[2, 3], {}, embed]), "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"id": "id-1", "task": "tasks.add", "lang": "rust", "root_id": None,
                        "parent_id": None, "group": None, "meth": None, "shadow": None, "eta": None,
                        "expires": None, "retries": None, "timelimit": [None, None],
                        "argsrepr": None, "kwargsrepr": None, "origin": "gen1@host"},
            "properties": {"correlation_id": "id-1", "reply_to": None, "delivery_mode": 2,
                           "body_encoding": "base64", "delivery_tag": "tag-1"}}
    recorder.by_hand("foreign-rusty-celery", "no delivery_info, retries null",
                     "rusty-celery 0.5.5", json.dumps(rust))
    old = {"task": "tasks.add", "id": "id-1", "args": [2, 3], "kwargs": {}, "retries": 0,
           "eta": None, "taskset": "set-1", "utc": True}
    recorder.by_hand("foreign-v1-taskset", "protocol 1 of an old producer: a taskset and no group",
                     "Celery 3.1", json.dumps({
                         "body": encode(old), "content-type": "application/json",
                         "content-encoding": "utf-8", "headers": {},
                         "properties": {"correlation_id": "id-1", "delivery_mode": 2,
                                        "body_encoding": "base64", "delivery_tag": "tag-1",
                                        "delivery_info": {"exchange": "celery", "routing_key": "celery",
                                                          "priority": 0}}}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redis", required=True, metavar="URL", help="a database that may be flushed")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(given.redis, given.out)
    for record in (bodies, compressions, options, canvas, amqp, results, other_producers):
        record(recorder)
    recorder.remove_stale()
    print(f"{len(recorder.written)} fixtures written to {given.out}")


if __name__ == "__main__":
    # Stamp names are a Python set, whose order must be the same in every run.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], dict(os.environ, PYTHONHASHSEED="0"))
    main()
