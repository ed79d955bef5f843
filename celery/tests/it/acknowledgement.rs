//! Late acknowledgement, rejection and dead-lettering on RabbitMQ.

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
until("the task runs", lambda: waiting.state == "PROGRESS")
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

/// Dead-letters the queue `celery` to the queue `dead`.
fn with_dead_letter_queue(setup: &Setup) -> Setup {
    let limits = json!({
        "x-dead-letter-exchange": "dead-letters",
        "x-dead-letter-routing-key": "rejected",
    });
    setup.set_both(
        "task_queues",
        json!({
            "celery": {"exchange": "celery", "queue_arguments": limits},
            "dead": {"exchange": "dead-letters", "routing_key": "rejected"},
        }),
    )
}

async fn task_rejected_by_rust_is_dead_lettered(setup: Setup) {
    let setup = with_dead_letter_queue(&setup)
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
    assert_dead_lettered(&setup, &["failed", "refused"]).await;
    worker.stop().await;
}

async fn task_rejected_by_python_is_dead_lettered(setup: Setup) {
    let setup = with_dead_letter_queue(&setup)
        .set_both("task_acks_late", true)
        .set_both("task_acks_on_failure_or_timeout", false);
    setup.python("declare()").await;
    let python = start_python(setup.python_worker().queues(&["celery"])).await;
    let client = setup.client();
    let refused = REJECT.s((false,)).task_id("refused");
    client.apply(refused).await.unwrap();
    let failed = FAIL.s(("no".to_owned(),)).task_id("failed");
    client.apply(failed).await.unwrap();
    assert_dead_lettered(&setup, &["failed", "refused"]).await;
    python.terminate();
}

async fn assert_dead_lettered(setup: &Setup, ids: &[&str]) {
    eventually("all messages are dead-lettered", async || {
        (setup.depth("dead").await == ids.len()).then_some(())
    })
    .await;
    let mut dead_letters = setup.messages("dead").await;
    dead_letters.sort_by_key(MessageExt::id);
    assert!(
        dead_letters
            .iter()
            .map(MessageExt::id)
            .eq(ids.iter().copied())
    );
    for message in &dead_letters {
        assert_eq!(last_death(message, "queue"), "celery".into());
        assert_eq!(last_death(message, "reason"), "rejected".into());
    }
    setup.assert_no_unacked().await;
}

/// Returns a field of the last `x-death` entry.
fn last_death(message: &Message, field: &str) -> Value {
    let deaths = message.headers.find("x-death").unwrap().unwrap();
    let deaths = deaths.to_value().unwrap();
    let last = deaths.as_array().unwrap().first().unwrap();
    last.get(field).unwrap().clone()
}
