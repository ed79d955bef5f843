//! Late acknowledgements, rejections and dead letters on RabbitMQ.

use celery::Value;
use celery_protocol::Message;
use serde_json::json;

use crate::support::{Look, PATIENCE, REFUSE, Running, Setup, eventually, start, stories, story};
use crate::tasks::FAIL;

stories! {
    a_late_task_is_held_while_it_runs_and_an_early_one_is_not: rabbitmq, quorum;
    what_is_given_back_comes_again_and_says_so: rabbitmq, quorum;
    what_we_reject_is_dead_lettered: rabbitmq;
    what_python_rejects_is_dead_lettered: rabbitmq;
}

async fn a_late_task_is_held_while_it_runs_and_an_early_one_is_not(setup: Setup) {
    for (late, held) in [(true, 1), (false, 0)] {
        let setup = setup.set("task_acks_late", late);
        let worker = setup.serve(story()).await;
        let program = r#"
waiting = send("story.wait")
until("it runs", lambda: waiting.state == "PROGRESS")
"#;
        setup.python(program).await;
        let queues = setup.vhost().queues().await;
        assert_eq!(queues["celery"].held, held, "late: {late}, {queues:?}");
        setup.python(r#"call("story.open")"#).await;
        worker.stop().await;
    }
    setup.assert_nothing_left().await;
}

async fn what_is_given_back_comes_again_and_says_so(setup: Setup) {
    let worker = setup.serve(story()).await;
    setup
        .python(r#"same(call("story.refuse", True), True)"#)
        .await;
    worker.stop().await;

    let python = start(setup.python_worker()).await;
    let sent = setup.client().send(REFUSE, (true,)).await.unwrap();
    assert!(sent.get_timeout(PATIENCE).await.unwrap());
    python.terminate();
    setup.assert_nothing_left().await;
}

/// What is rejected from `celery` ends in `grave`.
fn with_grave(setup: &Setup) -> Setup {
    let limits = json!({
        "x-dead-letter-exchange": "graves",
        "x-dead-letter-routing-key": "a grave",
    });
    setup.with(
        "task_queues",
        json!({
            "celery": {"exchange": "celery", "queue_arguments": limits},
            "grave": {"exchange": "graves", "routing_key": "a grave"},
        }),
    )
}

async fn what_we_reject_is_dead_lettered(setup: Setup) {
    let setup = with_grave(&setup)
        .set("task_acks_late", true)
        .set("task_acks_on_failure_or_timeout", false);
    let worker = setup.app().worker(story()).queue("celery");
    let worker = Running::start(worker).await;
    let program = r#"
declare()
send("story.refuse", (False,), task_id="refused")
failed = send("tasks.fail", ("no",), task_id="failed")
same(str(failure(failed)), "no")
"#;
    setup.python(program).await;
    assert_buried(&setup, &["failed", "refused"]).await;
    worker.stop().await;
}

async fn what_python_rejects_is_dead_lettered(setup: Setup) {
    let setup = with_grave(&setup)
        .with("task_acks_late", true)
        .with("task_acks_on_failure_or_timeout", false);
    setup.python("declare()").await;
    let python = start(setup.python_worker().queues(&["celery"])).await;
    let client = setup.client();
    let refused = REFUSE.s((false,)).task_id("refused");
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
    buried.sort_by_key(Look::id);
    assert!(buried.iter().map(Look::id).eq(ids.iter().copied()));
    for message in &buried {
        assert_eq!(death(message, "queue"), "celery".into());
        assert_eq!(death(message, "reason"), "rejected".into());
    }
    setup.assert_nothing_held().await;
}

/// What RabbitMQ notes about the last death.
fn death(message: &Message, what: &str) -> Value {
    let deaths = message.headers.find("x-death").unwrap().unwrap();
    let deaths = deaths.to_value().unwrap();
    let last = deaths.as_array().unwrap().first().unwrap();
    last.get(what).unwrap().clone()
}
