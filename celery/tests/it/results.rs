//! Many who wait for results, and what they leave behind.

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
    while let Some(woken) = waiters.join_next().await {
        assert_eq!(woken.unwrap().unwrap(), "rust");
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
        let woken = waiters.join_next().await.unwrap().unwrap();
        assert_eq!(woken.unwrap(), "rust");
    }
    while let Some(woken) = waiters.join_next().await {
        assert_eq!(woken.unwrap().unwrap(), "rust");
    }
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

/// Ends the connections that listen, as soon as there are any.
async fn break_subscriptions(redis: &RedisServer) {
    eventually("somebody listens", async || {
        let ended = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        (ended.integer() > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn waiters_leave_no_subscriptions_or_connections() {
    // Broker and backend of the worker and of the client, a pool each.
    const POOLED: usize = 2 * 2 * 2;
    // The worker's consumer, whoever waits for results, and this test's own.
    const OTHERS: usize = 3;
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
        let nobodys = client.result::<i64>(format!("nobody's {number}"));
        let waited = nobodys.get_timeout(Duration::from_millis(1)).await;
        waited.unwrap_err();
    }
    let connections = count_connections(&setup.redis);
    assert!(connections <= POOLED + OTHERS, "{connections}");
    eventually("nobody listens", async || {
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
