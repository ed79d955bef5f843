//! Storing and fetching results.

use std::time::Duration;

use celery_backend_redis::RedisBackend;
use celery_protocol::{ResultTree, State};
use celery_runtime::{ChordStart, ChordStore, ResultBackend, ServiceErrorKind};
use serde_json::{Value, json};
use test_servers::RedisServer;

use crate::support::{backend, count, fetch, options, status, store};

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn document_has_the_format_of_celery_and_expires() {
    let server = RedisServer::start();
    let backend = backend(&server);
    store(&backend, "1", State::Success, "[5]").await;
    let stored = server.command(&["GET", "celery-task-meta-1"]).text();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["status"], "SUCCESS");
    assert_eq!(stored["result"], json!([5]));
    assert_eq!(stored["task_id"], "1");
    let ttl = count(&server, &["TTL", "celery-task-meta-1"]);
    assert!((86_000..=86_400).contains(&ttl), "{ttl}");
    let document = fetch(&backend, "1").await.unwrap();
    assert_eq!(document.result.decode::<Vec<i64>>().unwrap(), [5]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn result_expires_sets_the_time_to_live() {
    let server = RedisServer::start();
    for (expires, expected) in [
        (None, -1),
        (Some(Duration::ZERO), -1),
        (Some(Duration::from_secs(60)), 60),
    ] {
        let backend = backend(&server).result_expires(expires);
        store(&backend, "1", State::Failure, "null").await;
        let ttl = count(&server, &["TTL", "celery-task-meta-1"]);
        assert!(
            (expected - 1..=expected).contains(&ttl),
            "{expires:?}: {ttl}"
        );
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn success_is_never_replaced() {
    let server = RedisServer::start();
    let backend = backend(&server);
    store(&backend, "1", State::Started, "null").await;
    store(&backend, "1", State::Failure, "null").await;
    store(&backend, "1", State::Started, "null").await;
    assert_eq!(status(&backend, "1").await, State::Started);
    store(&backend, "1", State::Success, "1").await;
    for later in [
        State::Success,
        State::Failure,
        State::Started,
        State::Revoked,
    ] {
        store(&backend, "1", later, "2").await;
        let document = fetch(&backend, "1").await.unwrap();
        assert_eq!(document.status, State::Success);
        assert_eq!(document.result.decode::<i64>().unwrap(), 1);
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn success_in_any_json_layout_is_kept() {
    let server = RedisServer::start();
    let backend = backend(&server);
    let texts = [
        r#"{"status": "SUCCESS", "result": 1, "task_id": "1"}"#,
        r#"{"result": 1, "status": "SUCCESS", "task_id": "1"}"#,
        r#"{ "task_id": "1", "status" : "SUCCESS", "result": 1}"#,
        // Python writes NaN, which the server's JSON parser rejects.
        r#"{"result": [1, NaN], "status": "SUCCESS", "task_id": "1"}"#,
    ];
    for text in texts {
        server.command(&["SET", "celery-task-meta-1", text]);
        store(&backend, "1", State::Failure, "null").await;
        assert_eq!(server.command(&["GET", "celery-task-meta-1"]).text(), text);
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn state_inside_the_result_is_ignored() {
    let server = RedisServer::start();
    let backend = backend(&server);
    let text = r#"{"result": {"status": "SUCCESS"}, "status": "STARTED", "task_id": "1"}"#;
    server.command(&["SET", "celery-task-meta-1", text]);
    store(&backend, "1", State::Failure, "null").await;
    assert_eq!(status(&backend, "1").await, State::Failure);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn document_unreadable_for_lua_is_checked_by_the_client() {
    let server = RedisServer::start();
    let backend = backend(&server);
    // Nested deeper than the limit of the server's parser.
    let deep = format!("{}{}", "[".repeat(1500), "]".repeat(1500));
    let text = format!(r#"{{"result": {deep}, "status": "STARTED"}}"#);
    server.command(&["SET", "celery-task-meta-1", &text]);
    store(&backend, "1", State::Success, "1").await;
    assert_eq!(status(&backend, "1").await, State::Success);
    server.command(&["SET", "celery-task-meta-2", "garbage"]);
    store(&backend, "2", State::Success, "1").await;
    assert_eq!(status(&backend, "2").await, State::Success);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn many_results_are_fetched_in_order_and_forgotten() {
    let server = RedisServer::start();
    let backend = backend(&server);
    let ids: Vec<String> = (0..1200).map(|number| number.to_string()).collect();
    for id in ids.iter().step_by(100) {
        store(&backend, id, State::Success, "null").await;
    }
    let found = backend.fetch(&ids).await.unwrap();
    assert_eq!(found.len(), 1200);
    for (number, document) in found.iter().enumerate() {
        assert_eq!(document.is_some(), number % 100 == 0, "{number}");
    }
    assert_eq!(found[300].as_ref().unwrap().task_id, "300");
    backend.forget(&ids).await.unwrap();
    assert_eq!(count(&server, &["DBSIZE"]), 0);
    assert!(backend.fetch(&[]).await.unwrap().is_empty());
    backend.forget(&[]).await.unwrap();
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn group_is_stored_as_in_celery() {
    let server = RedisServer::start();
    let backend = backend(&server);
    assert_eq!(backend.fetch_group("g").await.unwrap(), None);
    let group = ResultTree::group("g", vec![ResultTree::task("a"), ResultTree::task("b")]);
    backend.store_group(&group).await.unwrap();
    let stored = server.command(&["GET", "celery-taskset-meta-g"]).text();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    let expected = json!({"result": [["g", null], [[["a", null], null], [["b", null], null]]]});
    assert_eq!(stored, expected);
    assert!(count(&server, &["TTL", "celery-taskset-meta-g"]) > 86_000);
    assert_eq!(backend.fetch_group("g").await.unwrap().unwrap(), group);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn chord_begins_as_in_celery() {
    let server = RedisServer::start();
    let backend = backend(&server);
    server.command(&["SET", "celery-taskset-meta-g.c", "done"]);
    let header = ResultTree::group("g", vec![ResultTree::task("a"), ResultTree::task("b")]);
    let chord = ChordStart::new("g", 2, &header);
    backend.begin(&chord).await.unwrap();
    let keys = server.command(&["KEYS", "*"]).texts();
    assert_eq!(keys, ["celery-taskset-meta-g.s"]);
    assert_eq!(server.command(&["GET", &keys[0]]).text(), "2");
    assert!(count(&server, &["TTL", &keys[0]]) > 86_000);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn key_prefix_is_formatted_as_in_celery() {
    let server = RedisServer::start();
    let backend = RedisBackend::new(options(&server, &json!({"global_keyprefix": "rp"})));
    store(&backend, "1", State::Success, "null").await;
    assert_eq!(
        server.command(&["KEYS", "*"]).texts(),
        ["rp_celery-task-meta-1"]
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn malformed_document_error_names_the_task() {
    let server = RedisServer::start();
    let backend = backend(&server);
    server.command(&["SET", "celery-task-meta-1", "garbage"]);
    let error = backend.fetch(&["1".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid);
    assert!(
        error.to_string().contains("the result of task 1"),
        "{error}"
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn closed_backend_returns_closed_errors() {
    let server = RedisServer::start();
    let backend = backend(&server);
    let waiting = backend.wait("1");
    backend.close().await;
    assert_eq!(waiting.await.unwrap_err().kind(), ServiceErrorKind::Closed);
    let error = backend.fetch(&["1".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Closed);
}
