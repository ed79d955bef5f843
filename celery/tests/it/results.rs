//! Many concurrent waits for results, and the resources that they use.

use std::time::Duration;

use test_servers::RedisServer;

use crate::support::{
    LANGUAGE, RedisState, Setup, TIMEOUT, assert_sums, eventually, for_each_broker, send_adds,
    test_tasks,
};

for_each_broker! {
    every_waiter_receives_its_result: redis, rabbitmq, rpc;
}

async fn every_waiter_receives_its_result(setup: Setup) {
    let client = setup.client();
    let sent = client.apply_all((0..300).map(|_| LANGUAGE.s(()))).await;
    let mut waiters = tokio::task::JoinSet::new();
    for sent in sent {
        waiters.spawn(async move { sent.unwrap().get_timeout(TIMEOUT).await });
    }
    let worker = setup.serve(test_tasks()).await;
    while let Some(received) = waiters.join_next().await {
        assert_eq!(received.unwrap().unwrap(), "rust");
    }
    worker.stop().await;
    setup.assert_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn waiters_survive_broken_subscriptions() {
    let setup = Setup::redis();
    let client = setup.client();
    let sent = client.apply_all((0..300).map(|_| LANGUAGE.s(()))).await;
    let mut waiters = tokio::task::JoinSet::new();
    for sent in sent {
        waiters.spawn(async move { sent.unwrap().get_timeout(TIMEOUT).await });
    }
    for _ in 0..5 {
        break_subscriptions(&setup.redis).await;
    }
    let worker = setup.serve(test_tasks()).await;
    for _ in 0..5 {
        setup.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let received = waiters.join_next().await.unwrap().unwrap();
        assert_eq!(received.unwrap(), "rust");
    }
    while let Some(received) = waiters.join_next().await {
        assert_eq!(received.unwrap().unwrap(), "rust");
    }
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

/// Waits for subscriptions and kills their connections.
async fn break_subscriptions(redis: &RedisServer) {
    eventually("a client subscribes", async || {
        let killed = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        (killed.integer() > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn waiters_leave_no_subscriptions_or_connections() {
    // One pool for each of broker and backend, in worker and client.
    const POOLED: usize = 2 * 2 * 2;
    // The worker's consumer and its renewal, the subscription to results, the test's own.
    const OTHERS: usize = 4;
    let small = serde_json::json!({"max_connections": 2});
    let setup = Setup::redis()
        .set("broker_transport_options", small.clone())
        .set("result_backend_transport_options", small);
    let worker = setup.worker().await;
    let client = setup.client();
    for _ in 0..10 {
        assert_sums(&send_adds(&client, 50).await).await;
    }
    for number in 0..50 {
        let unknown = client.result::<i64>(format!("unknown {number}"));
        let waited = unknown.get_timeout(Duration::from_millis(1)).await;
        waited.unwrap_err();
    }
    let connections = count_connections(&setup.redis);
    assert!(connections <= POOLED + OTHERS, "{connections}");
    eventually("all subscriptions have ended", async || {
        let channels = setup.redis.command(&["PUBSUB", "CHANNELS"]).texts();
        channels.is_empty().then_some(())
    })
    .await;
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

fn count_connections(redis: &RedisServer) -> usize {
    redis.command(&["CLIENT", "LIST"]).text().lines().count()
}
