//! Tests of requests that RabbitMQ refuses: which errors are transient, and their remedies.

use celery_runtime::{Broker, ConsumeOptions, Queue, ServiceError, ServiceErrorKind};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use test_servers::RabbitServer;

use crate::support::{
    RawClient, TestVhost, blocking, broker_at, consumer, create_user, id, publish_one, receive_one,
    send, table, to, wait_until, within,
};

fn control(words: &[&str]) {
    blocking(|| RabbitServer::shared().control(words));
}

/// Sets a limit of the virtual host, such as `{"max-queues": 1}`.
fn limit_vhost(test_vhost: &TestVhost, limit: &str) {
    control(&["set_vhost_limits", "-p", &test_vhost.vhost, limit]);
}

fn lift_vhost_limits(test_vhost: &TestVhost) {
    control(&["clear_vhost_limits", "-p", &test_vhost.vhost]);
}

#[track_caller]
fn assert_transient(error: &ServiceError, remedy: &str) {
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains(remedy), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn connection_limit_of_the_virtual_host_is_transient() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    limit_vhost(&test_vhost, "{\"max-connections\": 0}");
    let error = broker.declare(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unreachable, "{error}");
    assert_transient(&error, "set_vhost_limits");

    lift_vhost_limits(&test_vhost);

    send(&broker, &Queue::new("q"), &["1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn connection_limit_of_the_user_is_transient() {
    let test_vhost = TestVhost::create();
    let broker = broker_at(&create_user(&test_vhost, "limited-connections"));
    control(&[
        "set_user_limits",
        "limited-connections",
        "{\"max-connections\": 0}",
    ]);
    let error = broker.declare(&Queue::new("q")).await.unwrap_err();
    assert_transient(&error, "set_user_limits");

    control(&["clear_user_limits", "limited-connections", "all"]);

    send(&broker, &Queue::new("q"), &["1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn channel_limit_of_the_user_is_transient() {
    let test_vhost = TestVhost::create();
    let broker = broker_at(&create_user(&test_vhost, "limited-channels"));
    control(&[
        "set_user_limits",
        "limited-channels",
        "{\"max-channels\": 0}",
    ]);
    let error = broker.declare(&Queue::new("q")).await.unwrap_err();
    assert_transient(&error, "a worker needs 4 channels");

    control(&["clear_user_limits", "limited-channels", "all"]);

    send(&broker, &Queue::new("q"), &["1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queue_limit_is_transient() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    limit_vhost(&test_vhost, "{\"max-queues\": 0}");
    let error = broker.declare(&Queue::new("q")).await.unwrap_err();
    assert_transient(&error, "limit of queues");

    lift_vhost_limits(&test_vhost);

    send(&broker, &Queue::new("q"), &["1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn exclusive_consumer_of_another_connection_is_transient() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queue = Queue::new("q");
    within("declare", broker.declare(&queue)).await.unwrap();
    let raw = test_vhost.raw().await;
    let options = BasicConsumeOptions {
        exclusive: true,
        ..BasicConsumeOptions::default()
    };
    let consuming =
        raw.channel
            .basic_consume("q".into(), "own".into(), options, FieldTable::default());
    let _messages = consuming.await.unwrap();
    let error = consume_and_receive(&broker, &queue, 1).await;
    assert_transient(&error, "another consumer");

    let cancelled = raw
        .channel
        .basic_cancel("own".into(), BasicCancelOptions::default());
    cancelled.await.unwrap();

    publish_one(&broker, to("q", "1")).await.unwrap();
    let consumer = consumer(&broker, &[&queue], 1).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
}

/// Returns the error of consuming from the queue, which exists.
async fn consume_and_receive(broker: &dyn Broker, queue: &Queue, prefetch: u16) -> ServiceError {
    let options = ConsumeOptions::new(vec![queue.clone()], prefetch);
    let consumer = match within("consume", broker.consume(&options)).await {
        Ok(consumer) => consumer,
        Err(error) => return error,
    };
    within("receive", consumer.receive(1)).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queue_that_is_deleted_after_its_declaration_is_transient() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let error = consume_and_receive(&broker, &queue, 1).await;
    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");

    within("declare", broker.declare(&queue)).await.unwrap();
    let raw = test_vhost.raw().await;
    let deleted = raw
        .channel
        .queue_delete("q".into(), QueueDeleteOptions::default());
    deleted.await.unwrap();
    for prefetch in [0, 1] {
        let error = consume_and_receive(&broker, &queue, prefetch).await;
        assert_transient(&error, "next declaration");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn virtual_host_that_is_deleted_after_connecting_is_transient() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    within("declare", broker.declare(&queue)).await.unwrap();
    control(&["delete_vhost", &test_vhost.vhost]);
    let new_client = test_vhost.broker();
    let error = new_client.declare(&queue).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
    wait_until("the server has closed the connection", async || {
        let error = broker.declare(&queue).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        error.to_string().contains("add_vhost")
    })
    .await;

    let vhost = &test_vhost.vhost;
    control(&["add_vhost", vhost]);
    control(&["set_permissions", "-p", vhost, "guest", ".*", ".*", ".*"]);

    within("declare", broker.declare(&queue)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn stream_is_no_queue_of_tasks() {
    let test_vhost = TestVhost::create();
    let raw = RawClient::connect(&test_vhost.url).await;
    let kind = AMQPValue::LongString("stream".into());
    raw.declare("log", table(&[("x-queue-type", kind)])).await;
    let error = consume_and_receive(&test_vhost.broker(), &Queue::new("log"), 0).await;
    assert_eq!(error.kind(), ServiceErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("a stream cannot"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn user_without_access_to_the_virtual_host_is_denied_with_a_remedy() {
    let test_vhost = TestVhost::create();
    let url = create_user(&test_vhost, "stranger");
    control(&["clear_permissions", "-p", &test_vhost.vhost, "stranger"]);
    let error = broker_at(&url).declare(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("set_permissions"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn stopped_virtual_host_is_transient() {
    let test_vhost = TestVhost::create();
    let vhost = &test_vhost.vhost;
    let stop = format!("rabbit_vhost_sup_sup:stop_and_delete_vhost(<<\"{vhost}\">>).");
    control(&["eval", &stop]);
    let broker = test_vhost.broker();
    let error = broker.declare(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unreachable, "{error}");
    assert_transient(&error, "restart_vhost");

    control(&["restart_vhost", "-p", vhost]);

    send(&broker, &Queue::new("q"), &["1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn stopped_queue_is_transient() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queue = Queue::new("q");
    within("declare", broker.declare(&queue)).await.unwrap();
    let vhost = &test_vhost.vhost;
    let stop = format!(
        "rabbit_amqqueue_sup_sup:stop_for_vhost(<<\"{vhost}\">>), \
         rabbit_amqqueue:mark_local_durable_queues_stopped(<<\"{vhost}\">>)."
    );
    control(&["eval", &stop]);
    let error = test_vhost.broker().declare(&queue).await.unwrap_err();
    assert_transient(&error, "the node of this queue");

    let stop = format!("rabbit_vhost_sup_sup:stop_and_delete_vhost(<<\"{vhost}\">>).");
    control(&["eval", &stop]);
    control(&["restart_vhost", "-p", vhost]);

    wait_until("the queue is available", async || {
        test_vhost.broker().declare(&queue).await.is_ok()
    })
    .await;
}
