//! Acknowledging, rejecting, requeueing, parking.

use std::time::{Duration, SystemTime};

use celery_runtime::{Broker, Content, Publication, QueueEnd, Settled, Settlement};
use test_servers::RedisServer;

use crate::support::{
    ack, all, broker, consumer, count, held, id, ids, keys, message_id, receive, receive_one, send,
    tags, urgent, waiting,
};

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_batch_is_settled_and_settling_again_changes_nothing() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["ack", "reject", "head", "tail", "keep"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    let taken = tags(&receive(&*consumer, 4).await);
    let batch = [
        Settlement::Ack(taken[0].clone()),
        Settlement::Reject(taken[1].clone()),
        Settlement::Requeue(taken[2].clone(), QueueEnd::Head),
        Settlement::Requeue(taken[3].clone(), QueueEnd::Tail),
    ];
    let first = all(consumer.settle(&batch).await).unwrap();
    let second = all(consumer.settle(&batch).await).unwrap();
    assert_eq!(first, [Settled::Done; 4]);
    assert_eq!(second, [Settled::Gone; 4]);

    assert_eq!((waiting(&server, "q"), held(&server)), (3, 0));
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
async fn a_requeued_message_keeps_its_priority() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let sent = [Publication::to_queue(urgent("1", 7), "q")];
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
async fn requeued_garbage_goes_back_as_it_was() {
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
async fn nothing_is_pushed_when_somebody_else_ended_the_delivery() {
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
    assert_eq!(waiting(&server, "q"), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn any_consumer_settles_what_another_one_took() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["1"]).await;
    let broken = consumer(&broker, &["q"]).await;
    let delivery = receive_one(&*broken).await;
    drop(broken);
    let next = consumer(&broker, &["q"]).await;
    assert!(broker.capabilities().settles_after_reconnect);
    ack(&*next, &delivery).await;
    assert_eq!((waiting(&server, "q"), held(&server)), (0, 0));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_parked_message_comes_back_at_its_time() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "q", &["later", "soon"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    let taken = tags(&receive(&*consumer, 2).await);
    let now = SystemTime::now();
    let (later, soon) = (
        now + Duration::from_secs(3600),
        now + Duration::from_millis(200),
    );
    let batch = [
        Settlement::Defer(taken[0].clone(), later),
        Settlement::Defer(taken[1].clone(), soon),
    ];
    all(consumer.settle(&batch).await).unwrap();
    // Nobody else takes it for abandoned before its time, and not long after:
    // the score is as old as the visibility timeout, an hour, shortly after it.
    let score = server
        .command(&["ZSCORE", "unacked_index", taken[0].as_str()])
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
    assert_eq!(held(&server), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn what_was_parked_survives_a_broken_consumer() {
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
async fn a_parked_message_that_was_settled_elsewhere_does_not_come() {
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
    assert_eq!(held(&server), 1, "parking did not bring back the index");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn closing_gives_parked_messages_back_and_keeps_the_rest() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(
        &broker,
        "q",
        &["running", "parked", "parked too", "waiting"],
    )
    .await;
    let first = consumer(&broker, &["q"]).await;
    let taken = tags(&receive(&*first, 3).await);
    let far = SystemTime::now() + Duration::from_secs(3600);
    let park = [1, 2].map(|at: usize| Settlement::Defer(taken[at].clone(), far));
    all(first.settle(&park).await).unwrap();

    first.close().await.unwrap();
    first.close().await.unwrap();

    assert_eq!((waiting(&server, "q"), held(&server)), (3, 1));
    // After the end nothing is settled.
    all(first.settle(&[Settlement::Ack(taken[0].clone())]).await).unwrap();
    assert_eq!(held(&server), 1);
    let next = consumer(&broker, &["q"]).await;
    let again = receive(&*next, 3).await;
    assert_eq!(ids(&again), ["parked", "parked too", "waiting"]);
    let Content::Message(message) = &again[0].content else {
        panic!("no message")
    };
    assert_eq!(message_id(message), "parked");
    assert_eq!(count(&server, &["LLEN", "q"]), 0);
}
