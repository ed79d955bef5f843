//! Common errors of new users: each names the operation, its object and the
//! remedy.

use std::net::TcpListener;
use std::time::Duration;

use celery::{Config, ResultError, Signature, WorkerError};
#[cfg(feature = "amqp")]
use test_servers::RabbitServer;
use test_servers::RedisServer;

use crate::support::{MessageExt, Setup, TIMEOUT, for_each_broker};
use crate::tasks::ADD;
use crate::tasks::Number::Int;

for_each_broker! {
    unconsumed_queue_times_out_with_hint: redis, rabbitmq, rpc;
    missing_result_backend_is_named: redis, rabbitmq;
    unregistered_task_fails_and_is_dead_lettered: redis, rabbitmq, rpc;
}

/// The URL schemes of the brokers in this build.
fn schemes() -> impl Iterator<Item = &'static str> {
    ["redis"]
        .into_iter()
        .chain(cfg!(feature = "amqp").then_some("amqp"))
}

/// The time limit of a send. A send that takes twice as long fails the test.
const DEADLINE: Duration = Duration::from_secs(1);

/// Returns the error of a send to this broker.
async fn send_error(url: &str) -> celery::SendError {
    let config = Config::new().broker_url(url).operation_timeout(DEADLINE);
    let client = celery::connect(config).unwrap().client();
    let sent = tokio::time::timeout(DEADLINE * 2, client.send(ADD, (Int(1), Int(2)))).await;
    sent.expect("the send fails in time").unwrap_err()
}

/// Returns the error of a worker on this broker.
async fn worker_error(url: &str) -> WorkerError {
    let config = Config::new()
        .broker_url(url)
        .set("broker_connection_max_retries", 0)
        .unwrap();
    let worker = celery::connect(config)
        .unwrap()
        .worker(crate::handlers::all());
    let ended = tokio::time::timeout(TIMEOUT, worker.run()).await;
    ended.expect("the worker fails").unwrap_err()
}

fn assert_contains(error: &impl ToString, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connection_names_address_and_hint() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let hint = "is the server running at this address?";
    for scheme in schemes() {
        let address = format!("127.0.0.1:{port}");
        let error = send_error(&format!("{scheme}://:secret@{address}")).await;
        assert_contains(
            &error,
            &[
                "task tasks.add was not sent",
                scheme,
                &address,
                "refused",
                hint,
            ],
        );
        assert!(!error.to_string().contains("secret"));
        assert!(error.is_transient());

        let error = worker_error(&format!("{scheme}://{address}")).await;
        assert_contains(&error, &["cannot", scheme, &address, "refused", hint]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_host_names_host() {
    for scheme in schemes() {
        let error = send_error(&format!("{scheme}://no-such-host.invalid")).await;
        assert_contains(&error, &["tasks.add", "no-such-host.invalid"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn wrong_redis_password_is_permanent_error() {
    let redis = RedisServer::builder().password("right").start();
    let port = redis.port();
    let hint = "check user and password";
    for url in [
        format!("redis://:mistaken@127.0.0.1:{port}"),
        format!("redis://127.0.0.1:{port}"),
    ] {
        let error = send_error(&url).await;
        assert_contains(&error, &["tasks.add", &format!("127.0.0.1:{port}"), hint]);
        assert!(!error.to_string().contains("mistaken"), "{error}");
        assert!(!error.is_transient(), "{error}");

        let error = worker_error(&url).await;
        assert_contains(&error, &["cannot", &format!("127.0.0.1:{port}"), hint]);
        assert!(!error.to_string().contains("mistaken"), "{error}");
    }
    assert_sends(&redis.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
#[cfg(feature = "amqp")]
async fn wrong_rabbitmq_password_or_vhost_is_permanent_error() {
    let rabbit = RabbitServer::shared();
    let address = format!("127.0.0.1:{}", rabbit.port());
    for (url, hint) in [
        (
            format!("amqp://guest:mistaken@{address}"),
            "check user and password",
        ),
        (rabbit.vhost_url("mistaken"), "virtual host"),
    ] {
        let error = send_error(&url).await;
        assert_contains(&error, &["tasks.add", &address, hint]);
        assert!(!error.to_string().contains(":mistaken"), "{error}");
        assert!(!error.is_transient(), "{error}");

        let error = worker_error(&url).await;
        assert_contains(&error, &["cannot", &address, hint]);
        assert!(!error.to_string().contains(":mistaken"), "{error}");
    }
    assert_sends(&rabbit.url()).await;
}

async fn assert_sends(url: &str) {
    let client = celery::connect(url).unwrap().client();
    client.send(ADD, (Int(1), Int(2))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn wrong_key_type_is_permanent_error() {
    let redis = RedisServer::start();
    redis.command(&["SET", "celery", "not a queue"]);

    let error = send_error(&redis.url()).await;
    assert_contains(&error, &["tasks.add", "publish to", "celery", "WRONGTYPE"]);
    assert!(!error.is_transient(), "{error}");

    let error = worker_error(&redis.url()).await;
    assert_contains(&error, &["cannot", "WRONGTYPE"]);
    assert_eq!(redis.command(&["GET", "celery"]).text(), "not a queue");
}

async fn unconsumed_queue_times_out_with_hint(setup: Setup) {
    let sent = setup.client().send(ADD, (Int(1), Int(2))).await.unwrap();
    let error = sent
        .get_timeout(Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(matches!(error, ResultError::TimedOut { .. }), "{error}");
    assert_contains(
        &error,
        &[sent.id(), "200ms", "is a worker consuming its queue"],
    );
}

async fn missing_result_backend_is_named(setup: Setup) {
    let client = celery::connect(setup.broker_url()).unwrap().client();
    let sent = client.send(ADD, (Int(1), Int(2))).await.unwrap();
    let error = sent.get().await.unwrap_err();
    assert_contains(&error, &[sent.id(), "no result_backend is configured"]);
}

async fn unregistered_task_fails_and_is_dead_lettered(setup: Setup) {
    let worker = setup.worker().await;
    let call = Signature::named("tasks.nowhere", (), ());
    let client = setup.client();
    let sent = client.apply(call).await.unwrap();
    let error = sent.get_timeout(TIMEOUT).await.unwrap_err();
    assert_contains(&error, &[sent.id(), "NotRegistered('tasks.nowhere')"]);

    let dead = setup.dead_letter().await;
    assert_eq!(dead.id(), sent.id());
    assert_eq!(dead.text("x-dead-reason"), "unregistered");
    assert_contains(
        &dead.text("x-dead-detail"),
        &["tasks.nowhere", "registered"],
    );
    worker.stop().await;
    setup.assert_drained().await;
}

#[test]
fn misspelt_transport_option_is_corrected() {
    let config = Config::new()
        .broker_url("redis://localhost")
        .set(
            "broker_transport_options",
            serde_json::json!({"visibility_timout": 5}),
        )
        .unwrap();
    let error = celery::connect(config).unwrap_err();
    assert_contains(
        &error,
        &["visibility_timout", "did you mean visibility_timeout?"],
    );
}
