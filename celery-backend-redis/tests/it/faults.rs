//! Servers that are unreachable, silent or reject the password.

use std::sync::Arc;

use celery_backend_redis::RedisBackend;
use celery_broker_redis::RedisOptions;
use celery_protocol::State;
use celery_runtime::{ResultBackend, ResultRecord, ServiceErrorKind};
use serde_json::{Map, json};
use test_servers::RedisServer;
use tokio::time::timeout;

use crate::support::{
    TIMEOUT, backend, channels, document, options, status, store, wait_until, wait_with_retries,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn wait_continues_after_a_server_restart() {
    let server = RedisServer::builder().append_only().start();
    let backend = Arc::new(backend(&server));
    let waiting = {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move { wait_with_retries(&*backend, "1").await })
    };
    wait_until("it is subscribed", async || channels(&server) == 1).await;
    server.kill();
    let stored = document("1", State::Success, "null");
    let error = backend.store(ResultRecord::new(&stored)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    server.restart();
    store(&backend, "1", State::Success, "null").await;
    let found = timeout(TIMEOUT, waiting).await.unwrap().unwrap();
    assert_eq!(found.status, State::Success);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn stored_result_survives_a_killed_server() {
    let server = RedisServer::builder().append_only().start();
    let backend = backend(&server);
    store(&backend, "1", State::Success, "null").await;
    server.kill();
    server.restart();
    assert_eq!(status(&backend, "1").await, State::Success);
}

#[tokio::test]
#[cfg(unix)]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn silent_server_ends_the_wait() {
    let server = RedisServer::start();
    let times = json!({"socket_timeout": 0.2, "socket_connect_timeout": 0.2});
    let backend = Arc::new(RedisBackend::new(options(&server, &times)));
    let waiting = {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move { backend.wait("1").await })
    };
    wait_until("it is subscribed", async || channels(&server) == 1).await;
    server.pause();
    let error = timeout(TIMEOUT, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
    server.resume();
    // The next wait succeeds.
    store(&backend, "1", State::Success, "null").await;
    timeout(TIMEOUT, backend.wait("1")).await.unwrap().unwrap();
}

#[tokio::test]
async fn unreachable_server_error_names_the_address() {
    let options = RedisOptions::parse("redis://:secret@127.0.0.1:1", &Map::new()).unwrap();
    let backend = RedisBackend::new(options);
    let error = backend.fetch(&["1".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unreachable);
    let text = "cannot read the result of task 1 on redis://127.0.0.1:1: connection refused";
    assert!(error.to_string().starts_with(text), "{error}");
    assert!(!format!("{backend:?} {error:?}").contains("secret"));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn wrong_password_ends_the_wait_immediately() {
    let server = RedisServer::builder().password("right").start();
    let url = server.url().replace("right", "wrong");
    let backend = RedisBackend::new(RedisOptions::parse(&url, &Map::new()).unwrap());
    let error = timeout(TIMEOUT, backend.wait("1"))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
}
