//! Remote control: what Celery's own tools ask of our workers, and tell them.

use std::time::Duration;

use celery::{Tasks, Value, Worker};

use crate::support::{RunningWorker, Setup, WorkerProcess, for_each_broker, test_tasks};

for_each_broker! {
    inspect_methods_return_celery_replies: redis, rabbitmq;
    celery_command_inspects_and_controls_worker: redis, rabbitmq;
    commands_reach_only_matching_workers: redis, rabbitmq;
    invalid_commands_return_errors: redis, rabbitmq;
    revoked_tasks_are_not_run: redis, rabbitmq;
    running_tasks_are_terminated: redis, rabbitmq;
    stamped_tasks_are_revoked_by_header: redis, rabbitmq;
    rate_and_time_limits_take_effect: redis, rabbitmq;
    queues_are_added_and_cancelled: redis, rabbitmq;
    pool_grows_and_shrinks_on_command: redis, rabbitmq;
    autoscaled_pool_follows_load: redis, rabbitmq;
    task_events_are_enabled_and_disabled: redis, rabbitmq;
    events_of_many_tasks_arrive_complete_and_in_order: redis, rabbitmq;
    election_runs_task_on_one_worker: redis, rabbitmq;
    shutdown_stops_addressed_workers: redis, rabbitmq;
}

/// A worker that watchers hear at once.
fn watched(setup: &Setup, name: &str, tasks: Tasks) -> Worker {
    let worker = setup.app().worker(tasks).hostname(name).concurrency(1);
    worker.heartbeat(Some(Duration::from_millis(100)))
}

async fn start(setup: &Setup, name: &str) -> RunningWorker {
    RunningWorker::start(watched(setup, name, test_tasks()).task_events(true)).await
}

/// A program that knows the worker `rust@test` as `node`.
async fn run_program(setup: &Setup, program: &str) -> String {
    let code = format!("from workers import *\nnode = Node('rust@test')\n{program}");
    setup.python(code).await
}

async fn inspect_methods_return_celery_replies(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
same(node.inspect("ping"), {"ok": "pong"})
same(node.inspect("active"), [])
same(node.inspect("reserved"), [])
same(node.inspect("scheduled"), [])
same(node.inspect("revoked"), [])

running = send("test.wait")
state_is(running, "PROGRESS")
held = send("tasks.add", (1, 2))
later = send("tasks.sub", (1,), {"y": 2}, countdown=3600, shadow="shade")
node.wait_for_ids("active", running)
node.wait_for_ids("reserved", held)
node.wait_for_ids("scheduled", later)

[task] = node.inspect("active")
started, pid = task.pop("time_start"), task.pop("worker_pid")
assert abs(time.time() - started) < 60 and pid > 0, (started, pid)
where = {"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False}
same(task, {
    "id": running.id, "name": "test.wait", "args": [], "kwargs": {}, "type": "test.wait",
    "hostname": "rust@test", "acknowledged": True, "delivery_info": where,
})
[task] = node.inspect("reserved")
same(task, {
    "id": held.id, "name": "tasks.add", "args": [1, 2], "kwargs": {}, "type": "tasks.add",
    "hostname": "rust@test", "time_start": None, "acknowledged": False, "delivery_info": where,
    "worker_pid": None,
})
[task] = node.inspect("scheduled")
due = datetime.datetime.fromisoformat(task["eta"])
assert abs(due.timestamp() - time.time() - 3600) < 60, task
same((task["request"]["name"], task["request"]["type"]), ("shade", "tasks.sub"))
same((task["request"]["args"], task["request"]["kwargs"]), ([1], {"y": 2}))

found = node.inspect("query_task", running.id, held.id, later.id, "nobody")
same({id: state for id, (state, request) in found.items()},
     {running.id: "active", held.id: "reserved", later.id: "scheduled"})
for id, (state, request) in found.items():
    same(request["id"], id)

stats = node.inspect("stats")
same(stats["total"], {"test.wait": 1})
same((stats["pid"], stats["pool"]["processes"]), (pid, [pid]))
assert int(stats["clock"]) > 0 and stats["uptime"] >= 0, stats
same((stats["pool"]["max-concurrency"], stats["prefetch_count"]), (1, 4))
assert stats["rusage"]["maxrss"] > 0 and stats["broker"]["port"] > 0, stats

names = node.inspect("registered")
assert "tasks.add" in names and "test.wait" in names and names == sorted(names), names
assert "tasks.add [max_retries=3]" in node.inspect("registered", "max_retries")
assert not [name for name in names if name.startswith("celery.")], names

conf = node.inspect("conf")
assert conf["worker_send_task_events"] is True and conf["task_default_queue"] == "celery", conf
password = app.connection_for_read().password
assert not password or f":{password}@" not in json.dumps(conf), conf
assert "software -> " in node.inspect("report")["ok"]

[queue] = node.inspect("active_queues")
same((queue["name"], queue["exchange"]["name"], queue["exchange"]["type"]),
     ("celery", "celery", "direct"))
before, after = node.inspect("clock")["clock"], node.inspect("clock")["clock"]
assert after > before, (before, after)
same(node.inspect("memsample"), None)
assert isinstance(node.inspect("memdump"), str)

# Who says hello tells what it knows, and hears what is known here.
hello = node.inspect("hello", "other@test", ["told-by-other"])
same(hello["revoked"], ["told-by-other"])
assert hello["clock"] > after, hello
same(node.inspect("hello", "older@test", {"told-by-older": 1.5})["revoked"],
     ["told-by-other", "told-by-older"])
same(node.inspect("hello", "rust@test", []), None)
same(node.inspect("revoked"), ["told-by-other", "told-by-older"])

# The one that opens is behind the one that waits.
node.control("pool_grow", 1)
send("test.release")
same(get(running), "released")
same(get(held), 3)
until("they are forgotten", lambda: not node.inspect("query_task", running.id, held.id))
app.control.revoke(later.id)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
}

async fn celery_command_inspects_and_controls_worker(setup: Setup) {
    let worker = WorkerProcess::start(&setup, &[("CELERY_WORKER_HOSTNAME", "rust@test")]).await;
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
node.wait_for_ids("active", long)
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
    run_program(&setup, program).await;
    assert_eq!(worker.wait().await, Some(0));
    setup.assert_drained().await;
}

async fn commands_reach_only_matching_workers(setup: Setup) {
    let one = start(&setup, "one@a").await;
    let two = start(&setup, "two@a.b").await;
    let program = r#"
from workers import *

def heard(count, **whom):
    replies = app.control.broadcast("ping", reply=True, timeout=TIMEOUT, limit=count, **whom)
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

async fn invalid_commands_return_errors(setup: Setup) {
    let worker = watched(&setup, "rust@test", test_tasks()).command("double", |arguments| {
        let number = arguments.get("number").and_then(Value::as_i64);
        let number = number.ok_or("TypeError('a number is needed')")?;
        Ok(Value::from(number * 2))
    });
    let worker = RunningWorker::start(worker).await;
    let program = r#"
same(node.command("nosuch"), {"error": "KeyError('nosuch')"})
same(node.command(""), {"error": "KeyError('')"})
same(node.command("it's"), {"error": "KeyError(\"it's\")"})
same(node.command("Ping"), {"error": "KeyError('Ping')"})
same(node.command("double", number=21), 42)
same(node.command("double", number="x"), {"error": "TypeError('a number is needed')"})

def refused(method, **arguments):
    answer = node.command(method, **arguments)
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
same(node.inspect("revoked"), [])
same([queue["name"] for queue in node.inspect("active_queues")], ["celery"])
same(len(node.inspect("stats")["pool"]["processes"]), 1)
assert "tasks.add" in node.inspect("registered", "rate_limit")
same(get(send("tasks.add", (1, 2))), 3)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn revoked_tasks_are_not_run(setup: Setup) {
    let worker = watched(&setup, "rust@test", test_tasks()).task_events(true);
    // What is not due is seen behind all that is held.
    let worker = RunningWorker::start(worker.prefetch_multiplier(10)).await;
    let program = r#"
monitor = EventMonitor()
blocker = send("test.wait")
state_is(blocker, "PROGRESS")
held = [send("tasks.add", (n, n)) for n in range(3)]
later = send("tasks.add", (1, 2), countdown=2)
node.wait_for_ids("reserved", *held)
node.wait_for_ids("scheduled", later)
unseen = AsyncResult(str(uuid.uuid4()), app=app)
answer = node.control("revoke", [held[0].id, held[2].id])
assert answer["ok"] in (f"tasks {{'{held[0].id}', '{held[2].id}'}} flagged as revoked",
                        f"tasks {{'{held[2].id}', '{held[0].id}'}} flagged as revoked"), answer
same(node.control("revoke", later.id), {"ok": f"tasks {{'{later.id}'}} flagged as revoked"})
node.control("revoke", unseen.id)
# One that runs goes on.
node.control("revoke", blocker.id)
for result in (held[0], held[2], later, unseen):
    # Also of those that nobody has come to yet.
    error = failure(result)
    assert isinstance(error, TaskRevokedError) and str(error) == "revoked", repr(error)
send("tasks.echo", task_id=unseen.id)
for result in (held[0], held[2]):
    same(monitor.wait("task-revoked", result)["terminated"], False)
    same(monitor.kinds(result), ["task-received", "task-revoked"])
for result in (later, ):
    event = monitor.wait("task-revoked", result)
    same((event["terminated"], event["signum"], event["expired"]), (False, None, False))
    same(monitor.kinds(result), ["task-received", "task-revoked"])
node.control("pool_grow", 1)
send("test.release")
same(get(blocker), "released")
same(get(held[1]), 2)
monitor.wait("task-revoked", unseen)
same(monitor.kinds(unseen), ["task-revoked"])
same(set(node.inspect("revoked")),
     {held[0].id, held[2].id, later.id, unseen.id, blocker.id})
same(node.inspect("stats")["total"], {"test.wait": 1, "test.release": 1, "tasks.add": 1})
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn running_tasks_are_terminated(setup: Setup) {
    let worker = watched(&setup, "rust@test", test_tasks()).task_events(true);
    let worker = RunningWorker::start(worker.concurrency(3)).await;
    let program = r#"
monitor = EventMonitor()
long = [send("tasks.sleep", (600,)) for _ in range(3)]
node.wait_for_ids("active", *long)
same(node.control("terminate", long[0].id), {"ok": f"terminate: {long[0].id}"})
same(node.control("revoke", long[1].id, terminate=True, signal="SIGKILL"),
     {"ok": f"terminate: {long[1].id}"})
same(node.control("terminate", "nobody"), {"ok": "terminate: tasks unknown"})
for result, signum in ((long[0], 15), (long[1], 9)):
    error = failure(result)
    assert isinstance(error, TaskRevokedError) and str(error) == "terminated", repr(error)
    same(result.state, "REVOKED")
    event = monitor.wait("task-revoked", result)
    same((event["terminated"], event["signum"], event["expired"]), (True, signum, False))
    same(monitor.kinds(result), ["task-received", "task-started", "task-revoked"])
node.wait_for_ids("active", long[2])
# Their slots are free.
same([get(send("tasks.add", (n, n))) for n in range(4)], [0, 2, 4, 6])
AsyncResult(long[2].id, app=app).revoke(terminate=True)
assert isinstance(failure(long[2]), TaskRevokedError)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn stamped_tasks_are_revoked_by_header(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
def stamped(name, args=(), **options):
    return app.signature(name, args).stamp(**options).apply_async()

monitor = EventMonitor()
running = stamped("tasks.sleep", (600,), monitoring_id="m-1", stamped_headers=["monitoring_id"])
node.wait_for_ids("active", running)
held = stamped("tasks.add", (1, 2), monitoring_id=["m-2", "m-3"], stamped_headers=["monitoring_id"])
spared = stamped("tasks.add", (3, 4), monitoring_id="m-9", stamped_headers=["monitoring_id"])
node.wait_for_ids("reserved", held, spared)
answer = node.control("revoke_by_stamped_headers", {"monitoring_id": ["m-3", "m-4"]})
assert "flagged as revoked, but not terminated" in answer["ok"], answer
answer = node.control("revoke_by_stamped_headers", {"monitoring_id": "m-1"}, terminate=True)
assert "revoked" in answer["ok"], answer
assert isinstance(failure(running), TaskRevokedError)
same(monitor.wait("task-revoked", running)["terminated"], True)
assert isinstance(failure(held), TaskRevokedError)
same(get(spared), 7)
answer = node.command("revoke_by_stamped_headers", headers=["color=red"])
assert "flagged as revoked" in answer["ok"], answer
assert isinstance(failure(stamped("tasks.add", (1, 2), color="red", stamped_headers=["color"])),
                  TaskRevokedError)
same(get(stamped("tasks.add", (1, 2), color="blue", stamped_headers=["color"])), 3)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn rate_and_time_limits_take_effect(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
same(node.control("rate_limit", "tasks.add", "5/s"), {"ok": "new rate limit set successfully"})
assert "tasks.add [rate_limit=5/s]" in node.inspect("registered")
begun = time.monotonic()
for n, result in enumerate([send("tasks.add", (n, 1)) for n in range(6)]):
    same(get(result), n + 1)
took = time.monotonic() - begun
assert took > 0.95, took
same(node.control("rate_limit", "tasks.add", 0), {"ok": "rate limit disabled successfully"})
assert "tasks.add" in node.inspect("registered")
begun = time.monotonic()
for result in [send("tasks.add", (n, 1)) for n in range(30)]:
    get(result)
assert time.monotonic() - begun < 5

same(node.control("time_limit", "tasks.sleep", soft=0.2, hard=60),
     {"ok": "time limits set successfully"})
same(type(failure(send("tasks.sleep", (600,)))).__name__, "SoftTimeLimitExceeded")
same(node.control("time_limit", "tasks.sleep", hard=0.2), {"ok": "time limits set successfully"})
same(type(failure(send("tasks.sleep", (600,)))).__name__, "TimeLimitExceeded")
same(node.control("time_limit", "tasks.sleep"), {"ok": "time limits set successfully"})
same(get(send("tasks.sleep", (0.4,))), 0.4)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn queues_are_added_and_cancelled(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
def queues():
    return [queue["name"] for queue in node.inspect("active_queues")]

# The worker has something in hand all the time.
running = send("test.wait")
state_is(running, "PROGRESS")
node.control("pool_grow", 1)
waiting = send("tasks.add", (1, 2), queue="more")
same(node.control("add_consumer", "more"), {"ok": "add consumer more"})
same(node.control("add_consumer", "more"), {"ok": "add consumer more"})
same(queues(), ["celery", "more"])
same(get(waiting), 3)
same(get(send("tasks.add", (3, 4), queue="more")), 7)
same(get(send("tasks.add", (5, 6))), 11)
same(node.control("cancel_consumer", "more"), {"ok": "no longer consuming from more"})
same(node.control("cancel_consumer", "more"), {"ok": "no longer consuming from more"})
same(queues(), ["celery"])
left = [send("tasks.add", (n, n), queue="more") for n in range(3)]
same(get(send("tasks.add", (5, 6))), 11)
same([result.state for result in left], ["PENDING"] * 3)
node.control("add_consumer", "more")
same([get(result) for result in left], [0, 2, 4])

answer = node.control("add_consumer", "bound", exchange="events", exchange_type="topic",
                    routing_key="a.#")
same(answer, {"ok": "add consumer bound"})
found = [queue for queue in node.inspect("active_queues") if queue["name"] == "bound"]
same([(queue["exchange"]["name"], queue["exchange"]["type"], queue["routing_key"])
      for queue in found], [("events", "topic", "a.#")])

# With no queue left it waits, and goes on when there is one.
for queue in ("celery", "more", "bound"):
    node.control("cancel_consumer", queue)
same(queues(), [])
left = send("tasks.add", (1, 1))
node.control("add_consumer", "celery")
same(get(left), 2)
send("test.release")
same(get(running), "released")
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_no_unacked().await;
}

async fn pool_grows_and_shrinks_on_command(setup: Setup) {
    let worker = start(&setup, "rust@test").await;
    let program = r#"
def size():
    return len(node.inspect("stats")["pool"]["processes"])

long = [send("tasks.sleep", (600,)) for _ in range(3)]
until("one runs", lambda: len(node.inspect("active")) == 1)
same(node.control("pool_grow", 2), {"ok": "pool will grow"})
same(size(), 3)
node.wait_for_ids("active", *long)
same(node.inspect("stats")["prefetch_count"], 12)
same(node.control("pool_shrink", 1), {"ok": "pool will shrink"})
same(size(), 2)
# Those that run go on.
node.wait_for_ids("active", *long)
held = send("tasks.add", (1, 2))
node.wait_for_ids("reserved", held)
node.control("terminate", long[0].id)
node.wait_for_ids("active", *long[1:])
node.wait_for_ids("reserved", held)
node.control("terminate", long[1].id)
same(get(held), 3)
node.control("terminate", long[2].id)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn autoscaled_pool_follows_load(setup: Setup) {
    let worker = watched(&setup, "rust@test", test_tasks()).autoscale(1..=4);
    let worker = RunningWorker::start(worker).await;
    let program = r#"
def size():
    return len(node.inspect("stats")["pool"]["processes"])

same(size(), 1)
long = [send("tasks.sleep", (600,)) for _ in range(6)]
until("four run", lambda: len(node.inspect("active")) == 4)
scale = node.inspect("stats")["autoscaler"]
same((scale["max"], scale["min"], scale["current"]), (4, 1, 4))
assert "error" in node.control("pool_grow", 1)
same(node.control("autoscale", 5, 2), {"ok": "autoscale now max=5 min=2"})
until("five run", lambda: len(node.inspect("active")) == 5)
for result in long:
    node.control("revoke", result.id, terminate=True)
until("two are left", lambda: size() == 2)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn task_events_are_enabled_and_disabled(setup: Setup) {
    let worker = RunningWorker::start(watched(&setup, "rust@test", test_tasks())).await;
    let program = r#"
monitor = EventMonitor()
beat = monitor.wait("worker-heartbeat")
# The one that was asked for has less to say.
beat = until("a regular one", lambda: [beat for beat in monitor.of("worker-heartbeat")
                                       if "loadavg" in beat])[0]
same((beat["hostname"], beat["freq"], beat["active"]), ("rust@test", 0.1, 0))
same(len(beat["loadavg"]), 3)
assert beat["sw_ident"] and beat["sw_ver"] and beat["sw_sys"] and beat["pid"] > 0, beat

silent = send("tasks.add", (1, 2))
same(get(silent), 3)
same(node.control("disable_events"), {"ok": "task events already disabled"})
same(node.control("enable_events"), {"ok": "task events enabled"})
same(node.control("enable_events"), {"ok": "task events already enabled"})

told = send("tasks.add", (1,), {"y": 2})
same(get(told), 3)
monitor.wait("task-succeeded", told)
same(monitor.kinds(told), ["task-received", "task-started", "task-succeeded"])
[received] = monitor.of("task-received", told)
same({name: received[name] for name in
      ("name", "args", "kwargs", "root_id", "parent_id", "retries", "eta", "expires")},
     {"name": "tasks.add", "args": "(1,)", "kwargs": "{'y': 2}", "root_id": told.id,
      "parent_id": None, "retries": 0, "eta": None, "expires": None})
[succeeded] = monitor.of("task-succeeded", told)
same(succeeded["result"], "3")
assert 0 <= succeeded["runtime"] < 10, succeeded

failed = send("tasks.fail", ("no",))
failure(failed)
event = monitor.wait("task-failed", failed)
same(event["exception"], "ValueError('no')")
assert "ValueError" in event["traceback"], event
retried = send("tasks.retry", (1,))
same(get(retried), 1)
event = monitor.wait("task-retried", retried)
assert {"exception", "traceback"} <= set(event), event
monitor.wait("task-succeeded", retried)
unknown = send("tasks.nosuch")
event = monitor.wait("task-failed", unknown)
same(event["exception"], "NotRegistered('tasks.nosuch')")
expired = send("tasks.add", (1, 2), expires=-1)
same(monitor.wait("task-revoked", expired)["expired"], True)
state = app.events.State()
for event in monitor.events:
    state.event(event)
same({state.tasks[result.id].state for result in (told, retried)}, {"SUCCESS"})
same(state.tasks[failed.id].state, "FAILURE")
assert state.workers["rust@test"].alive

same(node.control("disable_events"), {"ok": "task events disabled"})
same(get(send("tasks.add", (1, 2), task_id="late")), 3)
same(node.command("heartbeat"), None)
until("the asked-for heartbeat", lambda: [beat for beat in monitor.of("worker-heartbeat")
                                          if beat["freq"] == 5])
same(monitor.kinds(silent), [])
same(monitor.kinds(AsyncResult("late", app=app)), [])
"#;
    run_program(&setup, program).await;
    worker.stop().await;
}

async fn events_of_many_tasks_arrive_complete_and_in_order(setup: Setup) {
    let worker = watched(&setup, "rust@test", test_tasks()).task_events(true);
    let worker = RunningWorker::start(worker.concurrency(100)).await;
    let program = r#"
# RabbitMQ drops what a slow reader has not read for 5 s.
app.conf.event_queue_ttl = 60
monitor = EventMonitor()
sent = [send("tasks.add", (n, n), ignore_result=True) for n in range(3000)]
until("all are told of", lambda: monitor.counts["task-succeeded"] == 3000)
told = {}
for event in list(monitor.events):
    if "uuid" in event:
        told.setdefault(event["uuid"], []).append(event["type"])
same(set(told), {result.id for result in sent})
for kinds in told.values():
    same(kinds, ["task-received", "task-started", "task-succeeded"])
"#;
    run_program(&setup, program).await;
    worker.stop().await;
}

async fn election_runs_task_on_one_worker(setup: Setup) {
    let one = start(&setup, "one@test").await;
    let two = start(&setup, "two@test").await;
    let program = r#"
from workers import *
monitor = EventMonitor()
for n in range(3):
    action = tasks.add.si(n, n).set(task_id=f"elected-{n}")
    app.control.election(f"election-{n}", "task", action)
    same(AsyncResult(f"elected-{n}", app=app).get(timeout=TIMEOUT), 2 * n)
    until("all agree", lambda: len([ack for ack in monitor.of("worker-elect-ack")
                                    if ack["id"] == f"election-{n}"]) == 4)
    same(sorted(event["hostname"] for event in monitor.of("worker-elect")
                if event["id"] == f"election-{n}"), ["one@test", "two@test"])
# What was sent twice would run twice, before this.
for _ in range(10):
    call("tasks.add", 1, 1)
for n in range(3):
    same(len(monitor.of("task-started", AsyncResult(f"elected-{n}", app=app))), 1)
"#;
    setup.python(program).await;
    one.stop().await;
    two.stop().await;
    setup.assert_drained().await;
}

async fn shutdown_stops_addressed_workers(setup: Setup) {
    let settings = [("CELERY_WORKER_CONCURRENCY", "2")];
    let worker = WorkerProcess::start(&setup, &settings).await;
    let other = WorkerProcess::start(&setup, &[("CELERY_WORKER_HOSTNAME", "other@b")]).await;
    let program = r#"
from workers import *
monitor = EventMonitor()
[name] = [name for reply in app.control.ping(timeout=TIMEOUT, limit=2) for name in reply
          if name != "other@b"]
node, other = Node(name), Node("other@b")
node.control("cancel_consumer", "celery"), node.control("add_consumer", "mine")
running = send("tasks.sleep", (2,), queue="mine")
node.wait_for_ids("active", running)
app.control.shutdown(destination=[name])
# It finishes what runs, and others go on.
same(get(running), 2.0)
same(monitor.wait("worker-offline")["hostname"], name)
same(other.inspect("ping"), {"ok": "pong"})
app.control.shutdown()
until("the other one says goodbye", lambda: len(monitor.of("worker-offline")) == 2)
"#;
    setup.python(program).await;
    assert_eq!(worker.wait().await, Some(0));
    assert_eq!(other.wait().await, Some(0));
    setup.assert_no_unacked().await;
}
