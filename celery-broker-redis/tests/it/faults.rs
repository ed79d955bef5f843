//! Servers that crash, stop answering or restart.

use std::collections::BTreeSet;
use std::sync::Arc;

use celery_broker_redis::RedisBroker;
use celery_runtime::{Broker, Consumer, Publication, ServiceErrorKind};
use serde_json::json;
use test_servers::RedisServer;

use crate::support::{
    TIMEOUT, ack, all, broker, broker_with, consumer, consumer_of, id, queued_count, receive_one,
    send, task, unacked_count, worker,
};

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn killed_server_fails_calls_until_it_restarts() {
    let server = RedisServer::builder().append_only().start();
    let broker = broker(&server);
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    let delivery = receive_one(&*consumer).await;
    for round in 0..3 {
        server.kill();
        let error = publish_one(&broker, "x").await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        server.restart();
        // The pool returns no old connection.
        publish_one(&broker, &round.to_string())
            .await
            .expect("the server is back");
    }
    let error = consumer.receive(1).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    // Its delivery is still unacked, and is settled on a new connection.
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (3, 1));
    ack(&*consumer, &delivery).await;
    assert_eq!(unacked_count(&server), 0);
}

async fn publish_one(broker: &RedisBroker, id: &str) -> Result<(), celery_runtime::ServiceError> {
    let sent = [Publication::to_queue(task(id), "q")];
    tokio::time::timeout(TIMEOUT, broker.publish(&sent))
        .await
        .expect("in time")
        .remove(0)
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn server_killed_during_use_loses_no_message() {
    let server = RedisServer::builder().append_only().start();
    let broker = broker(&server);
    let other = crate::support::broker(&server);
    let sending = tokio::spawn(publish_until_sent(broker.clone(), 300));
    let mut done = BTreeSet::new();
    let mut kills = 0;
    while done.len() < 300 {
        let Ok(consumer) = broker
            .consume(&celery_runtime::ConsumeOptions::new(vec!["q".into()], 8))
            .await
        else {
            continue;
        };
        work(&server, &*consumer, &mut done, &mut kills).await;
        // Another process restores the deliveries of which the settlement failed.
        for tag in server.command(&["HKEYS", "unacked"]).texts() {
            server.command(&["ZADD", "unacked_index", "1000", &tag]);
        }
        other.restore_abandoned().await.expect("the server is back");
    }
    sending.await.unwrap();
    assert_eq!(kills, 5);
    assert!((0..300).all(|number| done.contains(&number.to_string())));
}

/// Settles deliveries until the connection breaks or all are done, and kills the
/// server from time to time.
async fn work(
    server: &RedisServer,
    consumer: &dyn Consumer,
    done: &mut BTreeSet<String>,
    kills: &mut usize,
) {
    while done.len() < 300 {
        let Ok(Ok(received)) = tokio::time::timeout(TIMEOUT, consumer.receive(7)).await else {
            return;
        };
        if *kills < 5 && done.len() > 40 * *kills {
            *kills += 1;
            server.kill();
            server.restart();
        }
        for delivery in received {
            let settled = [celery_runtime::Settlement::Ack(delivery.tag.clone())];
            if all(consumer.settle(&settled).await).is_ok() {
                done.insert(id(&delivery));
            }
        }
    }
}

async fn publish_until_sent(broker: RedisBroker, count: usize) {
    for number in 0..count {
        while publish_one(&broker, &number.to_string()).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
#[cfg(unix)]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn silent_server_times_out_every_call() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"socket_timeout": 0.5}));
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
    let waiting = Arc::clone(&consumer);
    let receiving = tokio::spawn(async move { waiting.receive(1).await });
    server.pause();

    let error = tokio::time::timeout(TIMEOUT, receiving)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(error.kind(), ServiceErrorKind::TimedOut);
    assert!(
        error.to_string().contains("no answer within 500ms"),
        "{error}"
    );
    let error = publish_one(&broker, "2").await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
    server.resume();
    publish_one(&broker, "3")
        .await
        .expect("the server answers again");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn broken_connection_fails_a_waiting_consumer() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let consumer = consumer(&broker, &["q"]).await;
    let waiting = Arc::clone(&consumer);
    let receiving = tokio::spawn(async move { waiting.receive(1).await });
    crate::support::wait_until("it is connected", async || {
        server
            .command(&["CLIENT", "LIST"])
            .text()
            .contains("flags=t")
    })
    .await;
    server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let error = tokio::time::timeout(TIMEOUT, receiving)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Disconnected, "{error}");
}

#[tokio::test]
#[cfg(unix)]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn unconfirmed_fetch_is_recovered_by_the_next_consumer() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"socket_timeout": 0.5}));
    let worker = worker(&["q", "r"]);
    let late = consumer_of(&broker, &worker).await;
    // Load the script, so that the paused server executes the fetch later.
    send(&broker, "q", &["0"]).await;
    ack(&*late, &receive_one(&*late).await).await;
    send(&broker, "q", &["1", "2", "3"]).await;
    server.pause();
    let error = late.receive(2).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
    server.resume();
    // The tags of these deliveries are unknown to any consumer.
    crate::support::wait_until("it has executed the fetch", async || {
        unacked_count(&server) == 2
    })
    .await;
    drop(late);

    let next = consumer_of(&broker, &worker).await;

    let received = crate::support::receive(&*next, 3).await;
    assert_eq!(crate::support::ids(&received), ["1", "2", "3"]);
    assert_eq!(unacked_count(&server), 3);
}
