//! Workers among themselves: what was revoked goes from one to the next, in
//! both languages, and none takes more of the broker than it needs.
//!
//! There is no election with Celery's workers among these for_each_broker: one of them
//! that hears of its own candidacy before it hears of another's ends with an
//! `IndexError`, whatever the others do.

use crate::support::{
    RunningWorker, Setup, WorkerProcess, for_each_broker, start_python, test_tasks,
};

for_each_broker! {
    rust_worker_learns_revocations_from_python_at_start: redis, rabbitmq;
    python_worker_learns_revocations_from_rust_at_start: redis, rabbitmq;
    revocations_survive_restart_with_state_db: redis, rabbitmq;
}

const NODES: &str =
    "from workers import *\npython, rust = Node('python@test'), Node('rust@test')\n";

async fn run_program(setup: &Setup, program: &str) {
    setup.python(format!("{NODES}{program}")).await;
}

async fn ours(setup: &Setup) -> RunningWorker {
    let worker = setup.app().worker(test_tasks()).hostname("rust@test");
    RunningWorker::start(worker.concurrency(2).task_events(true)).await
}

async fn rust_worker_learns_revocations_from_python_at_start(setup: Setup) {
    let worker = setup.python_worker().queues(&["theirs"]);
    let python = start_python(worker.argument("--hostname").argument("python@test")).await;
    let known = r#"
python.control("revoke", ["first", "second"])
send("tasks.add", (1, 2), task_id="second")
"#;
    run_program(&setup, known).await;
    let rust = ours(&setup).await;
    let told = r#"
until("they have met", lambda: set(rust.inspect("revoked")) == {"first", "second"})
assert isinstance(failure(AsyncResult("second", app=app)), TaskRevokedError)
same(call("tasks.add", 1, 2), 3)
same(rust.inspect("stats")["total"], {"tasks.add": 1})
"#;
    run_program(&setup, told).await;
    rust.stop().await;
    python.terminate();
}

async fn python_worker_learns_revocations_from_rust_at_start(setup: Setup) {
    let rust = ours(&setup).await;
    let known = r#"
rust.control("revoke", ["first", "second"])
rust.control("cancel_consumer", "celery")
send("tasks.add", (1, 2), task_id="second")
"#;
    run_program(&setup, known).await;
    let worker = setup.python_worker().peers();
    let python = start_python(worker.argument("--hostname").argument("python@test")).await;
    let told = r#"
same(set(python.inspect("revoked")), {"first", "second"})
assert isinstance(failure(AsyncResult("second", app=app)), TaskRevokedError)
same(call("tasks.add", 1, 2), 3)
"#;
    run_program(&setup, told).await;
    let log = python.terminate();
    assert!(log.contains("sync with 1 nodes"), "{log}");
    assert!(log.contains("sync complete"), "{log}");
    rust.stop().await;
}

async fn revocations_survive_restart_with_state_db(setup: Setup) {
    let file = setup.new_log().with_extension("state");
    let settings = [
        ("CELERY_WORKER_HOSTNAME", "rust@test"),
        ("CELERY_WORKER_STATE_DB", file.to_str().unwrap()),
    ];
    let first = WorkerProcess::start(&setup, &settings).await;
    run_program(&setup, "rust.control('revoke', ['first', 'second'])").await;
    first.signal("TERM");
    assert_eq!(first.wait().await, Some(0));

    let second = WorkerProcess::start(&setup, &settings).await;
    let told = r#"
same(rust.inspect("revoked"), ["first", "second"])
assert isinstance(failure(send("tasks.add", (1, 2), task_id="second")), TaskRevokedError)
"#;
    run_program(&setup, told).await;
    second.signal("TERM");
    assert_eq!(second.wait().await, Some(0));
}

/// One for what it publishes, one for what it consumes.
#[cfg(feature = "amqp")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers and Python Celery; run cargo xtask test"]
async fn worker_opens_at_most_two_rabbitmq_connections() {
    let setup = Setup::rabbitmq();
    let settings = [
        ("CELERY_WORKER_HOSTNAME", "rust@test"),
        ("CELERY_WORKER_SEND_TASK_EVENTS", "1"),
        ("CELERY_WORKER_CONCURRENCY", "4"),
    ];
    let worker = WorkerProcess::start(&setup, &settings).await;
    let program = r#"
same(rust.inspect("ping"), {"ok": "pong"})
rust.control("add_consumer", "more")
later = send("tasks.add", (1, 2), countdown=3600)
rust.wait_for_ids("scheduled", later)
sent = [send("tasks.retry", (2,), queue=queue) for queue in ("celery", "more") for _ in range(10)]
same([get(one) for one in sent], [2] * 20)
app.control.revoke(later.id)
rust.control("cancel_consumer", "more")
same(rust.inspect("ping"), {"ok": "pong"})
"#;
    run_program(&setup, program).await;
    // Those of the program are closed by now, or will be.
    let count = crate::support::eventually("the worker's are left", async || {
        let count = setup.vhost().connections().await;
        (count <= 2).then_some(count)
    })
    .await;
    assert!(count > 0);
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
}
