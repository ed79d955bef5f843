//! Returning deferred deliveries when a consumer stops.

use std::time::{Duration, SystemTime};

use celery_broker_redis::RedisBroker;
use celery_runtime::{Broker, Consumer, Publication, Settlement};
use test_servers::RedisServer;

use crate::support::{
    all, broker, consumer, count, id, ids, queued_count, receive, receive_one, send, tags, task,
    task_with_priority, unacked_count,
};

const HOUR: Duration = Duration::from_secs(3600);

async fn send_numbered(broker: &RedisBroker, total: usize) {
    let message = |number: usize| Publication::to_queue(task(&number.to_string()), "q");
    let batch: Vec<_> = (0..total).map(message).collect();
    for chunk in batch.chunks(1000) {
        all(broker.publish(chunk).await).expect("published");
    }
}

/// Receives all messages and defers the one with number n for n milliseconds
/// more than an hour.
async fn defer_all(consumer: &dyn Consumer, total: usize) {
    let start = SystemTime::now() + HOUR;
    let mut number = 0;
    while number < total as u64 {
        let received = consumer.receive(1000).await.expect("deliveries");
        let mut defer = Vec::with_capacity(received.len());
        for tag in tags(&received) {
            defer.push(Settlement::Defer(
                tag,
                start + Duration::from_millis(number),
            ));
            number += 1;
        }
        all(consumer.settle(&defer).await).expect("deferred");
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn close_returns_20_000_deferred_deliveries_in_order() {
    const TOTAL: usize = 20_000;
    let server = RedisServer::start();
    let broker = broker(&server);
    send_numbered(&broker, TOTAL).await;
    let before = server.command(&["LRANGE", "q", "0", "-1"]).texts();
    let first = consumer(&broker, &["q"]).await;
    defer_all(&*first, TOTAL).await;
    assert_eq!(unacked_count(&server), TOTAL as i64);

    first.close().await.unwrap();

    assert_eq!(unacked_count(&server), 0);
    assert_eq!(server.command(&["LRANGE", "q", "0", "-1"]).texts(), before);
    let next = consumer(&broker, &["q"]).await;
    assert_eq!(ids(&receive(&*next, 3).await), ["0", "1", "2"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn close_returns_each_delivery_to_the_list_of_its_priority_and_queue() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let sent = [("p", 0), ("q", 4), ("p", 9), ("q", 7)].map(|(queue, priority)| {
        let message = task_with_priority(&format!("{queue}{priority}"), priority);
        Publication::to_queue(message, queue)
    });
    all(broker.publish(&sent).await).unwrap();
    let lists = ["p", "q\x06\x163", "p\x06\x169", "q\x06\x166"];
    let before = lists.map(|list| server.command(&["LRANGE", list, "0", "-1"]).texts());
    let first = consumer(&broker, &["p", "q"]).await;
    defer_all(&*first, 4).await;

    first.close().await.unwrap();

    let after = lists.map(|list| server.command(&["LRANGE", list, "0", "-1"]).texts());
    assert_eq!(after, before);
    assert_eq!(unacked_count(&server), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn close_returns_entries_of_another_form_in_order() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["0", "1", "2"]).await;
    let first = consumer(&broker, &["q"]).await;
    let received = receive(&*first, 3).await;
    let far = SystemTime::now() + HOUR;
    let defer = tags(&received).into_iter();
    let defer: Vec<_> = defer.map(|tag| Settlement::Defer(tag, far)).collect();
    all(first.settle(&defer).await).unwrap();
    // The same entry as Python writes it.
    let tag = received[1].tag.as_str();
    let entry = server.command(&["HGET", "unacked", tag]).text();
    let envelope = entry.strip_suffix(",\"\",\"q\"]").unwrap();
    let entry = format!("{envelope}, \"\", \"q\"]");
    server.command(&["HSET", "unacked", tag, &entry]);
    // A malformed message that was deferred is in its quarantine hash.
    server.command(&["RPUSH", "q", "garbage"]);
    let malformed = receive_one(&*first).await.tag;
    all(first.settle(&[Settlement::Defer(malformed, far)]).await).unwrap();

    first.close().await.unwrap();

    assert_eq!(unacked_count(&server), 0);
    assert_eq!(count(&server, &["HLEN", "q.dead.raw"]), 0);
    assert_eq!(server.command(&["LINDEX", "q", "0"]).text(), "garbage");
    server.command(&["LPOP", "q"]);
    let next = consumer(&broker, &["q"]).await;
    assert_eq!(ids(&receive(&*next, 3).await), ["0", "1", "2"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn close_that_fails_names_the_number_of_deliveries_left() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send_numbered(&broker, 3).await;
    let first = consumer(&broker, &["q"]).await;
    defer_all(&*first, 3).await;
    server.command(&["SET", "q", "foreign"]);

    let error = first.close().await.unwrap_err();

    let text = error.to_string();
    assert!(
        text.contains("cannot return 3 deferred deliveries"),
        "{text}"
    );
    assert!(text.contains("(RPUSH q)"), "{text}");
    assert_eq!(unacked_count(&server), 3);
    // The next consumer of the same process still knows them.
    server.command(&["DEL", "q"]);
    let next = consumer(&broker, &["q"]).await;
    next.close().await.unwrap();
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (3, 0));
    let next = consumer(&broker, &["q"]).await;
    assert_eq!(id(&receive_one(&*next).await), "0");
}
