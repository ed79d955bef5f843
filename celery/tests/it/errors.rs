//! The errors that a person meets first: each says what was tried on what, and
//! what to do about it.

use std::net::TcpListener;
use std::time::Duration;

use celery::{Config, ResultError, Signature, WorkerError};
use xtask::servers::RedisServer;

use crate::support::{Inspect, PATIENCE, Setup, eventually};
use crate::tasks::ADD;
use crate::tasks::Number::Int;

/// A send fails within this, and is an error of the test after twice of it.
const DEADLINE: Duration = Duration::from_secs(1);

/// What a client is told that sends to this broker.
async fn refusal(url: &str) -> celery::SendError {
    let config = Config::new().broker_url(url).deadline(DEADLINE);
    let client = celery::connect(config).unwrap().client();
    let sent = tokio::time::timeout(DEADLINE * 2, client.send(ADD, (Int(1), Int(2)))).await;
    sent.expect("the deadline is kept").unwrap_err()
}

/// What a worker ends with on this broker.
async fn worker_refusal(url: &str) -> WorkerError {
    let config = Config::new()
        .broker_url(url)
        .set("broker_connection_max_retries", 0)
        .unwrap();
    let worker = celery::connect(config)
        .unwrap()
        .worker(crate::handlers::all());
    let ended = tokio::time::timeout(PATIENCE, worker.run()).await;
    ended.expect("the worker gives up").unwrap_err()
}

fn assert_says(error: &impl ToString, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_at_the_url() {
    // Free a moment ago; nobody listens.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let address = format!("redis://127.0.0.1:{port}");
    let hint = "is the server running at this address?";

    let error = refusal(&format!("redis://:secret@127.0.0.1:{port}")).await;
    assert_says(
        &error,
        &["task tasks.add was not sent", &address, "refused", hint],
    );
    assert!(!error.to_string().contains("secret"));
    assert!(error.is_transient());

    let error = worker_refusal(&address).await;
    assert_says(&error, &["cannot", &address, "refused", hint]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_host_of_that_name() {
    let error = refusal("redis://no-such-host.invalid").await;
    assert_says(&error, &["tasks.add", "no-such-host.invalid"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_wrong_password_and_none() {
    let redis = RedisServer::builder().password("right").start();
    let port = redis.port();
    let hint = "check user and password";
    for url in [
        format!("redis://:mistaken@127.0.0.1:{port}"),
        format!("redis://127.0.0.1:{port}"),
    ] {
        let error = refusal(&url).await;
        assert_says(&error, &["tasks.add", &format!("127.0.0.1:{port}"), hint]);
        assert!(!error.to_string().contains("mistaken"), "{error}");
        assert!(!error.is_transient(), "{error}");

        let error = worker_refusal(&url).await;
        assert_says(&error, &["cannot", &format!("127.0.0.1:{port}"), hint]);
        assert!(!error.to_string().contains("mistaken"), "{error}");
    }
    refusal_is_none(&redis.url()).await;
}

async fn refusal_is_none(url: &str) {
    let client = celery::connect(url).unwrap().client();
    client.send(ADD, (Int(1), Int(2))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_key_that_is_no_queue() {
    let redis = RedisServer::start();
    redis.command(&["SET", "celery", "somebody else's"]);

    let error = refusal(&redis.url()).await;
    assert_says(&error, &["tasks.add", "publish to", "celery", "WRONGTYPE"]);
    assert!(!error.is_transient(), "{error}");

    let error = worker_refusal(&redis.url()).await;
    assert_says(&error, &["cannot", "WRONGTYPE"]);
    assert_eq!(redis.command(&["GET", "celery"]).text(), "somebody else's");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_queue_that_nobody_reads() {
    let setup = Setup::new();
    let sent = setup.client().send(ADD, (Int(1), Int(2))).await.unwrap();
    let error = sent
        .get_timeout(Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(matches!(error, ResultError::TimedOut { .. }), "{error}");
    assert_says(
        &error,
        &[sent.id(), "200ms", "is a worker consuming its queue"],
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn an_app_without_a_result_backend() {
    let redis = RedisServer::start();
    let client = celery::connect(redis.url()).unwrap().client();
    let sent = client.send(ADD, (Int(1), Int(2))).await.unwrap();
    let error = sent.get().await.unwrap_err();
    assert_says(&error, &[sent.id(), "no result_backend is configured"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_task_that_nobody_registered() {
    let setup = Setup::new();
    let worker = setup.worker().await;
    let call = Signature::named("tasks.nowhere", (), ());
    let sent = setup.client().apply(call).await.unwrap();
    let error = sent.get_timeout(PATIENCE).await.unwrap_err();
    assert_says(&error, &[sent.id(), "NotRegistered('tasks.nowhere')"]);

    let kept = eventually("its message is kept", async || {
        setup.redis.messages("celery.dead").pop()
    })
    .await;
    assert_eq!(kept.id(), sent.id());
    assert_eq!(kept.header("x-dead-reason"), "unregistered");
    assert_says(
        &kept.header("x-dead-detail"),
        &["tasks.nowhere", "registered"],
    );
    worker.stop().await;
    setup.redis.assert_nothing_held();
}

#[test]
fn an_option_that_is_misspelt() {
    let config = Config::new()
        .broker_url("redis://localhost")
        .set(
            "broker_transport_options",
            serde_json::json!({"visibility_timout": 5}),
        )
        .unwrap();
    let error = celery::connect(config).unwrap_err();
    assert_says(
        &error,
        &["visibility_timout", "did you mean visibility_timeout?"],
    );
}
