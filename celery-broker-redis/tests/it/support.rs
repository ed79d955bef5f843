//! Shared helpers of the tests.

use std::sync::Arc;
use std::time::Duration;

use celery_broker_redis::{RedisBroker, RedisOptions};
use celery_protocol::{Embed, Message, Serializer, TaskHeaders, encode_body};
use celery_runtime::{
    Broker, ConsumeOptions, Consumer, Content, Delivery, DeliveryTag, Publication, Queue,
    Settlement,
};
use serde_json::{Value, json};
use test_servers::RedisServer;

/// The time limit of expected events. No test waits for it to pass.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn broker(server: &RedisServer) -> RedisBroker {
    broker_with(server, &json!({}))
}

pub(crate) fn broker_with(server: &RedisServer, options: &Value) -> RedisBroker {
    broker_at(&server.url(), options)
}

pub(crate) fn broker_at(url: &str, options: &Value) -> RedisBroker {
    let options = options.as_object().expect("an object");
    RedisBroker::new(RedisOptions::parse(url, options).expect("options"))
}

/// Returns a task message with this id.
pub(crate) fn task(id: &str) -> Message {
    let body = encode_body(Serializer::Json, &(2, 3), &(), &Embed::default()).expect("a body");
    Message::task(
        TaskHeaders::new("tasks.add", id.to_owned()),
        Serializer::Json,
        body,
    )
}

pub(crate) fn task_with_priority(id: &str, priority: u8) -> Message {
    let mut message = task(id);
    message.properties.priority = Some(priority);
    message
}

pub(crate) async fn send(broker: &RedisBroker, queue: &str, ids: &[&str]) {
    let batch: Vec<_> = ids
        .iter()
        .map(|id| Publication::to_queue(task(id), queue))
        .collect();
    for outcome in broker.publish(&batch).await {
        outcome.expect("published");
    }
}

pub(crate) async fn consumer(broker: &RedisBroker, queues: &[&str]) -> Arc<dyn Consumer> {
    let queues = queues.iter().map(|queue| Queue::from(*queue)).collect();
    broker
        .consume(&ConsumeOptions::new(queues, 8))
        .await
        .expect("a consumer")
}

/// Receives until there are `count` deliveries.
pub(crate) async fn receive(consumer: &dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut received = Vec::new();
    while received.len() < count {
        let more = tokio::time::timeout(LIMIT, consumer.receive(count - received.len())).await;
        received.extend(more.expect("in time").expect("a connection"));
    }
    received
}

pub(crate) async fn receive_one(consumer: &dyn Consumer) -> Delivery {
    receive(consumer, 1).await.remove(0)
}

pub(crate) async fn ack(consumer: &dyn Consumer, delivery: &Delivery) {
    let ack = [Settlement::Ack(delivery.tag.clone())];
    all(consumer.settle(&ack).await).expect("settled");
}

/// Returns all outcomes of a batch, or its first error.
pub(crate) fn all<T, E>(answers: Vec<Result<T, E>>) -> Result<Vec<T>, E> {
    answers.into_iter().collect()
}

pub(crate) fn id(delivery: &Delivery) -> String {
    match &delivery.content {
        Content::Message(message) => message_id(message),
        Content::Malformed { error, .. } => panic!("malformed: {error}"),
    }
}

pub(crate) fn message_id(message: &Message) -> String {
    let task = message.headers.task().expect("headers").expect("a task");
    task.id.into_owned()
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(id).collect()
}

pub(crate) fn tags(deliveries: &[Delivery]) -> Vec<DeliveryTag> {
    deliveries
        .iter()
        .map(|delivery| delivery.tag.clone())
        .collect()
}

pub(crate) fn count(server: &RedisServer, command: &[&str]) -> i64 {
    server.command(command).integer()
}

/// Returns the number of messages in the four lists of a queue.
pub(crate) fn queued_count(server: &RedisServer, queue: &str) -> i64 {
    let lists = ["", "\x06\x163", "\x06\x166", "\x06\x169"].map(|end| format!("{queue}{end}"));
    lists
        .iter()
        .map(|list| count(server, &["LLEN", list]))
        .sum()
}

pub(crate) fn unacked_count(server: &RedisServer) -> i64 {
    let entries = count(server, &["HLEN", "unacked"]);
    assert_eq!(
        entries,
        count(server, &["ZCARD", "unacked_index"]),
        "entries and index"
    );
    entries
}

/// Returns every key of the server, sorted, without the lock of the restore.
pub(crate) fn keys(server: &RedisServer) -> Vec<String> {
    let mut keys = server.command(&["KEYS", "*"]).texts();
    keys.retain(|key| key != "unacked_mutex");
    keys.sort();
    keys
}

/// Waits until the server's state is as expected.
pub(crate) async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waited)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}
