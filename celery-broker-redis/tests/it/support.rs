//! Shared helpers of the tests.

use std::sync::Arc;

use celery_broker_redis::{RedisBroker, RedisOptions};
use celery_protocol::{Embed, Message, Serializer, TaskHeaders, encode_body};
use celery_runtime::{
    Broker, ConsumeOptions, Consumer, Delivery, DeliveryTag, Publication, Queue, Settlement,
};
use serde_json::{Value, json};
use test_servers::RedisServer;

pub(crate) use test_support::{
    TIMEOUT, all, id, ids, message_id, receive, receive_one, wait_until,
};

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

/// Returns the options of a worker, for consumers that follow each other.
pub(crate) fn worker(queues: &[&str]) -> ConsumeOptions {
    let queues = queues.iter().map(|queue| Queue::from(*queue)).collect();
    ConsumeOptions::new(queues, 8)
}

/// Starts the consumer of a worker of its own.
pub(crate) async fn consumer(broker: &RedisBroker, queues: &[&str]) -> Arc<dyn Consumer> {
    consumer_of(broker, &worker(queues)).await
}

pub(crate) async fn consumer_of(
    broker: &RedisBroker,
    worker: &ConsumeOptions,
) -> Arc<dyn Consumer> {
    broker.consume(worker).await.expect("a consumer")
}

pub(crate) async fn ack(consumer: &dyn Consumer, delivery: &Delivery) {
    let ack = [Settlement::Ack(delivery.tag.clone())];
    all(consumer.settle(&ack).await).expect("settled");
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
    keys.retain(|key| !["unacked_mutex", "unacked.owners"].contains(&key.as_str()));
    keys.sort();
    keys
}
