//! Workers among themselves: what was revoked goes from one to the next, in
//! both languages, and none takes more of the broker than it needs.
//!
//! There is no election with Celery's workers among these stories: one of them
//! that hears of its own candidacy before it hears of another's ends with an
//! `IndexError`, whatever the others do.

use crate::support::{Running, Setup, WorkerProcess, start, stories, story};

stories! {
    what_python_knows_to_be_revoked_is_known_to_ours_from_the_start: redis, rabbitmq;
    what_ours_knows_to_be_revoked_is_known_to_python_from_the_start: redis, rabbitmq;
    what_was_revoked_is_known_after_a_restart: redis, rabbitmq;
}

const NODES: &str =
    "from fleet import *\npython, rust = Node('python@story'), Node('rust@story')\n";

async fn steer(setup: &Setup, program: &str) {
    setup.python(format!("{NODES}{program}")).await;
}

async fn ours(setup: &Setup) -> Running {
    let worker = setup.app().worker(story()).hostname("rust@story");
    Running::start(worker.concurrency(2).task_events(true)).await
}

async fn what_python_knows_to_be_revoked_is_known_to_ours_from_the_start(setup: Setup) {
    let worker = setup.python_worker().queues(&["theirs"]);
    let python = start(worker.argument("--hostname").argument("python@story")).await;
    let known = r#"
python.order("revoke", ["first", "second"])
send("tasks.add", (1, 2), task_id="second")
"#;
    steer(&setup, known).await;
    let rust = ours(&setup).await;
    let told = r#"
until("they have met", lambda: set(rust.question("revoked")) == {"first", "second"})
assert isinstance(failure(AsyncResult("second", app=app)), TaskRevokedError)
same(call("tasks.add", 1, 2), 3)
same(rust.question("stats")["total"], {"tasks.add": 1})
"#;
    steer(&setup, told).await;
    rust.stop().await;
    python.terminate();
}

async fn what_ours_knows_to_be_revoked_is_known_to_python_from_the_start(setup: Setup) {
    let rust = ours(&setup).await;
    let known = r#"
rust.order("revoke", ["first", "second"])
rust.order("cancel_consumer", "celery")
send("tasks.add", (1, 2), task_id="second")
"#;
    steer(&setup, known).await;
    let worker = setup.python_worker().peers();
    let python = start(worker.argument("--hostname").argument("python@story")).await;
    let told = r#"
same(set(python.question("revoked")), {"first", "second"})
assert isinstance(failure(AsyncResult("second", app=app)), TaskRevokedError)
same(call("tasks.add", 1, 2), 3)
"#;
    steer(&setup, told).await;
    let log = python.terminate();
    assert!(log.contains("sync with 1 nodes"), "{log}");
    assert!(log.contains("sync complete"), "{log}");
    rust.stop().await;
}

async fn what_was_revoked_is_known_after_a_restart(setup: Setup) {
    let file = setup.new_log().with_extension("state");
    let settings = [
        ("CELERY_WORKER_HOSTNAME", "rust@story"),
        ("CELERY_WORKER_STATE_DB", file.to_str().unwrap()),
    ];
    let first = WorkerProcess::start(&setup, &settings).await;
    steer(&setup, "rust.order('revoke', ['first', 'second'])").await;
    first.signal("TERM");
    assert_eq!(first.ended().await, Some(0));

    let second = WorkerProcess::start(&setup, &settings).await;
    let told = r#"
same(rust.question("revoked"), ["first", "second"])
assert isinstance(failure(send("tasks.add", (1, 2), task_id="second")), TaskRevokedError)
"#;
    steer(&setup, told).await;
    second.signal("TERM");
    assert_eq!(second.ended().await, Some(0));
}

/// One for what it publishes, one for what it consumes.
#[cfg(feature = "amqp")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers and Python Celery; run cargo xtask test"]
async fn a_worker_has_two_connections_to_rabbitmq_at_most() {
    let setup = Setup::rabbitmq();
    let settings = [
        ("CELERY_WORKER_HOSTNAME", "rust@story"),
        ("CELERY_WORKER_SEND_TASK_EVENTS", "1"),
        ("CELERY_WORKER_CONCURRENCY", "4"),
    ];
    let worker = WorkerProcess::start(&setup, &settings).await;
    let program = r#"
same(rust.question("ping"), {"ok": "pong"})
rust.order("add_consumer", "more")
later = send("tasks.add", (1, 2), countdown=3600)
rust.until_ids("scheduled", later)
sent = [send("tasks.retry", (2,), queue=queue) for queue in ("celery", "more") for _ in range(10)]
same([get(one) for one in sent], [2] * 20)
app.control.revoke(later.id)
rust.order("cancel_consumer", "more")
same(rust.question("ping"), {"ok": "pong"})
"#;
    steer(&setup, program).await;
    // Those of the program are closed by now, or will be.
    let count = crate::support::eventually("the worker's are left", async || {
        let count = setup.vhost().connections().await;
        (count <= 2).then_some(count)
    })
    .await;
    assert!(count > 0);
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
}
