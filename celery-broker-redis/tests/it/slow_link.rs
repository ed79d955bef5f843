//! Answers that take longer than `socket_timeout`.

use std::time::{Duration, SystemTime};

use celery_broker_redis::RedisBroker;
use celery_runtime::{Broker, ConsumeOptions, Delivery, Publication, ServiceErrorKind, Settlement};
use serde_json::json;
use test_servers::{Fault, Proxy, RedisServer};

use crate::support::{
    TIMEOUT, ack, all, broker_at, consumer, consumer_of, id, queued_count, receive, receive_one,
    send, tags, task, unacked_count, worker,
};

/// Returns a server, a proxy to it and a broker behind the proxy.
fn behind_proxy() -> (RedisServer, Proxy, RedisBroker) {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let broker = broker_at(&url, &json!({"socket_timeout": 0.5}));
    (server, proxy, broker)
}

async fn send_large(broker: &RedisBroker, ids: std::ops::Range<usize>, bytes: usize) {
    let large = |number: usize| {
        let mut message = task(&number.to_string());
        message.body = vec![b'x'; bytes].into();
        Publication::to_queue(message, "q")
    };
    all(broker.publish(&ids.map(large).collect::<Vec<_>>()).await).expect("published");
}

/// Receives `count` messages with a new consumer after each error, as a worker
/// does. Returns them and the number of errors.
async fn receive_until(
    broker: &RedisBroker,
    worker: &ConsumeOptions,
    count: usize,
) -> (Vec<Delivery>, usize) {
    let (mut received, mut errors) = (Vec::new(), 0);
    while received.len() < count {
        let consumer = consumer_of(broker, worker).await;
        while received.len() < count {
            match consumer.receive(100).await {
                Ok(deliveries) => received.extend(deliveries),
                Err(error) => {
                    assert_eq!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
                    errors += 1;
                    break;
                }
            }
        }
    }
    (received, errors)
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn answer_that_takes_too_long_is_requested_in_smaller_parts() {
    let (server, proxy, broker) = behind_proxy();
    send_large(&broker, 0..20, 50_000).await;
    proxy.throttle(500_000);

    let worker = worker(&["q"]);
    let all_received = tokio::time::timeout(TIMEOUT, receive_until(&broker, &worker, 20));
    let (received, errors) = all_received.await.expect("in time");

    let ids: Vec<_> = received.iter().map(id).collect();
    assert_eq!(ids, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!((1..=3).contains(&errors), "{errors} timeouts");
    assert_eq!(
        (queued_count(&server, "q"), unacked_count(&server)),
        (0, 20)
    );
    // The next answers have the proven size.
    send_large(&broker, 20..30, 50_000).await;
    assert_eq!(receive_until(&broker, &worker, 10).await.1, 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn message_that_takes_too_long_gets_more_time() {
    let (server, proxy, broker) = behind_proxy();
    send_large(&broker, 0..1, 500_000).await;
    proxy.throttle(500_000);

    let worker = worker(&["q"]);
    let all_received = tokio::time::timeout(TIMEOUT, receive_until(&broker, &worker, 1));
    let (received, errors) = all_received.await.expect("in time");

    assert_eq!(id(&received[0]), "0");
    assert!((1..=3).contains(&errors), "{errors} timeouts");
    assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 1));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn due_deliveries_are_read_in_bounded_answers() {
    let (server, proxy, broker) = behind_proxy();
    send_large(&broker, 0..20, 50_000).await;
    let worker = worker(&["q"]);
    let first = consumer_of(&broker, &worker).await;
    let now = SystemTime::now();
    let defer = tags(&receive(&*first, 20).await).into_iter();
    let defer: Vec<_> = defer.map(|tag| Settlement::Defer(tag, now)).collect();
    all(first.settle(&defer).await).unwrap();
    drop(first);
    proxy.throttle(500_000);

    let all_received = tokio::time::timeout(TIMEOUT, receive_until(&broker, &worker, 20));
    let (received, errors) = all_received.await.expect("in time");

    let ids: Vec<_> = received.iter().map(id).collect();
    assert_eq!(ids, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!((1..=3).contains(&errors), "{errors} timeouts");
    assert_eq!(unacked_count(&server), 20);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn expired_deliveries_are_read_in_bounded_answers() {
    let (server, proxy, broker) = behind_proxy();
    send_large(&broker, 0..20, 50_000).await;
    let dead = consumer(&broker, &["q"]).await;
    let received = receive(&*dead, 20).await;
    dead.close().await.unwrap();
    for delivery in received {
        server.command(&["ZADD", "unacked_index", "1000", delivery.tag.as_str()]);
    }
    proxy.throttle(500_000);

    let mut errors = 0;
    while let Err(error) = broker.restore_abandoned().await {
        assert_eq!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
        errors += 1;
        assert!(errors <= 3, "{errors} timeouts");
    }

    assert!(errors > 0, "the link was not slow");
    let counts = (queued_count(&server, "q"), unacked_count(&server));
    assert_eq!(counts, (20, 0));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn due_delivery_is_visible_again_by_the_clock_of_the_server() {
    let server = RedisServer::start();
    let broker = crate::support::broker(&server);
    send(&broker, "q", &["1"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    let tag = receive_one(&*consumer).await.tag;
    let defer = [Settlement::Defer(tag.clone(), SystemTime::now())];
    all(consumer.settle(&defer).await).unwrap();
    let seconds = |reply: String| reply.parse::<f64>().unwrap();
    let before = seconds(server.command(&["TIME"]).texts()[0].clone());

    receive_one(&*consumer).await;

    let score = server.command(&["ZSCORE", "unacked_index", tag.as_str()]);
    assert!(seconds(score.text()) >= before);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn fetch_whose_answer_is_lost_is_recovered() {
    for fault in [Fault::Cut, Fault::SwallowAnswer] {
        let (server, proxy, broker) = behind_proxy();
        let worker = worker(&["q"]);
        let first = consumer_of(&broker, &worker).await;
        // The server then knows the script.
        send(&broker, "q", &["0"]).await;
        ack(&*first, &receive_one(&*first).await).await;
        send(&broker, "q", &["1", "2"]).await;
        let lost = proxy.on_request("unacked_index", fault);
        let error = tokio::time::timeout(Duration::from_secs(5), first.receive(2));
        let error = error.await.expect("in time").unwrap_err();
        assert!(lost.has_request() && error.is_transient(), "{error}");
        assert_eq!((queued_count(&server, "q"), unacked_count(&server)), (0, 2));
        drop(first);

        let next = consumer_of(&broker, &worker).await;
        for expected in ["1", "2"] {
            let delivery = receive_one(&*next).await;
            assert_eq!(id(&delivery), expected);
            ack(&*next, &delivery).await;
        }
        assert_eq!(unacked_count(&server), 0);
    }
}
