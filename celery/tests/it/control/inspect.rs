//! Inspect and control commands of Python clients: replies, addressing and errors.

use celery::Value;

use super::{heartbeating, run_program, start};
use crate::support::{RunningWorker, Setup, WorkerProcess, for_each_broker, test_tasks};

for_each_broker! {
    inspect_methods_return_celery_replies: redis, rabbitmq;
    celery_command_inspects_and_controls_worker: redis, rabbitmq;
    commands_reach_only_matching_workers: redis, rabbitmq;
    invalid_commands_return_errors: redis, rabbitmq;
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
reserved = send("tasks.add", (1, 2))
later = send("tasks.sub", (1,), {"y": 2}, countdown=3600, shadow="shade")
node.wait_for_ids("active", running)
node.wait_for_ids("reserved", reserved)
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
    "id": reserved.id, "name": "tasks.add", "args": [1, 2], "kwargs": {}, "type": "tasks.add",
    "hostname": "rust@test", "time_start": None, "acknowledged": False, "delivery_info": where,
    "worker_pid": None,
})
[task] = node.inspect("scheduled")
due = datetime.datetime.fromisoformat(task["eta"])
assert abs(due.timestamp() - time.time() - 3600) < 60, task
same((task["request"]["name"], task["request"]["type"]), ("shade", "tasks.sub"))
same((task["request"]["args"], task["request"]["kwargs"]), ([1], {"y": 2}))

found = node.inspect("query_task", running.id, reserved.id, later.id, "unknown")
same({id: state for id, (state, request) in found.items()},
     {running.id: "active", reserved.id: "reserved", later.id: "scheduled"})
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

# `hello` exchanges the revoked ids.
hello = node.inspect("hello", "other@test", ["revoked-by-other"])
same(hello["revoked"], ["revoked-by-other"])
assert hello["clock"] > after, hello
same(node.inspect("hello", "older@test", {"revoked-by-older": 1.5})["revoked"],
     ["revoked-by-other", "revoked-by-older"])
same(node.inspect("hello", "rust@test", []), None)
same(node.inspect("revoked"), ["revoked-by-other", "revoked-by-older"])

# The releasing task is queued behind the waiting one, so it needs a second slot.
node.control("pool_grow", 1)
send("test.release")
same(get(running), "released")
same(get(reserved), 3)
until("finished tasks are not found", lambda: not node.inspect("query_task", running.id, reserved.id))
app.control.revoke(later.id)
"#;
    run_program(&setup, program).await;
    worker.stop().await;
}

async fn celery_command_inspects_and_controls_worker(setup: Setup) {
    let worker = WorkerProcess::start(&setup, &[("CELERY_WORKER_HOSTNAME", "rust@test")]).await;
    let program = r#"
def reply(*arguments):
    """The one reply to `celery inspect` or `celery control`."""
    answer = json.loads(celery(arguments[0], "--json", "-t", "5", "-d", node.name, *arguments[1:]))
    if arguments[0] == "control":
        [answer] = answer
    same(list(answer), [node.name])
    return answer[node.name]

assert f"{node.name}: OK" in celery("status", "-t", "5", "-d", node.name)
assert "1 node online" in celery("inspect", "-t", "5", "-d", node.name, "ping")
long = send("tasks.sleep", (600,))
node.wait_for_ids("active", long)
same([task["id"] for task in reply("inspect", "active")], [long.id])
same(list(reply("inspect", "query_task", long.id)), [long.id])
same(reply("inspect", "stats")["total"], {"tasks.sleep": 1})
assert "tasks.add" in reply("inspect", "registered")
same([queue["name"] for queue in reply("inspect", "active_queues")], ["celery"])
assert "transport:" in celery("inspect", "-t", "5", "-d", node.name, "report")

same(reply("control", "rate_limit", "tasks.add", "10/m"), {"ok": "new rate limit set successfully"})
assert "tasks.add [rate_limit=10/m]" in reply("inspect", "registered", "rate_limit")
same(reply("control", "pool_grow", "2"), {"ok": "pool will grow"})
same(reply("control", "add_consumer", "other"), {"ok": "add consumer other"})
same(get(send("tasks.sub", (3, 2), queue="other")), 1)
same(reply("control", "enable_events"), {"ok": "task events enabled"})
same(reply("control", "terminate", "SIGKILL", long.id), {"ok": f"terminate: {long.id}"})
state_is(long, "REVOKED")
same(reply("inspect", "revoked"), [long.id])
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

def pinged(count, **target):
    replies = app.control.broadcast("ping", reply=True, timeout=TIMEOUT, limit=count, **target)
    # A worker too many would reply as fast.
    same([*ping(0.5, **target)], sorted(name for reply in replies for name in reply))
    return sorted(name for reply in replies for name in reply)

def ping(timeout, **target):
    replies = app.control.broadcast("ping", reply=True, timeout=timeout, **target)
    return sorted(name for reply in replies for name in reply)

both = ["one@a", "two@a.b"]
same(pinged(2), both)
same(pinged(1, destination=["one@a"]), ["one@a"])
same(pinged(2, destination=["two@a.b", "one@a", "three@a"]), both)
same(pinged(1, pattern="o*", matcher="glob"), ["one@a"])
same(pinged(2, pattern="[ot]*@a*", matcher="glob"), both)
same(pinged(1, pattern="???@?.b", matcher="glob"), ["two@a.b"])
same(pinged(1, pattern="[!o]*", matcher="glob"), ["two@a.b"])
same(pinged(1, pattern=r"^t\w+@", matcher="pcre"), ["two@a.b"])
same(pinged(2, pattern=r"(one|two)", matcher="pcre"), both)
for pattern, matcher in [("one", "glob"), ("wo", "pcre"), ("ONE*", "glob"), ("(", "pcre")]:
    same(ping(0.5, pattern=pattern, matcher=matcher), [])
same(pinged(2), both)
"#;
    setup.python(program).await;
    one.stop().await;
    two.stop().await;
}

async fn invalid_commands_return_errors(setup: Setup) {
    let worker = heartbeating(&setup, "rust@test", test_tasks()).command("double", |arguments| {
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

def error(method, **arguments):
    answer = node.command(method, **arguments)
    assert list(answer) == ["error"] and isinstance(answer["error"], str), (method, answer)
    return answer["error"]

same(error("rate_limit", task_name="nosuch", rate_limit="1/s"), "unknown task")
same(error("rate_limit", task_name="tasks.add", rate_limit="abc"),
     "Invalid rate limit string: ValueError(\"could not convert string to float: 'abc'\")")
same(error("time_limit", task_name="nosuch", hard=1), "unknown task")
same(error("pool_restart"), "ValueError('Pool restarts not enabled')")
same(error("autoscale", max=3, min=1), "ValueError('Autoscale not enabled')")
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
    error(method, **arguments)
# None of the commands has had an effect.
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
