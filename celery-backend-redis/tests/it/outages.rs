//! Servers and connections that fail during a wait.

use std::sync::Arc;
use std::time::Duration;

use celery_runtime::{ResultBackend, ServiceErrorKind};

use crate::support::{Setup, store_it, success, wait_with_retries};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn killed_subscriptions_are_renewed() {
    let setup = Setup::start();
    let backend: Arc<dyn ResultBackend> = Arc::new(setup.redis_backend());
    let waiters: Vec<_> = (0..1000)
        .map(|n| {
            let backend = Arc::clone(&backend);
            tokio::spawn(async move { wait_with_retries(&*backend, &format!("id-{n}")).await })
        })
        .collect();
    let writer = setup.redis_backend();
    for n in 0..1000 {
        if n % 100 == 50 {
            setup.server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        store_it(&writer, &success(&format!("id-{n}"), "7")).await;
    }
    let all = async {
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().result.decode::<i64>().unwrap(), 7);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn killed_server_fails_calls_until_it_restarts() {
    let setup = Setup::start();
    let backend = setup.redis_backend();
    store_it(&backend, &success("before", "1")).await;
    let waiting = backend.clone();
    let waiter = tokio::spawn(async move { waiting.wait("never").await });
    setup.server.kill();
    let error = tokio::time::timeout(Duration::from_secs(20), waiter)
        .await
        .unwrap()
        .unwrap();
    assert!(error.unwrap_err().is_transient());
    let error = backend.fetch(&["before".to_owned()]).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    setup.server.restart();
    store_it(&backend, &success("after", "2")).await;
    assert!(backend.fetch(&["after".to_owned()]).await.unwrap()[0].is_some());
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn stopped_server_fails_a_waiting_call() {
    let setup = Setup::start();
    let backend = setup.redis_backend();
    store_it(&backend, &success("before", "1")).await;
    let waiting = backend.clone();
    let waiter = tokio::spawn(async move { waiting.wait("never").await });
    let subscribed = async {
        while setup
            .server
            .command(&["PUBSUB", "CHANNELS"])
            .texts()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), subscribed)
        .await
        .unwrap();
    setup.server.pause();
    let error = tokio::time::timeout(Duration::from_secs(30), waiter)
        .await
        .unwrap()
        .unwrap();
    assert!(error.unwrap_err().is_transient());
    setup.server.resume();
    store_it(&backend, &success("after", "2")).await;
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn wrong_password_is_denied_and_not_printed() {
    let server = test_servers::RedisServer::builder()
        .password("right")
        .start();
    let url = format!("redis://:wrong-secret@127.0.0.1:{}", server.port());
    let options = celery_broker_redis::RedisOptions::parse(&url, &serde_json::Map::new()).unwrap();
    let backend = celery_backend_redis::RedisBackend::new(options);
    let error = backend.fetch(&["id".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Denied);
    let shown = format!("{error} {error:?} {backend:?}");
    assert!(!shown.contains("wrong-secret"), "{shown}");
}
