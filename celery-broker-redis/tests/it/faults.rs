//! Servers that die, fall silent or come back.

use std::collections::BTreeSet;
use std::sync::Arc;

use celery_broker_redis::RedisBroker;
use celery_runtime::{Broker, Consumer, Publication, ServiceErrorKind};
use serde_json::json;
use test_servers::RedisServer;

use crate::support::{
    LIMIT, ack, all, broker, broker_with, consumer, held, id, receive_one, send, task, waiting,
};

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_killed_server_fails_calls_at_once_and_serves_them_when_back() {
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
        // No connection from before is handed out.
        publish_one(&broker, &round.to_string())
            .await
            .expect("the server is back");
    }
    let error = consumer.receive(1).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    // What it had taken is still noted, and settled on a new connection.
    assert_eq!((waiting(&server, "q"), held(&server)), (3, 1));
    ack(&*consumer, &delivery).await;
    assert_eq!(held(&server), 0);
}

async fn publish_one(broker: &RedisBroker, id: &str) -> Result<(), celery_runtime::ServiceError> {
    let sent = [Publication::to_queue(task(id), "q")];
    tokio::time::timeout(LIMIT, broker.publish(&sent))
        .await
        .expect("in time")
        .remove(0)
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn nothing_is_lost_when_the_server_is_killed_in_mid_use() {
    let server = RedisServer::builder().append_only().start();
    let broker = broker(&server);
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
        // What the dead connection held: as if the timeout had passed.
        for tag in server.command(&["HKEYS", "unacked"]).texts() {
            server.command(&["ZADD", "unacked_index", "1000", &tag]);
        }
        broker
            .restore_abandoned()
            .await
            .expect("the server is back");
    }
    sending.await.unwrap();
    assert_eq!(kills, 5);
    assert!((0..300).all(|number| done.contains(&number.to_string())));
}

/// Works until the connection breaks or everything is done; kills the server
/// now and then.
async fn work(
    server: &RedisServer,
    consumer: &dyn Consumer,
    done: &mut BTreeSet<String>,
    kills: &mut usize,
) {
    while done.len() < 300 {
        let Ok(Ok(taken)) = tokio::time::timeout(LIMIT, consumer.receive(7)).await else {
            return;
        };
        if *kills < 5 && done.len() > 40 * *kills {
            *kills += 1;
            server.kill();
            server.restart();
        }
        for delivery in taken {
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
async fn a_silent_server_is_noticed_by_everybody() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"socket_timeout": 0.5}));
    let consumer = consumer(&broker, &["q"]).await;
    send(&broker, "q", &["1"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
    let waiting = Arc::clone(&consumer);
    let receiving = tokio::spawn(async move { waiting.receive(1).await });
    server.pause();

    let error = tokio::time::timeout(LIMIT, receiving)
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
async fn every_waiting_consumer_hears_of_a_broken_connection() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let consumer = consumer(&broker, &["q"]).await;
    let waiting = Arc::clone(&consumer);
    let receiving = tokio::spawn(async move { waiting.receive(1).await });
    crate::support::until("it is connected", || {
        server
            .command(&["CLIENT", "LIST"])
            .text()
            .contains("flags=t")
    })
    .await;
    server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let error = tokio::time::timeout(LIMIT, receiving)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Disconnected, "{error}");
}

#[tokio::test]
#[cfg(unix)]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn what_a_silent_server_took_later_is_found_by_the_next_consumer() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"socket_timeout": 0.5}));
    let late = consumer(&broker, &["q", "r"]).await;
    // A server that does not know the script does nothing at first.
    send(&broker, "q", &["0"]).await;
    ack(&*late, &receive_one(&*late).await).await;
    send(&broker, "q", &["1", "2", "3"]).await;
    server.pause();
    let error = late.receive(2).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
    server.resume();
    // Nobody was told of what it took.
    crate::support::until("it takes them", || held(&server) == 2).await;
    drop(late);

    let next = consumer(&broker, &["q", "r"]).await;

    let taken = crate::support::receive(&*next, 3).await;
    assert_eq!(crate::support::ids(&taken), ["1", "2", "3"]);
    assert_eq!(held(&server), 3);
}
