//! Task and worker events, received by Python.

use super::{heartbeating, run_program};
use crate::support::{RunningWorker, Setup, for_each_broker, test_tasks};

for_each_broker! {
    task_events_are_enabled_and_disabled: redis, rabbitmq;
    events_of_many_tasks_arrive_complete_and_in_order: redis, rabbitmq;
}

async fn task_events_are_enabled_and_disabled(setup: Setup) {
    let worker = RunningWorker::start(heartbeating(&setup, "rust@test", test_tasks())).await;
    let program = r#"
monitor = EventMonitor()
beat = monitor.wait("worker-heartbeat")
# A heartbeat on request lacks the load average.
beat = until("a periodic heartbeat", lambda: [beat for beat in monitor.of("worker-heartbeat")
                                       if "loadavg" in beat])[0]
same((beat["hostname"], beat["freq"], beat["active"]), ("rust@test", 0.1, 0))
same(len(beat["loadavg"]), 3)
assert beat["sw_ident"] and beat["sw_ver"] and beat["sw_sys"] and beat["pid"] > 0, beat

silent = send("tasks.add", (1, 2))
same(get(silent), 3)
same(node.control("disable_events"), {"ok": "task events already disabled"})
same(node.control("enable_events"), {"ok": "task events enabled"})
same(node.control("enable_events"), {"ok": "task events already enabled"})

observed = send("tasks.add", (1,), {"y": 2})
same(get(observed), 3)
monitor.wait("task-succeeded", observed)
same(monitor.kinds(observed), ["task-received", "task-started", "task-succeeded"])
[received] = monitor.of("task-received", observed)
same({name: received[name] for name in
      ("name", "args", "kwargs", "root_id", "parent_id", "retries", "eta", "expires")},
     {"name": "tasks.add", "args": "(1,)", "kwargs": "{'y': 2}", "root_id": observed.id,
      "parent_id": None, "retries": 0, "eta": None, "expires": None})
[succeeded] = monitor.of("task-succeeded", observed)
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
same({state.tasks[result.id].state for result in (observed, retried)}, {"SUCCESS"})
same(state.tasks[failed.id].state, "FAILURE")
assert state.workers["rust@test"].alive

same(node.control("disable_events"), {"ok": "task events disabled"})
same(get(send("tasks.add", (1, 2), task_id="late")), 3)
same(node.command("heartbeat"), None)
until("the requested heartbeat", lambda: [beat for beat in monitor.of("worker-heartbeat")
                                          if beat["freq"] == 5])
same(monitor.kinds(silent), [])
same(monitor.kinds(AsyncResult("late", app=app)), [])
"#;
    run_program(&setup, program).await;
    worker.stop().await;
}

async fn events_of_many_tasks_arrive_complete_and_in_order(setup: Setup) {
    let worker = heartbeating(&setup, "rust@test", test_tasks()).task_events(true);
    let worker = RunningWorker::start(worker.concurrency(100)).await;
    let program = r#"
# RabbitMQ drops events that a slow reader has not read for 5 s.
app.conf.event_queue_ttl = 60
monitor = EventMonitor()
sent = [send("tasks.add", (n, n), ignore_result=True) for n in range(3000)]
until("all events are received", lambda: monitor.counts["task-succeeded"] == 3000)
kinds_by_task = {}
for event in list(monitor.events):
    if "uuid" in event:
        kinds_by_task.setdefault(event["uuid"], []).append(event["type"])
same(set(kinds_by_task), {result.id for result in sent})
for kinds in kinds_by_task.values():
    same(kinds, ["task-received", "task-started", "task-succeeded"])
"#;
    run_program(&setup, program).await;
    worker.stop().await;
}
