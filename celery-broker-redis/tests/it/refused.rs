//! Commands that the server refuses: no step of a script loses a message.

use std::time::SystemTime;

use celery_broker_redis::RedisBroker;
use celery_runtime::{
    Broker, Consumer, Content, Exchange, Queue, QueueEnd, ServiceErrorKind, Settled, Settlement,
};
use serde_json::json;
use test_servers::RedisServer;

use crate::support::{
    TIMEOUT, ack, all, broker_at, consumer, count, id, queued_count, receive_one, send,
    unacked_count,
};

/// The keys of kombu's transport for the queue `celery`.
const KOMBUS_KEYS: [&str; 4] = ["~celery", "~celery\x06\x16*", "~unacked*", "~_kombu.*"];

/// Returns a server and a broker whose user may run every command.
fn server_with_user() -> (RedisServer, RedisBroker) {
    let server = RedisServer::start();
    set_user(&server, &["on", ">secret", "~*", "&*", "+@all"]);
    let url = format!("redis://worker:secret@127.0.0.1:{}", server.port());
    let broker = broker_at(&url, &json!({}));
    (server, broker)
}

fn set_user(server: &RedisServer, rules: &[&str]) {
    server.command(&[&["ACL", "SETUSER", "worker"], rules].concat());
}

fn deny(server: &RedisServer, command: &str) {
    set_user(server, &[&format!("-{command}")]);
}

fn allow(server: &RedisServer, command: &str) {
    set_user(server, &[&format!("+{command}")]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn fetch_with_a_refused_command_leaves_the_message_in_its_queue() {
    let (server, broker) = server_with_user();
    let consumer = consumer(&broker, &["q"]).await;
    for (command, key) in [
        ("ltrim", "q"),
        ("lindex", "q"),
        ("hdel", "unacked"),
        ("zrem", "unacked_index"),
        ("zadd", "unacked_index"),
        ("hset", "unacked"),
    ] {
        send(&broker, "q", &[command]).await;
        deny(&server, command);

        let error = consumer.receive(8).await.unwrap_err();

        assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
        let named = format!("({} {key})", command.to_uppercase());
        assert!(error.to_string().contains(&named), "{error}");
        assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (1, 0));
        allow(&server, command);
        let delivery = receive_one(&*consumer).await;
        assert_eq!(id(&delivery), command);
        ack(&*consumer, &delivery).await;
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn requeue_with_a_refused_command_leaves_the_message_unacked() {
    let (server, broker) = server_with_user();
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    for (command, key, end) in [
        ("rpush", "q", QueueEnd::Head),
        ("lpush", "q", QueueEnd::Tail),
        ("hdel", "unacked", QueueEnd::Head),
        ("zrem", "unacked_index", QueueEnd::Head),
    ] {
        let tag = receive_one(&*consumer).await.tag;
        let requeue = [Settlement::Requeue(tag, end)];
        deny(&server, command);

        let error = all(consumer.settle(&requeue).await).unwrap_err();

        assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
        let named = format!("({} {key})", command.to_uppercase());
        assert!(error.to_string().contains(&named), "{error}");
        assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 1));
        allow(&server, command);
        assert_eq!(
            all(consumer.settle(&requeue).await).unwrap(),
            [Settled::Done]
        );
        assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (1, 0));
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn due_delivery_with_a_refused_command_stays_due() {
    let (server, broker) = server_with_user();
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    for (command, key) in [("hget", "unacked"), ("zadd", "unacked_index")] {
        defer_to_now(&*consumer).await;
        deny(&server, command);

        let error = consumer.receive(8).await.unwrap_err();

        let named = format!("({} {key})", command.to_uppercase());
        assert!(error.to_string().contains(&named), "{error}");
        allow(&server, command);
    }
    assert_eq!(id(&receive_one(&*consumer).await), "1");
}

async fn defer_to_now(consumer: &dyn Consumer) {
    let tag = receive_one(consumer).await.tag;
    let defer = [Settlement::Defer(tag, SystemTime::now())];
    all(consumer.settle(&defer).await).expect("deferred");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn requeue_to_a_key_of_another_type_leaves_the_message_unacked() {
    let (server, broker) = server_with_user();
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    let tag = receive_one(&*consumer).await.tag;
    server.command(&["SET", "q", "foreign"]);

    let requeue = [Settlement::Requeue(tag.clone(), QueueEnd::Head)];
    let error = all(consumer.settle(&requeue).await).unwrap_err();

    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("(RPUSH q)"), "{error}");
    assert_eq!(unacked_count(&server), 1);
    // Its first restore has then ended.
    consumer.close().await.unwrap();
    server.command(&["ZADD", "unacked_index", "1000", tag.as_str()]);
    let error = broker.restore_abandoned().await.unwrap_err();
    assert!(error.to_string().contains("(RPUSH q)"), "{error}");
    assert_eq!(unacked_count(&server), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn restore_to_two_queues_pushes_to_both_or_none() {
    let (server, broker) = server_with_user();
    for queue in ["a", "b"] {
        let queue = Queue::new(queue).bound_to(Exchange::direct("media"), "image");
        broker.declare(&queue).await.unwrap();
    }
    let entry = r#"[{"body": "W10=", "headers": {}, "properties": {}}, "media", "image"]"#;
    server.command(&["HSET", "unacked", "tag", entry]);
    server.command(&["ZADD", "unacked_index", "1000", "tag"]);
    server.command(&["SET", "b", "foreign"]);

    let error = broker.restore_abandoned().await.unwrap_err();

    assert!(error.to_string().contains("(RPUSH b)"), "{error}");
    assert_eq!(count(&server, &["LLEN", "a"]), 0);
    assert_eq!(unacked_count(&server), 1);
    server.command(&["DEL", "b"]);
    assert_eq!(broker.restore_abandoned().await.unwrap(), 1);
    assert_eq!(
        (queued_count(&server, "a"), queued_count(&server, "b")),
        (1, 1)
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn malformed_entry_without_quarantine_stays_unacked() {
    let (server, broker) = server_with_user();
    server.command(&["HSET", "unacked", "tag", "garbage"]);
    server.command(&["ZADD", "unacked_index", "1000", "tag"]);
    for (command, key) in [
        ("hset", "celery.dead.raw"),
        ("hdel", "unacked"),
        ("zrem", "unacked_index"),
    ] {
        deny(&server, command);
        let error = broker.restore_abandoned().await.unwrap_err();
        let named = format!("({} {key})", command.to_uppercase());
        assert!(error.to_string().contains(&named), "{error}");
        assert_eq!(unacked_count(&server), 1);
        assert_eq!(count(&server, &["HLEN", "celery.dead.raw"]), 0);
        allow(&server, command);
    }
    assert_eq!(broker.restore_abandoned().await.unwrap(), 1);
    assert_eq!(count(&server, &["HLEN", "celery.dead.raw"]), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn full_memory_loses_no_message() {
    let (server, broker) = server_with_user();
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);

    let delivery = receive_one(&*consumer).await;

    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 1));
    let defer = [Settlement::Defer(
        delivery.tag.clone(),
        SystemTime::now() + TIMEOUT,
    )];
    let error = all(consumer.settle(&defer).await).unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(!error.is_in_doubt(), "{error}");
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 1));
    let requeue = [Settlement::Requeue(delivery.tag, QueueEnd::Head)];
    all(consumer.settle(&requeue).await).unwrap();
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (1, 0));
    // Acknowledging frees memory.
    ack(&*consumer, &receive_one(&*consumer).await).await;
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 0));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn permission_for_kombus_keys_suffices_for_valid_messages() {
    let (server, broker) = server_with_user();
    set_user(&server, &[&["resetkeys"], KOMBUS_KEYS.as_slice()].concat());
    let consumer = consumer(&broker, &["celery"]).await;
    send(&broker, "celery", &["1", "2"]).await;
    let delivery = receive_one(&*consumer).await;
    let requeue = [Settlement::Requeue(delivery.tag, QueueEnd::Tail)];
    all(consumer.settle(&requeue).await).unwrap();
    for expected in ["2", "1"] {
        let delivery = receive_one(&*consumer).await;
        assert_eq!(id(&delivery), expected);
        ack(&*consumer, &delivery).await;
    }
    assert_eq!(broker.restore_abandoned().await.unwrap(), 0);

    server.command(&["LPUSH", "celery", "garbage"]);
    let error = consumer.receive(8).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("celery.dead.raw"), "{error}");
    assert_eq!(queued_count(&server, "celery"), 1);

    set_user(&server, &["~celery.dead*"]);
    let delivery = receive_one(&*consumer).await;
    assert!(matches!(&delivery.content, Content::Malformed { raw, .. } if raw == "garbage"));
    assert_eq!(count(&server, &["HLEN", "celery.dead.raw"]), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn malformed_message_stays_in_its_list_until_it_is_quarantined() {
    let (server, broker) = server_with_user();
    let consumer = consumer(&broker, &["q"]).await;
    for (command, key) in [("hset", "q.dead.raw"), ("ltrim", "q")] {
        server.command(&["LPUSH", "q", "garbage"]);
        deny(&server, command);
        let error = consumer.receive(8).await.unwrap_err();
        let named = format!("({} {key})", command.to_uppercase());
        assert!(error.to_string().contains(&named), "{error}");
        assert_eq!(queued_count(&server, "q"), 1);
        assert_eq!(count(&server, &["HLEN", "q.dead.raw"]), 0);
        allow(&server, command);
        ack(&*consumer, &receive_one(&*consumer).await).await;
    }
    server.command(&["LPUSH", "q", "garbage"]);
    server.command(&["SET", "q.dead.raw", "foreign"]);
    let error = consumer.receive(8).await.unwrap_err();
    assert!(error.to_string().contains("(HSET q.dead.raw)"), "{error}");
    assert_eq!(queued_count(&server, "q"), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn malformed_message_that_cannot_be_quarantined_does_not_block_other_queues() {
    let (server, broker) = server_with_user();
    let consumer = consumer(&broker, &["bad", "good"]).await;
    server.command(&["LPUSH", "bad", "garbage"]);
    server.command(&["SET", "bad.dead.raw", "foreign"]);
    send(&broker, "good", &["1", "2"]).await;
    let mut received = Vec::new();
    // Every second call reads the malformed message.
    for _ in 0..4 {
        let deliveries = consumer.receive(1).await.unwrap_or_default();
        received.extend(deliveries.iter().map(id));
    }
    assert_eq!(received, ["1", "2"]);
    assert_eq!(queued_count(&server, "bad"), 1);
}
