//! Tests of the rpc result backend.

use std::sync::Arc;
use std::time::Duration;

use celery_broker_amqp::RpcBackend;
use celery_protocol::{Raw, ResultDocument, State};
use celery_runtime::{Broker, ResultBackend, ResultRecord};

use crate::support::{TestVhost, wait_until, within, without_default_type};

fn document(id: &str, state: State) -> ResultDocument<'static> {
    ResultDocument::new(id.to_owned(), state, Raw::json("5"))
}

async fn store(worker: &RpcBackend, document: &ResultDocument<'_>, reply_to: &str) {
    let record = ResultRecord::new(document).reply(Some(reply_to), Some(&document.task_id));
    within("store", worker.store(record)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn reply_queue_matches_celery_and_is_deleted_with_the_client() {
    let test_vhost = TestVhost::create();
    let broker: Arc<dyn Broker> = Arc::new(test_vhost.broker());
    let backend = RpcBackend::new(broker).result_expires(Some(Duration::from_secs(3_600)));
    let name = backend.reply_to().unwrap();
    assert!(
        test_vhost.rows("list_queues", &["name"]).is_empty(),
        "declared before it is needed"
    );
    within("prepare", backend.prepare(&["id".to_owned()]))
        .await
        .unwrap();
    let columns = [
        "name",
        "durable",
        "auto_delete",
        "exclusive",
        "consumers",
        "arguments",
    ];
    assert_eq!(
        without_default_type(test_vhost.rows("list_queues", &columns)),
        [[
            &name,
            "true",
            "true",
            "false",
            "1",
            "[{\"x-expires\",3600000}]"
        ]]
    );
    drop(backend);
    wait_until("the queue is deleted", async || {
        test_vhost.rows("list_queues", &["name"]).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn result_has_the_properties_of_celery() {
    let test_vhost = TestVhost::create();
    let raw = test_vhost.raw().await;
    for (name, persistent) in [("transient", false), ("persistent", true)] {
        let worker = RpcBackend::new(Arc::new(test_vhost.broker()));
        let worker = if persistent {
            worker.persistent()
        } else {
            worker
        };
        raw.declare(name, lapin::types::FieldTable::default()).await;
        store(&worker, &document("15dd1bb7", State::Success), name).await;
        let sent = raw.take(name).await.unwrap();
        // The capture `amqp-firehose-success-rpc` has the same properties.
        let properties = &sent.properties;
        let text = |text: &Option<lapin::types::ShortString>| text.clone().unwrap().to_string();
        assert_eq!(
            (sent.exchange.as_str(), sent.routing_key.as_str()),
            ("", name)
        );
        assert_eq!(text(properties.correlation_id()), "15dd1bb7");
        assert_eq!(text(properties.content_type()), "application/json");
        assert_eq!(text(properties.content_encoding()), "utf-8");
        assert_eq!(*properties.priority(), Some(0));
        assert_eq!(
            *properties.delivery_mode(),
            Some(if persistent { 2 } else { 1 })
        );
        assert!(
            properties
                .headers()
                .as_ref()
                .is_some_and(|headers| headers.inner().is_empty())
        );
        assert!(properties.reply_to().is_none());
        let body: serde_json::Value = serde_json::from_slice(&sent.data).unwrap();
        for (field, value) in [
            ("status", serde_json::json!("SUCCESS")),
            ("result", serde_json::json!(5)),
            ("traceback", serde_json::json!(null)),
            ("task_id", serde_json::json!("15dd1bb7")),
        ] {
            assert_eq!(body[field], value, "{body}");
        }
        assert!(body.get("date_done").is_some(), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn broken_connection_fails_wait_and_next_wait_reconnects() {
    let test_vhost = TestVhost::create();
    let raw = test_vhost.raw().await;
    let client = RpcBackend::new(Arc::new(test_vhost.broker()));
    let name = client.reply_to().unwrap();
    let waiting = |id: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.wait(id).await })
    };
    let opened = async || test_vhost.rows("list_queues", &["name", "consumers"]) == [[&*name, "1"]];
    let first = waiting("a");
    wait_until("the client waits", opened).await;
    raw.delete(&name).await;
    let error = within("the wait ends", first).await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error}");
    let second = waiting("b");
    wait_until("the client waits", opened).await;
    let worker = RpcBackend::new(Arc::new(test_vhost.broker()));
    store(&worker, &document("b", State::Success), &name).await;
    let found = within("the result", second).await.unwrap().unwrap();
    assert_eq!(found.task_id, "b");
    // The reply queue of this result does not exist, so that the server drops it.
    store(&worker, &document("c", State::Success), "missing").await;
}

/// A wait that starts while the connection breaks ends as well.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn wait_that_starts_while_the_connection_breaks_does_not_hang() {
    let test_vhost = TestVhost::create();
    let raw = test_vhost.raw().await;
    let client = RpcBackend::new(Arc::new(test_vhost.broker()));
    let name = client.reply_to().unwrap();
    for round in 0..40 {
        within("prepare", client.prepare(&[])).await.unwrap();
        let waits: Vec<_> = (0..20)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move {
                    let id = format!("{round}-{number}");
                    for _ in 0..number * 3 {
                        tokio::task::yield_now().await;
                    }
                    client.wait(&id).await
                })
            })
            .collect();
        raw.delete(&name).await;
        // Later calls have declared a new queue: deleting it ends them.
        for wait in waits {
            let ended = tokio::time::timeout(Duration::from_secs(3), async {
                while !wait.is_finished() {
                    raw.delete(&name).await;
                }
            });
            assert!(ended.await.is_ok(), "a wait of round {round} hangs");
            wait.await.unwrap().unwrap_err();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn read_without_the_reply_queue_fails_transiently() {
    let test_vhost = TestVhost::create();
    let raw = test_vhost.raw().await;
    let client = RpcBackend::new(Arc::new(test_vhost.broker()));
    let name = client.reply_to().unwrap();
    let ids = ["a".to_owned()];
    let mut failures = 0;
    for _ in 0..200 {
        within("prepare", client.prepare(&[])).await.unwrap();
        let (_, read) = tokio::join!(raw.delete(&name), client.fetch(&ids));
        if let Err(error) = read {
            assert!(error.is_transient(), "{error}");
            failures += 1;
        }
    }
    assert!(failures > 0, "no read has met the missing queue");
}
