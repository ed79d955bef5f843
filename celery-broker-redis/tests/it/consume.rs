//! Fetching messages: atomic, ordered, fair, on one connection.

use std::sync::Arc;

use celery_runtime::{Broker, Content, Publication, ServiceErrorKind, Settlement};
use serde_json::{Value, json};
use test_servers::RedisServer;

use crate::support::{
    TIMEOUT, ack, all, broker, broker_with, consumer, count, id, ids, keys, queued_count, receive,
    receive_one, send, tags, task, task_with_priority, unacked_count, wait_until,
};

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn fetched_message_is_recorded_as_in_kombu() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "celery", &["1", "2", "3"]).await;
    let raw = server.command(&["LINDEX", "celery", "-1"]).text();
    let consumer = consumer(&broker, &["celery"]).await;

    let received = receive(&*consumer, 2).await;

    assert_eq!(ids(&received), ["1", "2"]);
    assert_eq!(&*received[0].queue, "celery");
    assert!(!received[0].redelivered);
    assert_eq!(
        (queued_count(&server, "celery"), unacked_count(&server)),
        (1, 2)
    );
    let entry = server
        .command(&["HGET", "unacked", received[0].tag.as_str()])
        .text();
    let entry: Value = serde_json::from_str(&entry).unwrap();
    let envelope: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(entry, json!([envelope, "", "celery"]));
    let score: f64 = server
        .command(&["ZSCORE", "unacked_index", received[0].tag.as_str()])
        .text()
        .parse()
        .unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!((score - now.as_secs_f64()).abs() < 60.0, "{score}");

    ack(&*consumer, &received[0]).await;
    ack(&*consumer, &received[1]).await;
    assert_eq!(
        (queued_count(&server, "celery"), unacked_count(&server)),
        (1, 0)
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn priority_applies_across_queues() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let batch = [
        Publication::to_queue(task_with_priority("a9", 9), "a"),
        Publication::to_queue(task_with_priority("a0", 0), "a"),
        Publication::to_queue(task_with_priority("b3", 3), "b"),
        Publication::to_queue(task_with_priority("b0", 0), "b"),
        Publication::to_queue(task_with_priority("a0-later", 2), "a"),
    ];
    for outcome in broker.publish(&batch).await {
        outcome.unwrap();
    }
    let consumer = consumer(&broker, &["a", "b"]).await;
    let received = receive(&*consumer, 5).await;
    assert_eq!(ids(&received), ["a0", "b0", "a0-later", "b3", "a9"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn long_queue_does_not_starve_a_short_one() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let many: Vec<String> = (0..100).map(|n| format!("long-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    send(&broker, "long", &many).await;
    send(&broker, "short", &["short-0", "short-1"]).await;
    let consumer = consumer(&broker, &["long", "short"]).await;
    // In one call, and in calls for one message.
    let received = receive(&*consumer, 2).await;
    assert_eq!(ids(&received), ["long-0", "short-0"]);
    let first = id(&receive_one(&*consumer).await);
    let second = id(&receive_one(&*consumer).await);
    assert_eq!([first, second], ["long-1", "short-1"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn priority_strategy_reads_queues_in_configured_order() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"queue_order_strategy": "priority"}));
    send(&broker, "second", &["s1", "s2"]).await;
    send(&broker, "first", &["f1", "f2"]).await;
    let consumer = consumer(&broker, &["first", "second"]).await;
    assert_eq!(ids(&receive(&*consumer, 3).await), ["f1", "f2", "s1"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn message_wakes_a_waiting_consumer() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let consumer = consumer(&broker, &["a", "b"]).await;
    // Fifty messages: each lost notification would cost a safety poll, and fifty
    // polls exceed the limit.
    for number in 0..50 {
        let waiting = Arc::clone(&consumer);
        let receiving = tokio::spawn(async move { receive_one(&*waiting).await });
        tokio::task::yield_now().await;
        let queue = if number % 2 == 0 { "a" } else { "b" };
        send(&broker, queue, &[&number.to_string()]).await;
        let delivery = tokio::time::timeout(TIMEOUT, receiving)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(id(&delivery), number.to_string());
        ack(&*consumer, &delivery).await;
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn many_queues_share_one_connection() {
    let server = RedisServer::start();
    let names: Vec<String> = (0..64).map(|n| format!("queue-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let before = clients(&server);
    let broker = broker(&server);
    let consumer = consumer(&broker, &names).await;
    let waiting = Arc::clone(&consumer);
    let receiving = tokio::spawn(async move { receive_one(&*waiting).await });
    wait_until("the consumer waits", async || {
        tracking_clients(&server) == 1
    })
    .await;
    // The waiting connection, and pooled ones for the restore and this test.
    assert!(clients(&server) - before <= 3, "{}", clients(&server));
    send(&broker, "queue-63", &["last"]).await;
    assert_eq!(id(&receiving.await.unwrap()), "last");
}

fn clients(server: &RedisServer) -> usize {
    server.command(&["CLIENT", "LIST"]).text().lines().count()
}

fn tracking_clients(server: &RedisServer) -> usize {
    let list = server.command(&["CLIENT", "LIST"]).text();
    list.lines()
        .filter(|line| line.contains(" flags=t"))
        .count()
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn server_without_tracking_is_polled() {
    // ACL rules forbid the command, as some proxies do.
    let server = RedisServer::builder()
        .setting(
            "user",
            &[
                "plain",
                "on",
                ">word",
                "~*",
                "&*",
                "+@all",
                "-client|tracking",
            ],
        )
        .start();
    let url = server.url().replace("redis://", "redis://plain:word@");
    let broker = crate::support::broker_at(&url, &json!({}));
    let consumer = consumer(&broker, &["q"]).await;
    let waiting = Arc::clone(&consumer);
    let receiving = tokio::spawn(async move { receive_one(&*waiting).await });
    send(&broker, "q", &["1"]).await;
    assert_eq!(id(&receiving.await.unwrap()), "1");
    assert_eq!(tracking_clients(&server), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn interrupt_ends_current_and_later_receives() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let consumer = consumer(&broker, &["q"]).await;
    let waiting = Arc::clone(&consumer);
    let receiving = tokio::spawn(async move { waiting.receive(1).await });
    consumer.interrupt();
    assert!(receiving.await.unwrap().unwrap().is_empty());
    send(&broker, "q", &["1"]).await;
    assert!(consumer.receive(1).await.unwrap().is_empty());
    assert_eq!((queued_in_q(&server), unacked_count(&server)), (1, 0));
}

fn queued_in_q(server: &RedisServer) -> i64 {
    queued_count(server, "q")
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn malformed_message_is_quarantined_and_delivered() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let garbage: [&[u8]; 6] = [
        b"not json",
        b"\xff\xfe\x00",
        b"{\"body\": \"trunca",
        b"[1, 2]",
        b"{\"body\": \"x\", \"headers\": 5, \"properties\": {}}",
        b"",
    ];
    for bytes in garbage {
        server.command(&[b"LPUSH".as_slice(), b"q", bytes]);
    }
    send(&broker, "q", &["real"]).await;
    let consumer = consumer(&broker, &["q"]).await;

    let received = receive(&*consumer, 7).await;

    let mut raws = Vec::new();
    for delivery in &received {
        match &delivery.content {
            Content::Malformed { raw, .. } => raws.push(raw.to_vec()),
            Content::Message(_) => assert_eq!(id(delivery), "real"),
        }
    }
    assert_eq!(raws, garbage.map(<[u8]>::to_vec));
    assert_eq!(unacked_count(&server), 1, "only the real one");
    assert_eq!(count(&server, &["HLEN", "q.dead.raw"]), 6);

    let settled: Vec<_> = tags(&received).into_iter().map(Settlement::Ack).collect();
    all(consumer.settle(&settled).await).unwrap();
    assert!(keys(&server).is_empty(), "{:?}", keys(&server));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn message_nested_too_deeply_for_lua_is_malformed_and_settled() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    server.command(&["LPUSH", "q", &deep]);
    let consumer = consumer(&broker, &["q"]).await;
    let delivery = receive_one(&*consumer).await;
    assert!(matches!(&delivery.content, Content::Malformed { raw, .. } if raw.len() == 200_000));
    ack(&*consumer, &delivery).await;
    assert!(keys(&server).is_empty());
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn message_valid_only_for_lua_is_malformed_and_settled() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let odd = r#"{"body": "*", "headers": {}, "properties": {"body_encoding": "base64"}}"#;
    server.command(&["LPUSH", "q", odd]);
    let consumer = consumer(&broker, &["q"]).await;
    let delivery = receive_one(&*consumer).await;
    assert!(matches!(&delivery.content, Content::Malformed { raw, .. } if raw == odd));
    assert_eq!(unacked_count(&server), 1);
    ack(&*consumer, &delivery).await;
    assert_eq!(unacked_count(&server), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn quarantined_message_of_a_dead_worker_is_redelivered() {
    let server = RedisServer::start();
    let broker = broker(&server);
    server.command(&["LPUSH", "q", "garbage"]);
    let dead = consumer(&broker, &["q"]).await;
    let first = receive_one(&*dead).await;
    drop(dead);

    let alive = consumer(&broker, &["q"]).await;
    let second = receive_one(&*alive).await;

    assert!(matches!(&second.content, Content::Malformed { raw, .. } if raw == "garbage"));
    assert_ne!(first.tag, second.tag);
    // The tag of the dead consumer no longer settles the message.
    ack(&*alive, &first).await;
    assert_eq!(count(&server, &["HLEN", "q.dead.raw"]), 1);
    ack(&*alive, &second).await;
    assert!(keys(&server).is_empty());
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn list_key_of_wrong_type_loses_no_message() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["1"]).await;
    // Found after the first message was taken.
    server.command(&["SET", "q\x06\x163", "foreign"]);
    let consumer = consumer(&broker, &["q"]).await;
    assert_eq!(ids(&consumer.receive(8).await.unwrap()), ["1"]);
    assert_eq!(unacked_count(&server), 1);
    let error = consumer.receive(8).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid);
    assert!(error.to_string().contains("global_keyprefix"), "{error}");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn bookkeeping_key_of_wrong_type_loses_no_message() {
    for key in ["unacked", "unacked_index"] {
        let server = RedisServer::start();
        let broker = broker(&server);
        let consumer = consumer(&broker, &["q"]).await;
        send(&broker, "q", &["1"]).await;
        server.command(&["SET", key, "foreign"]);
        let error = consumer.receive(8).await.unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{key}: {error}");
        assert!(error.to_string().contains(&format!(" {key})")), "{error}");
        assert_eq!(queued_count(&server, "q"), 1, "{key}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn large_messages_are_fetched_in_bounded_replies() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mut message = task("huge");
    message.body = vec![b'x'; 8 << 20].into();
    let batch = vec![Publication::to_queue(message, "q"); 4];
    for outcome in broker.publish(&batch).await {
        outcome.unwrap();
    }
    let consumer = consumer(&broker, &["q"]).await;
    let first = consumer.receive(100).await.unwrap();
    assert!(first.len() < 4, "{}", first.len());
    let rest = receive(&*consumer, 4 - first.len()).await;
    assert_eq!(first.len() + rest.len(), 4);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn flushed_script_is_loaded_again() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
    server.command(&["SCRIPT", "FLUSH"]);
    send(&broker, "q", &["2"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "2");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn closed_broker_returns_closed_errors() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let consumer = consumer(&broker, &["q"]).await;
    let waiting = Arc::clone(&consumer);
    let receiving = tokio::spawn(async move { waiting.receive(1).await });
    broker.close().await;
    let error = receiving.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Closed);
    let error = broker.depth(&"q".into()).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Closed);
}
