//! Acknowledging, rejecting, requeueing, deferring.

use std::time::{Duration, SystemTime};

use celery_runtime::{Broker, Content, Publication, QueueEnd, Settled, Settlement};
use test_servers::RedisServer;

use crate::support::{
    ack, all, broker, consumer, count, id, ids, keys, message_id, queued_count, receive,
    receive_one, send, tags, task_with_priority, unacked_count,
};

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn batch_settled_twice_is_settled_once() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["ack", "reject", "head", "tail", "keep"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    let received = tags(&receive(&*consumer, 4).await);
    let batch = [
        Settlement::Ack(received[0].clone()),
        Settlement::Reject(received[1].clone()),
        Settlement::Requeue(received[2].clone(), QueueEnd::Head),
        Settlement::Requeue(received[3].clone(), QueueEnd::Tail),
    ];
    let first = all(consumer.settle(&batch).await).unwrap();
    let second = all(consumer.settle(&batch).await).unwrap();
    assert_eq!(first, [Settled::Done; 4]);
    assert_eq!(second, [Settled::Gone; 4]);

    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (3, 0));
    let again = receive(&*consumer, 3).await;
    assert_eq!(ids(&again), ["head", "keep", "tail"]);
    let redelivered: Vec<_> = again.iter().map(|delivery| delivery.redelivered).collect();
    assert_eq!(redelivered, [true, false, true]);
    let Content::Message(message) = &again[0].content else {
        panic!("no message")
    };
    let flag = message
        .headers
        .find("redelivered")
        .unwrap()
        .expect("kombu's other flag");
    assert_eq!(flag.as_json(), Some("true"));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn requeued_message_keeps_its_priority() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let sent = [Publication::to_queue(task_with_priority("1", 7), "q")];
    broker.publish(&sent).await.remove(0).unwrap();
    let consumer = consumer(&broker, &["q"]).await;
    let tag = receive_one(&*consumer).await.tag;
    all(consumer
        .settle(&[Settlement::Requeue(tag, QueueEnd::Tail)])
        .await)
    .unwrap();
    assert_eq!(keys(&server), ["q\x06\x166"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn requeued_malformed_message_is_unchanged() {
    let server = RedisServer::start();
    let broker = broker(&server);
    server.command(&["LPUSH", "q", "garbage"]);
    let consumer = consumer(&broker, &["q"]).await;
    let tag = receive_one(&*consumer).await.tag;
    all(consumer
        .settle(&[Settlement::Requeue(tag, QueueEnd::Head)])
        .await)
    .unwrap();
    assert_eq!(
        server.command(&["LRANGE", "q", "0", "-1"]).texts(),
        ["garbage"]
    );
    assert_eq!(keys(&server), ["q"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn requeue_of_a_settled_delivery_pushes_nothing() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["1"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    let tag = receive_one(&*consumer).await.tag;
    server.command(&["HDEL", "unacked", tag.as_str()]);
    all(consumer
        .settle(&[Settlement::Requeue(tag, QueueEnd::Head)])
        .await)
    .unwrap();
    assert_eq!(queued_count(&server, "q"), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn delivery_of_one_consumer_is_settled_by_another() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["1"]).await;
    let broken = consumer(&broker, &["q"]).await;
    let delivery = receive_one(&*broken).await;
    drop(broken);
    let next = consumer(&broker, &["q"]).await;
    assert!(broker.capabilities().settles_after_reconnect);
    ack(&*next, &delivery).await;
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 0));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn deferred_message_is_redelivered_when_due() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["later", "soon"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    let received = tags(&receive(&*consumer, 2).await);
    let now = SystemTime::now();
    let (later, soon) = (
        now + Duration::from_secs(3600),
        now + Duration::from_millis(200),
    );
    let batch = [
        Settlement::Defer(received[0].clone(), later),
        Settlement::Defer(received[1].clone(), soon),
    ];
    all(consumer.settle(&batch).await).unwrap();
    // No worker restores it before it is due, and any worker does shortly after:
    // the visibility timeout, an hour, passes 10 seconds after the due time.
    let score = server
        .command(&["ZSCORE", "unacked_index", received[0].as_str()])
        .text();
    let due = later
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let abandoned = score.parse::<f64>().unwrap() + 3600.0;
    assert!((abandoned - due - 10.0).abs() < 0.01, "{abandoned} {due}");

    let delivery = receive_one(&*consumer).await;

    assert_eq!(id(&delivery), "soon");
    assert!(SystemTime::now() >= soon);
    ack(&*consumer, &delivery).await;
    assert_eq!(unacked_count(&server), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn deferred_message_survives_a_broken_consumer() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["1"]).await;
    let broken = consumer(&broker, &["q"]).await;
    let tag = receive_one(&*broken).await.tag;
    all(broken
        .settle(&[Settlement::Defer(tag, SystemTime::now())])
        .await)
    .unwrap();
    drop(broken);
    let next = consumer(&broker, &["q"]).await;
    assert_eq!(id(&receive_one(&*next).await), "1");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn deferred_message_settled_elsewhere_is_not_redelivered() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["gone", "there"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    let gone = receive_one(&*consumer).await.tag;
    all(consumer
        .settle(&[Settlement::Defer(gone.clone(), SystemTime::now())])
        .await)
    .unwrap();
    server.command(&["HDEL", "unacked", gone.as_str()]);
    server.command(&["ZREM", "unacked_index", gone.as_str()]);
    assert_eq!(id(&receive_one(&*consumer).await), "there");
    assert_eq!(
        unacked_count(&server),
        1,
        "parking did not bring back the index"
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn close_returns_deferred_messages_and_keeps_the_rest() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(
        &broker,
        "q",
        &["running", "deferred", "deferred too", "waiting"],
    )
    .await;
    let first = consumer(&broker, &["q"]).await;
    let received = tags(&receive(&*first, 3).await);
    let far = SystemTime::now() + Duration::from_secs(3600);
    let deferred = [1, 2].map(|at: usize| Settlement::Defer(received[at].clone(), far));
    all(first.settle(&deferred).await).unwrap();

    first.close().await.unwrap();
    first.close().await.unwrap();

    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (3, 1));
    // A closed consumer settles nothing.
    all(first.settle(&[Settlement::Ack(received[0].clone())]).await).unwrap();
    assert_eq!(unacked_count(&server), 1);
    let next = consumer(&broker, &["q"]).await;
    let again = receive(&*next, 3).await;
    assert_eq!(ids(&again), ["deferred", "deferred too", "waiting"]);
    let Content::Message(message) = &again[0].content else {
        panic!("no message")
    };
    assert_eq!(message_id(message), "deferred");
    assert_eq!(count(&server, &["LLEN", "q"]), 0);
}
