//! Restoring the deliveries of dead workers.

use celery_runtime::{Broker, Content, Exchange, Queue};
use serde_json::{Value, json};
use test_servers::RedisServer;

use crate::support::{
    broker, broker_with, consumer, count, id, queued_count, receive_one, send, unacked_count,
    wait_until,
};

/// An entry as kombu writes it, with the tag that the producer chose.
fn kombu_entry(exchange: &str, routing_key: &str) -> String {
    json!([
        {
            "body": "W1tdLCB7fSwge31d",
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": "tasks.add", "id": "from-python", "big": 12345678901234567890u64},
            "properties": {
                "correlation_id": "from-python", "reply_to": "r", "delivery_mode": 2,
                "delivery_info": {"exchange": exchange, "routing_key": routing_key},
                "priority": 4, "body_encoding": "base64", "delivery_tag": "kombus-tag",
            },
        },
        exchange,
        routing_key,
    ])
    .to_string()
}

fn add_expired_entry(server: &RedisServer, tag: &str, entry: &str) {
    server.command(&["HSET", "unacked", tag, entry]);
    server.command(&["ZADD", "unacked_index", "1000", tag]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn expired_delivery_is_restored_to_the_head_of_its_queue() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["held", "waiting"]).await;
    let dead = consumer(&broker, &["q"]).await;
    let delivery = receive_one(&*dead).await;
    dead.close().await.unwrap();
    assert_eq!(
        broker.restore_abandoned().await.unwrap(),
        0,
        "the timeout has not passed"
    );
    server.command(&["ZADD", "unacked_index", "1000", delivery.tag.as_str()]);

    assert_eq!(broker.restore_abandoned().await.unwrap(), 1);
    assert_eq!(count(&server, &["EXISTS", "unacked_mutex"]), 0);

    let alive = consumer(&broker, &["q"]).await;
    let again = receive_one(&*alive).await;
    assert_eq!(id(&again), "held");
    assert!(again.redelivered);
    assert_ne!(again.tag, delivery.tag);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn new_consumer_restores_automatically() {
    let server = RedisServer::start();
    let broker = broker(&server);
    add_expired_entry(&server, "kombus-tag", &kombu_entry("", "q"));
    let consumer = consumer(&broker, &["q"]).await;
    let delivery = receive_one(&*consumer).await;
    assert_eq!(id(&delivery), "from-python");
    assert!(delivery.redelivered);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn restored_kombu_entry_keeps_its_content_and_follows_bindings() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let queue = Queue::new("q").bound_to(Exchange::direct("media"), "image");
    broker.declare(&queue).await.unwrap();
    add_expired_entry(&server, "kombus-tag", &kombu_entry("media", "image"));

    assert_eq!(broker.restore_abandoned().await.unwrap(), 1);

    let envelope = server.command(&["LINDEX", "q\x06\x163", "0"]).text();
    let envelope: Value = serde_json::from_str(&envelope).unwrap();
    assert_eq!(envelope["headers"]["redelivered"], true);
    assert_eq!(envelope["headers"]["big"], 12345678901234567890u64);
    assert_eq!(envelope["properties"]["delivery_info"]["redelivered"], true);
    assert_eq!(envelope["properties"]["delivery_tag"], "kombus-tag");
    assert_eq!(envelope["properties"]["reply_to"], "r");
    assert_eq!(envelope["body"], "W1tdLCB7fSwge31d");
    assert_eq!(unacked_count(&server), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn restored_message_without_binding_is_kept() {
    let server = RedisServer::start();
    let broker = broker(&server);
    add_expired_entry(&server, "kombus-tag", &kombu_entry("forgotten", "key"));
    assert_eq!(broker.restore_abandoned().await.unwrap(), 1);
    assert_eq!(queued_count(&server, "key"), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn malformed_entry_does_not_block_the_restore() {
    let server = RedisServer::start();
    let broker = broker(&server);
    for (number, garbage) in ["not json", "[]", "{}", "[5,\"\",\"q\"]", ""]
        .iter()
        .enumerate()
    {
        add_expired_entry(&server, &format!("bad-{number}"), garbage);
    }
    add_expired_entry(&server, "kombus-tag", &kombu_entry("", "q"));
    server.command(&["ZADD", "unacked_index", "1000", "tag-without-entry"]);

    assert_eq!(broker.restore_abandoned().await.unwrap(), 6);

    assert_eq!(unacked_count(&server), 0);
    assert_eq!(queued_count(&server, "q"), 1);
    assert_eq!(count(&server, &["HLEN", "celery.dead.raw"]), 5);
    // A consumer of that queue receives the malformed entries.
    let consumer = consumer(&broker, &["celery"]).await;
    let delivery = receive_one(&*consumer).await;
    assert!(matches!(delivery.content, Content::Malformed { .. }));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn restore_stops_at_the_configured_limit() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"unacked_restore_limit": 50}));
    for number in 0..70 {
        add_expired_entry(&server, &format!("tag-{number}"), &kombu_entry("", "q"));
    }
    assert_eq!(broker.restore_abandoned().await.unwrap(), 50);
    assert_eq!(
        (queued_count(&server, "q"), unacked_count(&server)),
        (50, 20)
    );
    assert_eq!(broker.restore_abandoned().await.unwrap(), 20);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn locked_restore_does_nothing() {
    let server = RedisServer::start();
    let broker = broker(&server);
    add_expired_entry(&server, "kombus-tag", &kombu_entry("", "q"));
    server.command(&["SET", "unacked_mutex", "foreign"]);
    assert_eq!(broker.restore_abandoned().await.unwrap(), 0);
    assert_eq!(server.command(&["GET", "unacked_mutex"]).text(), "foreign");
    assert_eq!(unacked_count(&server), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn restore_schedule_stops_with_its_consumer() {
    let server = RedisServer::start();
    let options = json!({"unacked_restore_interval": 0.05, "unacked_restore_throttle": 1});
    let broker = broker_with(&server, &options);
    let restoring = consumer(&broker, &["q"]).await;
    add_expired_entry(&server, "first", &kombu_entry("", "q"));
    wait_until("it is restored", async || queued_count(&server, "q") == 1).await;
    restoring.close().await.unwrap();
    add_expired_entry(&server, "second", &kombu_entry("", "q"));
    assert_eq!(
        broker.restore_abandoned().await.unwrap(),
        1,
        "no schedule has restored it"
    );
}
