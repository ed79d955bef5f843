"""A scenario that workers of both languages go through, and what is told and answered in it."""

import re

from fleet import *

# What may differ, and why. A path names a key of an answer or event; * is any one.
EXPECTED = {
    "answer.conf.*": "each language has its own settings; those of ours have Celery's names",
    "answer.conf with defaults.*": "as above",
    "answer.stats.pool.abandoned-threads": "Celery's threads cannot be left behind by a limit",
    "answer.stats.pool.writes.*": "how Celery's parent process shares tasks among its children",
    "said.disable_events {}.ok": "Celery cannot switch off what its option -E has switched on",
    "said.enable_events {} again.ok": "as above",
    "event.task-failed.traceback": "a task that rejects its message has raised nothing in Rust",
    "event.task-retried.traceback": "nor has one that asks to be retried",
    "kinds.<retried>": "in Celery the next attempt may be received before the retry is told",
}

# Those that are not seen every time.
RARE = {"kinds.<retried>"}


def anonymous(text, names):
    """The text without what differs from run to run."""
    for name, stand_in in names.items():
        text = text.replace(name, stand_in)
    return text


def perform(node):
    """Goes through the scenario with one worker; answers what was told and answered."""
    names, answers = {node.name: "<node>"}, {}

    def known(result, name):
        names[result.id] = f"<{name}>"
        return result

    def note(name, answer):
        answers[name] = json.loads(anonymous(json.dumps(answer), names))

    watch = Watch()
    # Not one that was asked for.
    until("a sign of life", lambda: [beat for beat in watch.of("worker-heartbeat")
                                     if "loadavg" in beat])
    # What can be asked at rest.
    for method in ("ping", "clock", "memsample", "active", "reserved", "scheduled", "revoked",
                   "stats", "active_queues", "registered", "conf", "report"):
        note(method, node.question(method))
    note("conf with defaults", node.question("conf", with_defaults=True))
    note("registered with items", [line for line in node.question("registered", "max_retries")
                                   if line.startswith("tasks.add")])
    note("hello", node.question("hello", "other@story", ["told-by-other"]))
    note("nothing found", node.question("query_task", "nobody"))

    # Orders without consequences.
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
        note(name, node.ask(method, **arguments))

    # Tasks that end by themselves, however they do.
    known(done := send("tasks.add", (1,), {"y": 2}), "done")
    known(failed := send("tasks.fail", ("no",)), "failed")
    known(retried := send("story.again", (1,)), "retried")
    known(expired := send("tasks.add", (1, 2), expires=-1), "expired")
    known(unknown := send("tasks.nosuch"), "unknown")
    known(refused := send("story.refuse", (False,)), "refused")
    known(delayed := send("tasks.add", (1, 2), countdown=0.5), "delayed")
    for kind, result in [
        ("task-succeeded", done), ("task-failed", failed), ("task-succeeded", retried),
        ("task-revoked", expired), ("task-failed", unknown), ("task-rejected", refused),
        ("task-succeeded", delayed),
    ]:
        watch.wait(kind, result)

    # Tasks that are ended.
    long = [known(send("tasks.sleep", (600,)), f"long {n}") for n in range(2)]
    node.until_ids("active", *long)
    known(held := send("tasks.add", (1,), {"y": 2}), "held")
    node.until_ids("reserved", held)
    known(later := send("tasks.add", (1,), {"y": 2}, countdown=3600), "later")
    node.until_ids("scheduled", later)
    for method in ("active", "reserved", "scheduled"):
        note(f"{method} with tasks", node.question(method))
    found = node.question("query_task", long[0].id, held.id, later.id)
    note("active found", found[long[0].id])
    note("reserved found", found[held.id])
    note("scheduled found", found[later.id])
    note("revoked while held", node.order("revoke", held.id))
    note("revoked while it waits", node.order("revoke", later.id))
    note("terminated", node.order("terminate", long[0].id))
    note("revoked by its end", node.order("revoke", long[1].id, terminate=True, signal="SIGKILL"))
    for result in (held, *long):
        watch.wait("task-revoked", result)
    note("all that is revoked", node.question("revoked"))
    note("totals", node.question("stats")["total"])
    app.control.shutdown(destination=[node.name])
    watch.wait("worker-offline")

    kinds = {name: watch.kinds(AsyncResult(id, app=app)) for id, name in names.items()
             if id != node.name}
    return {"answer": answers, "event": list(watch.events), "kinds": kinds}


def shape(value):
    """The keys and types of a value."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return {"#": shape(value[0])} if value else {}
    return type(value).__name__


def event_shapes(events):
    """By kind and key, all types that were seen."""
    shapes = {}
    for event in events:
        for key, value in event.items():
            shapes.setdefault(event["type"], {}).setdefault(key, set()).add(type(value).__name__)
    return {kind: {key: "|".join(sorted(types)) for key, types in keys.items()}
            for kind, keys in shapes.items()}


def differences(path, theirs, ours):
    """What one has and the other has not, or has otherwise."""
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
            # What is said is compared word for word.
            found += differences(f"said.{name}", *pair)
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
    assert not missing, f"no such difference any more: {missing}"
