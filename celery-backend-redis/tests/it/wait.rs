//! Waiting for results.

use std::sync::Arc;
use std::time::Duration;

use celery_backend_redis::RedisBackend;
use celery_protocol::{ResultDocument, State};
use celery_runtime::ResultBackend;
use test_servers::RedisServer;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{TIMEOUT, backend, channels, store, wait_until, wait_with_retries};

type Waiting = JoinHandle<ResultDocument<'static>>;

fn wait(backend: &Arc<RedisBackend>, id: &str) -> Waiting {
    let (backend, id) = (Arc::clone(backend), id.to_owned());
    tokio::spawn(async move { wait_with_retries(&*backend, &id).await })
}

async fn done(waiting: Waiting) -> ResultDocument<'static> {
    timeout(TIMEOUT, waiting)
        .await
        .expect("in time")
        .expect("no panic")
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn wait_returns_results_stored_before_and_after_it_starts() {
    let server = RedisServer::start();
    let backend = Arc::new(backend(&server));
    store(&backend, "before", State::Failure, "null").await;
    assert_eq!(done(wait(&backend, "before")).await.status, State::Failure);
    let waiting = wait(&backend, "after");
    wait_until("it is subscribed", async || channels(&server) == 1).await;
    store(&backend, "after", State::Success, "7").await;
    let document = done(waiting).await;
    assert_eq!(
        (&*document.task_id, document.status),
        ("after", State::Success)
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn only_final_states_end_the_wait() {
    let server = RedisServer::start();
    let backend = Arc::new(backend(&server));
    store(&backend, "1", State::Retry, "null").await;
    let waiting = wait(&backend, "1");
    wait_until("it is subscribed", async || channels(&server) == 1).await;
    store(&backend, "1", State::Started, "null").await;
    store(
        &backend,
        "1",
        State::Custom("PROGRESS".into()),
        "{\"done\": 1}",
    )
    .await;
    assert!(!waiting.is_finished());
    store(&backend, "1", State::Success, "7").await;
    assert_eq!(done(waiting).await.status, State::Success);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn publication_by_python_ends_the_wait() {
    let server = RedisServer::start();
    let backend = Arc::new(backend(&server));
    let waiting = wait(&backend, "1");
    wait_until("it is subscribed", async || channels(&server) == 1).await;
    let text = r#"{"status": "SUCCESS", "result": 5, "traceback": null, "children": [],
        "date_done": "2026-11-21T08:32:22.557074+00:00", "task_id": "1"}"#;
    server.command(&["SETEX", "celery-task-meta-1", "86400", text]);
    server.command(&["PUBLISH", "celery-task-meta-1", text]);
    assert_eq!(done(waiting).await.result.decode::<i64>().unwrap(), 5);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn cancelled_waits_leave_no_subscription() {
    let server = RedisServer::start();
    let backend = Arc::new(backend(&server));
    let patient = wait(&backend, "shared");
    for number in 0..100 {
        let id = format!("given-up-{number}");
        assert!(timeout(Duration::ZERO, backend.wait(&id)).await.is_err());
        assert!(
            timeout(Duration::from_millis(1), backend.wait("shared"))
                .await
                .is_err()
        );
    }
    wait_until("one channel is left", async || channels(&server) == 1).await;
    store(&backend, "shared", State::Success, "null").await;
    done(patient).await;
    wait_until("no channel is left", async || channels(&server) == 0).await;
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn one_key_is_waited_for_repeatedly() {
    let server = RedisServer::start();
    let backend = Arc::new(backend(&server));
    for number in 0..100 {
        let id = (number % 3).to_string();
        let first = wait(&backend, &id);
        let second = wait(&backend, &id);
        store(&backend, &id, State::Failure, "null").await;
        done(first).await;
        done(second).await;
        backend.forget(&[id]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn thousand_waits_survive_killed_connections() {
    let server = RedisServer::start();
    let backend = Arc::new(backend(&server));
    let waiting: Vec<_> = (0..1000)
        .map(|number| wait(&backend, &number.to_string()))
        .collect();
    wait_until("all are subscribed", async || channels(&server) == 1000).await;
    let clients = server.command(&["CLIENT", "LIST"]).text().lines().count();
    assert!(clients <= 12, "{clients}");
    for hundred in 0..10 {
        server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        for number in 0..100 {
            let id = (hundred * 100 + number).to_string();
            store(&backend, &id, State::Success, "null").await;
        }
    }
    for (number, waiting) in waiting.into_iter().enumerate() {
        assert_eq!(done(waiting).await.task_id, number.to_string());
    }
    wait_until("no channel is left", async || channels(&server) == 0).await;
}
