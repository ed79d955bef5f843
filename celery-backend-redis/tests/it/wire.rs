//! Keys, documents and connections on the server.

use std::time::Duration;

use celery_backend_redis::{RedisBackend, RedisStore};
use celery_protocol::{ResultTree, State};
use celery_runtime::{ResultBackend, Store};

use crate::support::{Setup, store_it, success};

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn keys_documents_and_expiry_match_celery() {
    let setup = Setup::start();
    let backend = setup.redis_backend();
    store_it(&backend, &success("id-1", "5")).await;
    let text = setup.text("celery-task-meta-id-1");
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        document,
        serde_json::json!({
            "status": "SUCCESS", "result": 5, "traceback": null, "children": [],
            "date_done": null, "task_id": "id-1",
        })
    );
    let left = setup.integer(&["TTL", "celery-task-meta-id-1"]);
    assert!((86_000..=86_400).contains(&left), "{left}");

    let forever = setup.redis_backend().result_expires(None);
    store_it(&forever, &success("id-2", "5")).await;
    assert_eq!(setup.integer(&["TTL", "celery-task-meta-id-2"]), -1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn global_keyprefix_applies_to_every_key() {
    let setup = Setup::start();
    let options = setup.options_with(&serde_json::json!({"global_keyprefix": "shop"}));
    let backend = RedisBackend::new(options.clone());
    store_it(&backend, &success("id-1", "5")).await;
    backend
        .store_group(&ResultTree::group("g", vec![ResultTree::task("id-1")]))
        .await
        .unwrap();
    let store = RedisStore::new(options);
    store
        .put_if_absent("lock", b"1", Duration::from_secs(9))
        .await
        .unwrap();
    let reply = setup.server.command(&["KEYS", "*"]);
    let mut keys = reply.texts();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "shop_celery-rs-lock",
            "shop_celery-task-meta-id-1",
            "shop_celery-taskset-meta-g"
        ]
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn success_written_by_other_clients_is_kept() {
    let setup = Setup::start();
    let backend = setup.redis_backend();
    for (id, stored) in [
        (
            "reordered",
            r#"{"task_id": "reordered", "result": 1, "status": "SUCCESS"}"#,
        ),
        ("spaced", r#"{ "status" : "SUCCESS", "result": 1}"#),
        ("nan", r#"{"result": NaN, "status": "SUCCESS"}"#),
    ] {
        setup
            .server
            .command(&["SET", &format!("celery-task-meta-{id}"), stored]);
        let mut failed = success(id, "null");
        failed.status = State::Failure;
        store_it(&backend, &failed).await;
        assert_eq!(setup.text(&format!("celery-task-meta-{id}")), stored);
    }
    // A malformed document is not a success.
    setup
        .server
        .command(&["SET", "celery-task-meta-garbage", "not JSON"]);
    store_it(&backend, &success("garbage", "2")).await;
    assert!(setup.text("celery-task-meta-garbage").contains("SUCCESS"));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn finished_waits_leave_no_subscription() {
    let setup = Setup::start();
    let backend = setup.redis_backend();
    for round in 0..100 {
        let id = format!("id-{round}");
        let waiting = backend.wait(&id);
        let given_up = tokio::time::timeout(Duration::from_millis(1), waiting).await;
        assert!(given_up.is_err());
    }
    store_it(&backend, &success("last", "1")).await;
    backend.wait("last").await.unwrap();
    let gone = async {
        while !setup
            .server
            .command(&["PUBSUB", "CHANNELS"])
            .texts()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap();
    // The subscriber, a pooled connection, and that of this command.
    let clients = setup.server.command(&["CLIENT", "LIST"]).text();
    assert!(clients.trim().lines().count() <= 3, "{clients}");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn malformed_document_error_names_the_id() {
    let setup = Setup::start();
    setup
        .server
        .command(&["SET", "celery-task-meta-bad", "{\"status\": 5"]);
    let error = setup
        .redis_backend()
        .fetch(&["bad".to_owned()])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("task bad"), "{error}");
    assert!(!error.is_transient());
}
