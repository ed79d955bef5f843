"""A sequence of commands and tasks for a worker of either language, and the comparison of the replies and events."""

import re

from workers import *

# Accepted differences with their reasons. A path names a key of a reply or event; * matches any key.
EXPECTED = {
    "answer.conf.*": "each language has settings of its own; the Rust settings have Celery's names",
    "answer.conf with defaults.*": "as above",
    "answer.stats.pool.abandoned-threads": "only Rust threads can be abandoned by a time limit",
    "answer.stats.pool.writes.*": "Celery's parent process reports how it distributes tasks to its children",
    "reply.disable_events {}.ok": "Celery cannot switch off what its option -E has switched on",
    "reply.enable_events {} again.ok": "as above",
    "event.task-failed.traceback": "a task that rejects its message has raised nothing in Rust",
    "event.task-retried.traceback": "nor has one that asks to be retried",
    "kinds.<retried>": "in Celery the next attempt may be received before the retry event is sent",
}

# Differences that do not occur in every run.
RARE = {"kinds.<retried>"}


def anonymous(text, names):
    """Replaces the names and ids that differ from run to run."""
    for name, stand_in in names.items():
        text = text.replace(name, stand_in)
    return text


def perform(node):
    """Runs the sequence with one worker and returns its replies and events."""
    names, answers = {node.name: "<node>"}, {}

    def known(result, name):
        names[result.id] = f"<{name}>"
        return result

    def note(name, answer):
        answers[name] = json.loads(anonymous(json.dumps(answer), names))

    monitor = EventMonitor()
    # A periodic heartbeat has the load average; one on request has not.
    until("a periodic heartbeat", lambda: [beat for beat in monitor.of("worker-heartbeat")
                                     if "loadavg" in beat])
    # Inspect methods of an idle worker.
    for method in ("ping", "clock", "memsample", "active", "reserved", "scheduled", "revoked",
                   "stats", "active_queues", "registered", "conf", "report"):
        note(method, node.inspect(method))
    note("conf with defaults", node.inspect("conf", with_defaults=True))
    note("registered with items", [line for line in node.inspect("registered", "max_retries")
                                   if line.startswith("tasks.add")])
    note("hello", node.inspect("hello", "other@test", ["revoked-by-other"]))
    note("nothing found", node.inspect("query_task", "unknown"))

    # Commands without effects on tasks.
    for method, arguments in [
        ("nosuch", {}),
        ("rate_limit", {"task_name": "tasks.add", "rate_limit": "100/s"}),
        ("rate_limit", {"task_name": "tasks.add", "rate_limit": 0}),
        ("rate_limit", {"task_name": "tasks.nosuch", "rate_limit": "1/s"}),
        ("rate_limit", {"task_name": "tasks.add", "rate_limit": "abc"}),
        ("time_limit", {"task_name": "tasks.echo", "hard": 60, "soft": 50}),
        ("time_limit", {"task_name": "tasks.nosuch", "hard": 60}),
        ("add_consumer", {"queue": "more"}),
        ("active_queues", {}),
        ("cancel_consumer", {"queue": "more"}),
        ("pool_grow", {"n": 1}),
        ("pool_shrink", {"n": 1}),
        ("pool_restart", {}),
        ("autoscale", {"max": 3, "min": 1}),
        ("enable_events", {}),
        ("disable_events", {}),
        ("disable_events", {}),
        ("enable_events", {}),
        ("heartbeat", {}),
        ("revoke", {"task_id": "unseen"}),
        ("revoke", {"task_id": []}),
        ("terminate", {"task_id": "unseen", "signal": "SIGTERM"}),
        ("revoke_by_stamped_headers", {"headers": {"color": ["red"]}}),
    ]:
        name = f"{method} {json.dumps(arguments)}"
        while name in answers:
            name += " again"
        note(name, node.command(method, **arguments))

    # Tasks that end on their own, in every final state.
    known(done := send("tasks.add", (1,), {"y": 2}), "done")
    known(failed := send("tasks.fail", ("no",)), "failed")
    known(retried := send("test.retry", (1,)), "retried")
    known(expired := send("tasks.add", (1, 2), expires=-1), "expired")
    known(unknown := send("tasks.nosuch"), "unknown")
    known(refused := send("test.reject", (False,)), "refused")
    known(delayed := send("tasks.add", (1, 2), countdown=0.5), "delayed")
    for kind, result in [
        ("task-succeeded", done), ("task-failed", failed), ("task-succeeded", retried),
        ("task-revoked", expired), ("task-failed", unknown), ("task-rejected", refused),
        ("task-succeeded", delayed),
    ]:
        monitor.wait(kind, result)

    # Tasks that are revoked.
    long = [known(send("tasks.sleep", (600,)), f"long {n}") for n in range(2)]
    node.wait_for_ids("active", *long)
    known(reserved := send("tasks.add", (1,), {"y": 2}), "reserved")
    node.wait_for_ids("reserved", reserved)
    known(later := send("tasks.add", (1,), {"y": 2}, countdown=3600), "later")
    node.wait_for_ids("scheduled", later)
    for method in ("active", "reserved", "scheduled"):
        note(f"{method} with tasks", node.inspect(method))
    found = node.inspect("query_task", long[0].id, reserved.id, later.id)
    note("active found", found[long[0].id])
    note("reserved found", found[reserved.id])
    note("scheduled found", found[later.id])
    note("revoked while reserved", node.control("revoke", reserved.id))
    note("revoked while it waits", node.control("revoke", later.id))
    note("terminated", node.control("terminate", long[0].id))
    note("revoked by its end", node.control("revoke", long[1].id, terminate=True, signal="SIGKILL"))
    for result in (reserved, *long):
        monitor.wait("task-revoked", result)
    note("all that is revoked", node.inspect("revoked"))
    note("totals", node.inspect("stats")["total"])
    app.control.shutdown(destination=[node.name])
    monitor.wait("worker-offline")

    kinds = {name: monitor.kinds(AsyncResult(id, app=app)) for id, name in names.items()
             if id != node.name}
    return {"answer": answers, "event": list(monitor.events), "kinds": kinds}


def shape(value):
    """Reduces a value to its keys and types."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return {"#": shape(value[0])} if value else {}
    return type(value).__name__


def event_shapes(events):
    """Returns, by event type and key, the types of all values seen."""
    shapes = {}
    for event in events:
        for key, value in event.items():
            shapes.setdefault(event["type"], {}).setdefault(key, set()).add(type(value).__name__)
    return {kind: {key: "|".join(sorted(types)) for key, types in keys.items()}
            for kind, keys in shapes.items()}


def differences(path, theirs, ours):
    """Yields each path at which the two differ, with both values."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from differences(f"{path}.{key}", theirs.get(key, "nothing"),
                                   ours.get(key, "nothing"))
    elif theirs != ours:
        yield path, theirs, ours


def compare(theirs, ours, expected=EXPECTED):
    found = []
    for name in sorted({*theirs["answer"], *ours["answer"]}):
        pair = [side["answer"].get(name, "nothing") for side in (theirs, ours)]
        if all(isinstance(one, dict) and set(one) <= {"ok", "error"} for one in pair) \
                and name != "report":
            # Replies of commands are compared word for word.
            found += differences(f"reply.{name}", *pair)
        else:
            found += differences(f"answer.{name}", *map(shape, pair))
    found += differences("event", *(event_shapes(side["event"]) for side in (theirs, ours)))
    found += differences("kinds", *(
        {name: " ".join(kinds) for name, kinds in side["kinds"].items()} for side in (theirs, ours)))

    def why(path):
        for pattern, reason in expected.items():
            if re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), path):
                return pattern
    unexpected, used = [], set()
    for path, their, our in found:
        used.add(why(path))
        if why(path) is None:
            unexpected.append(f"{path}: Python has {their}, Rust has {our}")
    print("\n".join(f"{path}: Python has {their}, Rust has {our}" for path, their, our in found))
    assert not unexpected, "\n" + "\n".join(unexpected)
    missing = set(expected) - used - RARE
    assert not missing, f"these accepted differences no longer occur: {missing}"
