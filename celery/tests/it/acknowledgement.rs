//! Late acknowledgements, rejections and dead letters on RabbitMQ.

use celery::Value;
use celery_protocol::Message;
use serde_json::json;

use crate::support::{
    MessageExt, REJECT, RunningWorker, Setup, TIMEOUT, eventually, for_each_broker, start_python,
    test_tasks,
};
use crate::tasks::FAIL;

for_each_broker! {
    late_ack_task_is_unacked_while_running: rabbitmq, quorum;
    requeued_task_is_redelivered: rabbitmq, quorum;
    task_rejected_by_rust_is_dead_lettered: rabbitmq;
    task_rejected_by_python_is_dead_lettered: rabbitmq;
}

async fn late_ack_task_is_unacked_while_running(setup: Setup) {
    for (late, unacked) in [(true, 1), (false, 0)] {
        let setup = setup.set("task_acks_late", late);
        let worker = setup.serve(test_tasks()).await;
        let program = r#"
waiting = send("test.wait")
until("it runs", lambda: waiting.state == "PROGRESS")
"#;
        setup.python(program).await;
        let queues = setup.vhost().queues().await;
        assert_eq!(
            queues["celery"].unacked, unacked,
            "late: {late}, {queues:?}"
        );
        setup.python(r#"call("test.release")"#).await;
        worker.stop().await;
    }
    setup.assert_drained().await;
}

async fn requeued_task_is_redelivered(setup: Setup) {
    let worker = setup.serve(test_tasks()).await;
    setup
        .python(r#"same(call("test.reject", True), True)"#)
        .await;
    worker.stop().await;

    let python = start_python(setup.python_worker()).await;
    let sent = setup.client().send(REJECT, (true,)).await.unwrap();
    assert!(sent.get_timeout(TIMEOUT).await.unwrap());
    python.terminate();
    setup.assert_drained().await;
}

/// What is rejected from `celery` ends in `grave`.
fn with_grave(setup: &Setup) -> Setup {
    let limits = json!({
        "x-dead-letter-exchange": "graves",
        "x-dead-letter-routing-key": "a grave",
    });
    setup.set_both(
        "task_queues",
        json!({
            "celery": {"exchange": "celery", "queue_arguments": limits},
            "grave": {"exchange": "graves", "routing_key": "a grave"},
        }),
    )
}

async fn task_rejected_by_rust_is_dead_lettered(setup: Setup) {
    let setup = with_grave(&setup)
        .set("task_acks_late", true)
        .set("task_acks_on_failure_or_timeout", false);
    let worker = setup.app().worker(test_tasks()).queue("celery");
    let worker = RunningWorker::start(worker).await;
    let program = r#"
declare()
send("test.reject", (False,), task_id="refused")
failed = send("tasks.fail", ("no",), task_id="failed")
same(str(failure(failed)), "no")
"#;
    setup.python(program).await;
    assert_buried(&setup, &["failed", "refused"]).await;
    worker.stop().await;
}

async fn task_rejected_by_python_is_dead_lettered(setup: Setup) {
    let setup = with_grave(&setup)
        .set_both("task_acks_late", true)
        .set_both("task_acks_on_failure_or_timeout", false);
    setup.python("declare()").await;
    let python = start_python(setup.python_worker().queues(&["celery"])).await;
    let client = setup.client();
    let refused = REJECT.s((false,)).task_id("refused");
    client.apply(refused).await.unwrap();
    let failed = FAIL.s(("no".to_owned(),)).task_id("failed");
    client.apply(failed).await.unwrap();
    assert_buried(&setup, &["failed", "refused"]).await;
    python.terminate();
}

async fn assert_buried(setup: &Setup, ids: &[&str]) {
    eventually("all are dead", async || {
        (setup.depth("grave").await == ids.len()).then_some(())
    })
    .await;
    let mut buried = setup.messages("grave").await;
    buried.sort_by_key(MessageExt::id);
    assert!(buried.iter().map(MessageExt::id).eq(ids.iter().copied()));
    for message in &buried {
        assert_eq!(death(message, "queue"), "celery".into());
        assert_eq!(death(message, "reason"), "rejected".into());
    }
    setup.assert_no_unacked().await;
}

/// What RabbitMQ notes about the last death.
fn death(message: &Message, what: &str) -> Value {
    let deaths = message.headers.find("x-death").unwrap().unwrap();
    let deaths = deaths.to_value().unwrap();
    let last = deaths.as_array().unwrap().first().unwrap();
    last.get(what).unwrap().clone()
}
