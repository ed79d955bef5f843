//! Revocations that outlive their worker: exchanged by mingle in both languages,
//! saved in the state file, or stored durably.

use std::time::Duration;

use celery::ResultError;

use crate::support::{
    LANGUAGE, RunningWorker, Setup, WorkerProcess, for_each_broker, start_python, test_tasks,
    within,
};

for_each_broker! {
    rust_worker_learns_revocations_from_python_at_start: redis, rabbitmq;
    python_worker_learns_revocations_from_rust_at_start: redis, rabbitmq;
    revocations_survive_restart_with_state_db: redis, rabbitmq;
    durably_revoked_task_is_not_run_by_later_workers: redis, rabbitmq;
}

const NODES: &str =
    "from workers import *\npython, rust = Node('python@test'), Node('rust@test')\n";

async fn run_program(setup: &Setup, program: &str) {
    setup.python(format!("{NODES}{program}")).await;
}

async fn start_rust(setup: &Setup) -> RunningWorker {
    let worker = setup.app().worker(test_tasks()).hostname("rust@test");
    RunningWorker::start(worker.concurrency(2).task_events(true)).await
}

async fn rust_worker_learns_revocations_from_python_at_start(setup: Setup) {
    let worker = setup.python_worker().queues(&["theirs"]);
    let python = start_python(worker.argument("--hostname").argument("python@test")).await;
    let revoke = r#"
python.control("revoke", ["first", "second"])
send("tasks.add", (1, 2), task_id="second")
"#;
    run_program(&setup, revoke).await;
    let rust = start_rust(&setup).await;
    let check = r#"
until("the revocations are exchanged", lambda: set(rust.inspect("revoked")) == {"first", "second"})
assert isinstance(failure(AsyncResult("second", app=app)), TaskRevokedError)
same(call("tasks.add", 1, 2), 3)
same(rust.inspect("stats")["total"], {"tasks.add": 1})
"#;
    run_program(&setup, check).await;
    rust.stop().await;
    python.terminate();
}

async fn python_worker_learns_revocations_from_rust_at_start(setup: Setup) {
    let rust = start_rust(&setup).await;
    let revoke = r#"
rust.control("revoke", ["first", "second"])
rust.control("cancel_consumer", "celery")
send("tasks.add", (1, 2), task_id="second")
"#;
    run_program(&setup, revoke).await;
    let worker = setup.python_worker().peers();
    let python = start_python(worker.argument("--hostname").argument("python@test")).await;
    let check = r#"
same(set(python.inspect("revoked")), {"first", "second"})
assert isinstance(failure(AsyncResult("second", app=app)), TaskRevokedError)
same(call("tasks.add", 1, 2), 3)
"#;
    run_program(&setup, check).await;
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
    let check = r#"
same(rust.inspect("revoked"), ["first", "second"])
assert isinstance(failure(send("tasks.add", (1, 2), task_id="second")), TaskRevokedError)
"#;
    run_program(&setup, check).await;
    second.signal("TERM");
    assert_eq!(second.wait().await, Some(0));
}

async fn durably_revoked_task_is_not_run_by_later_workers(setup: Setup) {
    let setup = setup.set("worker_durable_revokes", 600);
    let client = setup.client();
    let revoked = client.send(LANGUAGE, ()).await.unwrap();
    let other = client.send(LANGUAGE, ()).await.unwrap();
    let control = setup.app().control();
    let ttl = Duration::from_secs(600);
    control.revoke_durably([revoked.id()], ttl).await.unwrap();
    let worker = setup.serve(test_tasks()).await;
    assert_eq!(within("the other task", other.get()).await.unwrap(), "rust");
    let error = within("the revoked task", revoked.get()).await.unwrap_err();
    assert!(
        matches!(&error, ResultError::Task(failure)
            if failure.exception.exc_type == "TaskRevokedError"),
        "{error}"
    );
    worker.stop().await;
    setup.assert_drained().await;
}
