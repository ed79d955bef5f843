//! Remote control: what Celery's own tools ask of our workers, and tell them.

use std::time::Duration;

use celery::{Tasks, Value, Worker};

use crate::support::{Running, Setup, WorkerProcess, stories, story};

stories! {
    every_question_is_answered: redis, rabbitmq;
    the_celery_command_sees_and_steers: redis, rabbitmq;
    commands_are_for_those_whom_they_name: redis, rabbitmq;
    what_cannot_be_done_is_said: redis, rabbitmq;
    revoked_tasks_do_not_run: redis, rabbitmq;
    running_tasks_are_ended: redis, rabbitmq;
    tasks_are_revoked_by_their_stamps: redis, rabbitmq;
    limits_are_set: redis, rabbitmq;
    queues_come_and_go: redis, rabbitmq;
    the_pool_grows_and_shrinks: redis, rabbitmq;
    the_pool_follows_the_work: redis, rabbitmq;
    events_are_switched_on_and_off: redis, rabbitmq;
    events_of_many_tasks_arrive_all_and_in_order: redis, rabbitmq;
    one_of_those_who_stand_for_election_is_elected: redis, rabbitmq;
    the_fleet_is_shut_down: redis, rabbitmq;
}

/// A worker that watchers hear at once.
fn watched(setup: &Setup, name: &str, tasks: Tasks) -> Worker {
    let worker = setup.app().worker(tasks).hostname(name).concurrency(1);
    worker.heartbeat(Some(Duration::from_millis(100)))
}

async fn start(setup: &Setup, name: &str) -> Running {
    Running::start(watched(setup, name, story()).task_events(true)).await
}

/// A program that knows the worker `rust@story` as `node`.
async fn steer(setup: &Setup, program: &str) -> String {
    let code = format!("from fleet import *\nnode = Node('rust@story')\n{program}");
    setup.python(code).await
}

async fn every_question_is_answered(setup: Setup) {
    let worker = start(&setup, "rust@story").await;
    let program = r#"
same(node.question("ping"), {"ok": "pong"})
same(node.question("active"), [])
same(node.question("reserved"), [])
same(node.question("scheduled"), [])
same(node.question("revoked"), [])

running = send("story.wait")
state_is(running, "PROGRESS")
held = send("tasks.add", (1, 2))
later = send("tasks.sub", (1,), {"y": 2}, countdown=3600, shadow="shade")
node.until_ids("active", running)
node.until_ids("reserved", held)
node.until_ids("scheduled", later)

[task] = node.question("active")
started, pid = task.pop("time_start"), task.pop("worker_pid")
assert abs(time.time() - started) < 60 and pid > 0, (started, pid)
where = {"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False}
same(task, {
    "id": running.id, "name": "story.wait", "args": [], "kwargs": {}, "type": "story.wait",
    "hostname": "rust@story", "acknowledged": True, "delivery_info": where,
})
[task] = node.question("reserved")
same(task, {
    "id": held.id, "name": "tasks.add", "args": [1, 2], "kwargs": {}, "type": "tasks.add",
    "hostname": "rust@story", "time_start": None, "acknowledged": False, "delivery_info": where,
    "worker_pid": None,
})
[task] = node.question("scheduled")
due = datetime.datetime.fromisoformat(task["eta"])
assert abs(due.timestamp() - time.time() - 3600) < 60, task
same((task["request"]["name"], task["request"]["type"]), ("shade", "tasks.sub"))
same((task["request"]["args"], task["request"]["kwargs"]), ([1], {"y": 2}))

found = node.question("query_task", running.id, held.id, later.id, "nobody")
same({id: state for id, (state, request) in found.items()},
     {running.id: "active", held.id: "reserved", later.id: "scheduled"})
for id, (state, request) in found.items():
    same(request["id"], id)

stats = node.question("stats")
same(stats["total"], {"story.wait": 1})
same((stats["pid"], stats["pool"]["processes"]), (pid, [pid]))
assert int(stats["clock"]) > 0 and stats["uptime"] >= 0, stats
same((stats["pool"]["max-concurrency"], stats["prefetch_count"]), (1, 4))
assert stats["rusage"]["maxrss"] > 0 and stats["broker"]["port"] > 0, stats

names = node.question("registered")
assert "tasks.add" in names and "story.wait" in names and names == sorted(names), names
assert "tasks.add [max_retries=3]" in node.question("registered", "max_retries")
assert not [name for name in names if name.startswith("celery.")], names

conf = node.question("conf")
assert conf["worker_send_task_events"] is True and conf["task_default_queue"] == "celery", conf
password = app.connection_for_read().password
assert not password or f":{password}@" not in json.dumps(conf), conf
assert "software -> " in node.question("report")["ok"]

[queue] = node.question("active_queues")
same((queue["name"], queue["exchange"]["name"], queue["exchange"]["type"]),
     ("celery", "celery", "direct"))
before, after = node.question("clock")["clock"], node.question("clock")["clock"]
assert after > before, (before, after)
same(node.question("memsample"), None)
assert isinstance(node.question("memdump"), str)

# Who says hello tells what it knows, and hears what is known here.
hello = node.question("hello", "other@story", ["told-by-other"])
same(hello["revoked"], ["told-by-other"])
assert hello["clock"] > after, hello
same(node.question("hello", "older@story", {"told-by-older": 1.5})["revoked"],
     ["told-by-other", "told-by-older"])
same(node.question("hello", "rust@story", []), None)
same(node.question("revoked"), ["told-by-other", "told-by-older"])

# The one that opens is behind the one that waits.
node.order("pool_grow", 1)
send("story.open")
same(get(running), "opened")
same(get(held), 3)
until("they are forgotten", lambda: not node.question("query_task", running.id, held.id))
app.control.revoke(later.id)
"#;
    steer(&setup, program).await;
    worker.stop().await;
}

async fn the_celery_command_sees_and_steers(setup: Setup) {
    let worker = WorkerProcess::start(&setup, &[("CELERY_WORKER_HOSTNAME", "rust@story")]).await;
    let program = r#"
def said(*arguments):
    """The one answer to `celery inspect` or `control`."""
    answer = json.loads(celery(arguments[0], "--json", "-t", "5", "-d", node.name, *arguments[1:]))
    if arguments[0] == "control":
        [answer] = answer
    same(list(answer), [node.name])
    return answer[node.name]

assert f"{node.name}: OK" in celery("status", "-t", "5", "-d", node.name)
assert "1 node online" in celery("inspect", "-t", "5", "-d", node.name, "ping")
long = send("tasks.sleep", (600,))
node.until_ids("active", long)
same([task["id"] for task in said("inspect", "active")], [long.id])
same(list(said("inspect", "query_task", long.id)), [long.id])
same(said("inspect", "stats")["total"], {"tasks.sleep": 1})
assert "tasks.add" in said("inspect", "registered")
same([queue["name"] for queue in said("inspect", "active_queues")], ["celery"])
assert "transport:" in celery("inspect", "-t", "5", "-d", node.name, "report")

same(said("control", "rate_limit", "tasks.add", "10/m"), {"ok": "new rate limit set successfully"})
assert "tasks.add [rate_limit=10/m]" in said("inspect", "registered", "rate_limit")
same(said("control", "pool_grow", "2"), {"ok": "pool will grow"})
same(said("control", "add_consumer", "other"), {"ok": "add consumer other"})
same(get(send("tasks.sub", (3, 2), queue="other")), 1)
same(said("control", "enable_events"), {"ok": "task events enabled"})
same(said("control", "terminate", "SIGKILL", long.id), {"ok": f"terminate: {long.id}"})
state_is(long, "REVOKED")
same(said("inspect", "revoked"), [long.id])
celery("control", "-t", "1", "-d", node.name, "shutdown", code=69)
"#;
    steer(&setup, program).await;
    assert_eq!(worker.ended().await, Some(0));
    setup.assert_nothing_left().await;
}

async fn commands_are_for_those_whom_they_name(setup: Setup) {
    let one = start(&setup, "one@a").await;
    let two = start(&setup, "two@a.b").await;
    let program = r#"
from fleet import *

def heard(count, **whom):
    replies = app.control.broadcast("ping", reply=True, timeout=PATIENCE, limit=count, **whom)
    # Somebody too many would answer as fast.
    same([*ping(0.5, **whom)], sorted(name for reply in replies for name in reply))
    return sorted(name for reply in replies for name in reply)

def ping(timeout, **whom):
    replies = app.control.broadcast("ping", reply=True, timeout=timeout, **whom)
    return sorted(name for reply in replies for name in reply)

both = ["one@a", "two@a.b"]
same(heard(2), both)
same(heard(1, destination=["one@a"]), ["one@a"])
same(heard(2, destination=["two@a.b", "one@a", "three@a"]), both)
same(heard(1, pattern="o*", matcher="glob"), ["one@a"])
same(heard(2, pattern="[ot]*@a*", matcher="glob"), both)
same(heard(1, pattern="???@?.b", matcher="glob"), ["two@a.b"])
same(heard(1, pattern="[!o]*", matcher="glob"), ["two@a.b"])
same(heard(1, pattern=r"^t\w+@", matcher="pcre"), ["two@a.b"])
same(heard(2, pattern=r"(one|two)", matcher="pcre"), both)
for pattern, matcher in [("one", "glob"), ("wo", "pcre"), ("ONE*", "glob"), ("(", "pcre")]:
    same(ping(0.5, pattern=pattern, matcher=matcher), [])
same(heard(2), both)
"#;
    setup.python(program).await;
    one.stop().await;
    two.stop().await;
}

async fn what_cannot_be_done_is_said(setup: Setup) {
    let worker = watched(&setup, "rust@story", story()).command("double", |arguments| {
        let number = arguments.get("number").and_then(Value::as_i64);
        let number = number.ok_or("TypeError('a number is needed')")?;
        Ok(Value::from(number * 2))
    });
    let worker = Running::start(worker).await;
    let program = r#"
same(node.ask("nosuch"), {"error": "KeyError('nosuch')"})
same(node.ask(""), {"error": "KeyError('')"})
same(node.ask("it's"), {"error": "KeyError(\"it's\")"})
same(node.ask("Ping"), {"error": "KeyError('Ping')"})
same(node.ask("double", number=21), 42)
same(node.ask("double", number="x"), {"error": "TypeError('a number is needed')"})

def refused(method, **arguments):
    answer = node.ask(method, **arguments)
    assert list(answer) == ["error"] and isinstance(answer["error"], str), (method, answer)
    return answer["error"]

same(refused("rate_limit", task_name="nosuch", rate_limit="1/s"), "unknown task")
same(refused("rate_limit", task_name="tasks.add", rate_limit="abc"),
     "Invalid rate limit string: ValueError(\"could not convert string to float: 'abc'\")")
same(refused("time_limit", task_name="nosuch", hard=1), "unknown task")
same(refused("pool_restart"), "ValueError('Pool restarts not enabled')")
same(refused("autoscale", max=3, min=1), "ValueError('Autoscale not enabled')")
for method, arguments in [
    ("revoke", {}), ("revoke", {"task_id": None}), ("revoke", {"task_id": 5}),
    ("revoke", {"task_id": {}}), ("terminate", {}),
    ("terminate", {"task_id": "a", "signal": "SIGNONE"}),
    ("revoke", {"task_id": "a", "terminate": True, "signal": -1}),
    ("revoke_by_stamped_headers", {}), ("revoke_by_stamped_headers", {"headers": 1}),
    ("rate_limit", {}), ("rate_limit", {"task_name": "tasks.add", "rate_limit": [1]}),
    ("rate_limit", {"task_name": "tasks.add", "rate_limit": "1/y"}),
    ("time_limit", {}), ("time_limit", {"task_name": "tasks.add", "hard": "long"}),
    ("time_limit", {"task_name": "tasks.add", "soft": -1}),
    ("add_consumer", {}), ("add_consumer", {"queue": 5}), ("cancel_consumer", {}),
    ("add_consumer", {"queue": "q", "exchange": "e", "exchange_type": "odd"}),
    ("pool_grow", {"n": "many"}), ("pool_grow", {"n": -1}), ("pool_grow", {"n": 1e300}),
    ("pool_shrink", {"n": 1}), ("pool_shrink", {"n": 0.5}),
]:
    refused(method, **arguments)
# None of it has had an effect.
same(node.question("revoked"), [])
same([queue["name"] for queue in node.question("active_queues")], ["celery"])
same(len(node.question("stats")["pool"]["processes"]), 1)
assert "tasks.add" in node.question("registered", "rate_limit")
same(get(send("tasks.add", (1, 2))), 3)
"#;
    steer(&setup, program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn revoked_tasks_do_not_run(setup: Setup) {
    let worker = watched(&setup, "rust@story", story()).task_events(true);
    // What is not due is seen behind all that is held.
    let worker = Running::start(worker.prefetch_multiplier(10)).await;
    let program = r#"
watch = Watch()
blocker = send("story.wait")
state_is(blocker, "PROGRESS")
held = [send("tasks.add", (n, n)) for n in range(3)]
later = send("tasks.add", (1, 2), countdown=2)
node.until_ids("reserved", *held)
node.until_ids("scheduled", later)
unseen = AsyncResult(str(uuid.uuid4()), app=app)
answer = node.order("revoke", [held[0].id, held[2].id])
assert answer["ok"] in (f"tasks {{'{held[0].id}', '{held[2].id}'}} flagged as revoked",
                        f"tasks {{'{held[2].id}', '{held[0].id}'}} flagged as revoked"), answer
same(node.order("revoke", later.id), {"ok": f"tasks {{'{later.id}'}} flagged as revoked"})
node.order("revoke", unseen.id)
# One that runs goes on.
node.order("revoke", blocker.id)
for result in (held[0], held[2], later, unseen):
    # Also of those that nobody has come to yet.
    error = failure(result)
    assert isinstance(error, TaskRevokedError) and str(error) == "revoked", repr(error)
send("tasks.echo", task_id=unseen.id)
for result in (held[0], held[2]):
    same(watch.wait("task-revoked", result)["terminated"], False)
    same(watch.kinds(result), ["task-received", "task-revoked"])
for result in (later, ):
    event = watch.wait("task-revoked", result)
    same((event["terminated"], event["signum"], event["expired"]), (False, None, False))
    same(watch.kinds(result), ["task-received", "task-revoked"])
node.order("pool_grow", 1)
send("story.open")
same(get(blocker), "opened")
same(get(held[1]), 2)
watch.wait("task-revoked", unseen)
same(watch.kinds(unseen), ["task-revoked"])
same(set(node.question("revoked")),
     {held[0].id, held[2].id, later.id, unseen.id, blocker.id})
same(node.question("stats")["total"], {"story.wait": 1, "story.open": 1, "tasks.add": 1})
"#;
    steer(&setup, program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn running_tasks_are_ended(setup: Setup) {
    let worker = watched(&setup, "rust@story", story()).task_events(true);
    let worker = Running::start(worker.concurrency(3)).await;
    let program = r#"
watch = Watch()
long = [send("tasks.sleep", (600,)) for _ in range(3)]
node.until_ids("active", *long)
same(node.order("terminate", long[0].id), {"ok": f"terminate: {long[0].id}"})
same(node.order("revoke", long[1].id, terminate=True, signal="SIGKILL"),
     {"ok": f"terminate: {long[1].id}"})
same(node.order("terminate", "nobody"), {"ok": "terminate: tasks unknown"})
for result, signum in ((long[0], 15), (long[1], 9)):
    error = failure(result)
    assert isinstance(error, TaskRevokedError) and str(error) == "terminated", repr(error)
    same(result.state, "REVOKED")
    event = watch.wait("task-revoked", result)
    same((event["terminated"], event["signum"], event["expired"]), (True, signum, False))
    same(watch.kinds(result), ["task-received", "task-started", "task-revoked"])
node.until_ids("active", long[2])
# Their slots are free.
same([get(send("tasks.add", (n, n))) for n in range(4)], [0, 2, 4, 6])
AsyncResult(long[2].id, app=app).revoke(terminate=True)
assert isinstance(failure(long[2]), TaskRevokedError)
"#;
    steer(&setup, program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn tasks_are_revoked_by_their_stamps(setup: Setup) {
    let worker = start(&setup, "rust@story").await;
    let program = r#"
def stamped(name, args=(), **options):
    return app.signature(name, args).stamp(**options).apply_async()

watch = Watch()
running = stamped("tasks.sleep", (600,), monitoring_id="m-1", stamped_headers=["monitoring_id"])
node.until_ids("active", running)
held = stamped("tasks.add", (1, 2), monitoring_id=["m-2", "m-3"], stamped_headers=["monitoring_id"])
spared = stamped("tasks.add", (3, 4), monitoring_id="m-9", stamped_headers=["monitoring_id"])
node.until_ids("reserved", held, spared)
answer = node.order("revoke_by_stamped_headers", {"monitoring_id": ["m-3", "m-4"]})
assert "flagged as revoked, but not terminated" in answer["ok"], answer
answer = node.order("revoke_by_stamped_headers", {"monitoring_id": "m-1"}, terminate=True)
assert "revoked" in answer["ok"], answer
assert isinstance(failure(running), TaskRevokedError)
same(watch.wait("task-revoked", running)["terminated"], True)
assert isinstance(failure(held), TaskRevokedError)
same(get(spared), 7)
answer = node.ask("revoke_by_stamped_headers", headers=["color=red"])
assert "flagged as revoked" in answer["ok"], answer
assert isinstance(failure(stamped("tasks.add", (1, 2), color="red", stamped_headers=["color"])),
                  TaskRevokedError)
same(get(stamped("tasks.add", (1, 2), color="blue", stamped_headers=["color"])), 3)
"#;
    steer(&setup, program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn limits_are_set(setup: Setup) {
    let worker = start(&setup, "rust@story").await;
    let program = r#"
same(node.order("rate_limit", "tasks.add", "5/s"), {"ok": "new rate limit set successfully"})
assert "tasks.add [rate_limit=5/s]" in node.question("registered")
begun = time.monotonic()
for n, result in enumerate([send("tasks.add", (n, 1)) for n in range(6)]):
    same(get(result), n + 1)
took = time.monotonic() - begun
assert took > 0.95, took
same(node.order("rate_limit", "tasks.add", 0), {"ok": "rate limit disabled successfully"})
assert "tasks.add" in node.question("registered")
begun = time.monotonic()
for result in [send("tasks.add", (n, 1)) for n in range(30)]:
    get(result)
assert time.monotonic() - begun < 5

same(node.order("time_limit", "tasks.sleep", soft=0.2, hard=60),
     {"ok": "time limits set successfully"})
same(type(failure(send("tasks.sleep", (600,)))).__name__, "SoftTimeLimitExceeded")
same(node.order("time_limit", "tasks.sleep", hard=0.2), {"ok": "time limits set successfully"})
same(type(failure(send("tasks.sleep", (600,)))).__name__, "TimeLimitExceeded")
same(node.order("time_limit", "tasks.sleep"), {"ok": "time limits set successfully"})
same(get(send("tasks.sleep", (0.4,))), 0.4)
"#;
    steer(&setup, program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn queues_come_and_go(setup: Setup) {
    let worker = start(&setup, "rust@story").await;
    let program = r#"
def queues():
    return [queue["name"] for queue in node.question("active_queues")]

# The worker has something in hand all the time.
running = send("story.wait")
state_is(running, "PROGRESS")
node.order("pool_grow", 1)
waiting = send("tasks.add", (1, 2), queue="more")
same(node.order("add_consumer", "more"), {"ok": "add consumer more"})
same(node.order("add_consumer", "more"), {"ok": "add consumer more"})
same(queues(), ["celery", "more"])
same(get(waiting), 3)
same(get(send("tasks.add", (3, 4), queue="more")), 7)
same(get(send("tasks.add", (5, 6))), 11)
same(node.order("cancel_consumer", "more"), {"ok": "no longer consuming from more"})
same(node.order("cancel_consumer", "more"), {"ok": "no longer consuming from more"})
same(queues(), ["celery"])
left = [send("tasks.add", (n, n), queue="more") for n in range(3)]
same(get(send("tasks.add", (5, 6))), 11)
same([result.state for result in left], ["PENDING"] * 3)
node.order("add_consumer", "more")
same([get(result) for result in left], [0, 2, 4])

answer = node.order("add_consumer", "bound", exchange="events", exchange_type="topic",
                    routing_key="a.#")
same(answer, {"ok": "add consumer bound"})
found = [queue for queue in node.question("active_queues") if queue["name"] == "bound"]
same([(queue["exchange"]["name"], queue["exchange"]["type"], queue["routing_key"])
      for queue in found], [("events", "topic", "a.#")])

# With no queue left it waits, and goes on when there is one.
for queue in ("celery", "more", "bound"):
    node.order("cancel_consumer", queue)
same(queues(), [])
left = send("tasks.add", (1, 1))
node.order("add_consumer", "celery")
same(get(left), 2)
send("story.open")
same(get(running), "opened")
"#;
    steer(&setup, program).await;
    worker.stop().await;
    setup.assert_nothing_held().await;
}

async fn the_pool_grows_and_shrinks(setup: Setup) {
    let worker = start(&setup, "rust@story").await;
    let program = r#"
def size():
    return len(node.question("stats")["pool"]["processes"])

long = [send("tasks.sleep", (600,)) for _ in range(3)]
until("one runs", lambda: len(node.question("active")) == 1)
same(node.order("pool_grow", 2), {"ok": "pool will grow"})
same(size(), 3)
node.until_ids("active", *long)
same(node.question("stats")["prefetch_count"], 12)
same(node.order("pool_shrink", 1), {"ok": "pool will shrink"})
same(size(), 2)
# Those that run go on.
node.until_ids("active", *long)
held = send("tasks.add", (1, 2))
node.until_ids("reserved", held)
node.order("terminate", long[0].id)
node.until_ids("active", *long[1:])
node.until_ids("reserved", held)
node.order("terminate", long[1].id)
same(get(held), 3)
node.order("terminate", long[2].id)
"#;
    steer(&setup, program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn the_pool_follows_the_work(setup: Setup) {
    let worker = watched(&setup, "rust@story", story()).autoscale(1..=4);
    let worker = Running::start(worker).await;
    let program = r#"
def size():
    return len(node.question("stats")["pool"]["processes"])

same(size(), 1)
long = [send("tasks.sleep", (600,)) for _ in range(6)]
until("four run", lambda: len(node.question("active")) == 4)
scale = node.question("stats")["autoscaler"]
same((scale["max"], scale["min"], scale["current"]), (4, 1, 4))
assert "error" in node.order("pool_grow", 1)
same(node.order("autoscale", 5, 2), {"ok": "autoscale now max=5 min=2"})
until("five run", lambda: len(node.question("active")) == 5)
for result in long:
    node.order("revoke", result.id, terminate=True)
until("two are left", lambda: size() == 2)
"#;
    steer(&setup, program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn events_are_switched_on_and_off(setup: Setup) {
    let worker = Running::start(watched(&setup, "rust@story", story())).await;
    let program = r#"
watch = Watch()
beat = watch.wait("worker-heartbeat")
# The one that was asked for has less to say.
beat = until("a regular one", lambda: [beat for beat in watch.of("worker-heartbeat")
                                       if "loadavg" in beat])[0]
same((beat["hostname"], beat["freq"], beat["active"]), ("rust@story", 0.1, 0))
same(len(beat["loadavg"]), 3)
assert beat["sw_ident"] and beat["sw_ver"] and beat["sw_sys"] and beat["pid"] > 0, beat

silent = send("tasks.add", (1, 2))
same(get(silent), 3)
same(node.order("disable_events"), {"ok": "task events already disabled"})
same(node.order("enable_events"), {"ok": "task events enabled"})
same(node.order("enable_events"), {"ok": "task events already enabled"})

told = send("tasks.add", (1,), {"y": 2})
same(get(told), 3)
watch.wait("task-succeeded", told)
same(watch.kinds(told), ["task-received", "task-started", "task-succeeded"])
[received] = watch.of("task-received", told)
same({name: received[name] for name in
      ("name", "args", "kwargs", "root_id", "parent_id", "retries", "eta", "expires")},
     {"name": "tasks.add", "args": "(1,)", "kwargs": "{'y': 2}", "root_id": told.id,
      "parent_id": None, "retries": 0, "eta": None, "expires": None})
[succeeded] = watch.of("task-succeeded", told)
same(succeeded["result"], "3")
assert 0 <= succeeded["runtime"] < 10, succeeded

failed = send("tasks.fail", ("no",))
failure(failed)
event = watch.wait("task-failed", failed)
same(event["exception"], "ValueError('no')")
assert "ValueError" in event["traceback"], event
retried = send("tasks.retry", (1,))
same(get(retried), 1)
event = watch.wait("task-retried", retried)
assert {"exception", "traceback"} <= set(event), event
watch.wait("task-succeeded", retried)
unknown = send("tasks.nosuch")
event = watch.wait("task-failed", unknown)
same(event["exception"], "NotRegistered('tasks.nosuch')")
expired = send("tasks.add", (1, 2), expires=-1)
same(watch.wait("task-revoked", expired)["expired"], True)
state = app.events.State()
for event in watch.events:
    state.event(event)
same({state.tasks[result.id].state for result in (told, retried)}, {"SUCCESS"})
same(state.tasks[failed.id].state, "FAILURE")
assert state.workers["rust@story"].alive

same(node.order("disable_events"), {"ok": "task events disabled"})
same(get(send("tasks.add", (1, 2), task_id="late")), 3)
same(node.ask("heartbeat"), None)
until("the asked-for heartbeat", lambda: [beat for beat in watch.of("worker-heartbeat")
                                          if beat["freq"] == 5])
same(watch.kinds(silent), [])
same(watch.kinds(AsyncResult("late", app=app)), [])
"#;
    steer(&setup, program).await;
    worker.stop().await;
}

async fn events_of_many_tasks_arrive_all_and_in_order(setup: Setup) {
    let worker = watched(&setup, "rust@story", story()).task_events(true);
    let worker = Running::start(worker.concurrency(100)).await;
    let program = r#"
# RabbitMQ drops what a slow reader has not read for 5 s.
app.conf.event_queue_ttl = 60
watch = Watch()
sent = [send("tasks.add", (n, n), ignore_result=True) for n in range(3000)]
until("all are told of", lambda: watch.counts["task-succeeded"] == 3000)
told = {}
for event in list(watch.events):
    if "uuid" in event:
        told.setdefault(event["uuid"], []).append(event["type"])
same(set(told), {result.id for result in sent})
for kinds in told.values():
    same(kinds, ["task-received", "task-started", "task-succeeded"])
"#;
    steer(&setup, program).await;
    worker.stop().await;
}

async fn one_of_those_who_stand_for_election_is_elected(setup: Setup) {
    let one = start(&setup, "one@story").await;
    let two = start(&setup, "two@story").await;
    let program = r#"
from fleet import *
watch = Watch()
for n in range(3):
    action = tasks.add.si(n, n).set(task_id=f"elected-{n}")
    app.control.election(f"election-{n}", "task", action)
    same(AsyncResult(f"elected-{n}", app=app).get(timeout=PATIENCE), 2 * n)
    until("all agree", lambda: len([ack for ack in watch.of("worker-elect-ack")
                                    if ack["id"] == f"election-{n}"]) == 4)
    same(sorted(event["hostname"] for event in watch.of("worker-elect")
                if event["id"] == f"election-{n}"), ["one@story", "two@story"])
# What was sent twice would run twice, before this.
for _ in range(10):
    call("tasks.add", 1, 1)
for n in range(3):
    same(len(watch.of("task-started", AsyncResult(f"elected-{n}", app=app))), 1)
"#;
    setup.python(program).await;
    one.stop().await;
    two.stop().await;
    setup.assert_nothing_left().await;
}

async fn the_fleet_is_shut_down(setup: Setup) {
    let settings = [("CELERY_WORKER_CONCURRENCY", "2")];
    let worker = WorkerProcess::start(&setup, &settings).await;
    let other = WorkerProcess::start(&setup, &[("CELERY_WORKER_HOSTNAME", "other@b")]).await;
    let program = r#"
from fleet import *
watch = Watch()
[name] = [name for reply in app.control.ping(timeout=PATIENCE, limit=2) for name in reply
          if name != "other@b"]
node, other = Node(name), Node("other@b")
node.order("cancel_consumer", "celery"), node.order("add_consumer", "mine")
running = send("tasks.sleep", (2,), queue="mine")
node.until_ids("active", running)
app.control.shutdown(destination=[name])
# It finishes what runs, and others go on.
same(get(running), 2.0)
same(watch.wait("worker-offline")["hostname"], name)
same(other.question("ping"), {"ok": "pong"})
app.control.shutdown()
until("the other one says goodbye", lambda: len(watch.of("worker-offline")) == 2)
"#;
    setup.python(program).await;
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(other.ended().await, Some(0));
    setup.assert_nothing_held().await;
}
