//! The connections that a worker opens to RabbitMQ.

use crate::support::{Setup, WorkerProcess, eventually};

/// A worker needs one connection for publishing and one for consuming.
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
from workers import *
rust = Node("rust@test")
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
    setup.python(program).await;
    // The connections of the Python program are closing.
    let count = eventually("only the worker's connections are open", async || {
        let count = setup.vhost().connections().await;
        (count <= 2).then_some(count)
    })
    .await;
    assert!(count > 0);
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
}
