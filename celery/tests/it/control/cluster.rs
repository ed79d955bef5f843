//! Commands that several workers receive: election and shutdown.
//!
//! The election has no Python workers: one that receives its own candidacy before
//! that of another worker fails with an `IndexError`.

use super::start;
use crate::support::{Setup, WorkerProcess, for_each_broker};

for_each_broker! {
    election_runs_task_on_one_worker: redis, rabbitmq;
    shutdown_stops_addressed_workers: redis, rabbitmq;
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
    until("all workers acknowledge", lambda: len([ack for ack in monitor.of("worker-elect-ack")
                                    if ack["id"] == f"election-{n}"]) == 4)
    same(sorted(event["hostname"] for event in monitor.of("worker-elect")
                if event["id"] == f"election-{n}"), ["one@test", "two@test"])
# A task that was sent twice would run twice before these tasks.
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
# The worker finishes its running task, and the other worker continues.
same(get(running), 2.0)
same(monitor.wait("worker-offline")["hostname"], name)
same(other.inspect("ping"), {"ok": "pong"})
app.control.shutdown()
until("the other worker goes offline", lambda: len(monitor.of("worker-offline")) == 2)
"#;
    setup.python(program).await;
    assert_eq!(worker.wait().await, Some(0));
    assert_eq!(other.wait().await, Some(0));
    setup.assert_no_unacked().await;
}
