//! Publishing: keys, envelopes, errors.

use std::sync::Arc;

use celery_protocol::kombu;
use celery_runtime::{
    App, Binding, Broker, Config, Exchange, ExchangeKind, Publication, Queue, ServiceErrorKind,
    Task,
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use test_servers::RedisServer;

use crate::support::{
    broker, broker_with, consumer, count, ids, keys, queued_count, receive, send, task,
    task_with_priority,
};

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn batch_is_stored_in_order_as_kombu_envelopes() {
    let server = RedisServer::start();
    let broker = broker(&server);
    send(&broker, "celery", &["one", "two"]).await;

    let envelopes = server.command(&["LRANGE", "celery", "0", "-1"]).texts();
    let envelopes: Vec<Value> = envelopes
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    // The right end is taken first.
    assert_eq!(envelopes[1]["headers"]["id"], "one");
    assert_eq!(envelopes[0]["headers"]["id"], "two");
    let properties = &envelopes[0]["properties"];
    let info = json!({"exchange": "", "routing_key": "celery"});
    assert_eq!(properties["delivery_info"], info);
    assert_eq!(properties["body_encoding"], "base64");
    assert_ne!(
        properties["delivery_tag"],
        envelopes[1]["properties"]["delivery_tag"]
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn each_priority_step_has_its_own_list() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let batch: Vec<_> = [0, 2, 3, 8, 9]
        .map(|priority| Publication::to_queue(task_with_priority("id", priority), "q"))
        .into();
    for outcome in broker.publish(&batch).await {
        outcome.unwrap();
    }
    assert_eq!(
        keys(&server),
        ["q", "q\x06\x163", "q\x06\x166", "q\x06\x169"]
    );
    assert_eq!(count(&server, &["LLEN", "q"]), 2);
    let queue = Queue::new("q");
    assert_eq!(broker.depth(&queue).await.unwrap(), 5);
    assert_eq!(broker.purge(&queue).await.unwrap(), 5);
    assert_eq!(broker.depth(&queue).await.unwrap(), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn named_exchange_routes_by_its_bindings() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let topic = |name, key| Queue::new(name).bound_to(Exchange::topic("logs"), key);
    broker.declare(&topic("errors", "*.error")).await.unwrap();
    broker.declare(&topic("all", "#")).await.unwrap();
    let direct = Queue::new("images").bound_to(Exchange::direct("media"), "image");
    broker.declare(&direct).await.unwrap();
    broker.declare(&direct).await.unwrap();

    let batch = [
        Publication::to_exchange(task("1"), "logs", "disk.error"),
        Publication::to_exchange(task("2"), "logs", "disk.full"),
        Publication::to_exchange(task("3"), "media", "image"),
        Publication::to_exchange(task("4"), "media", "video"),
        Publication::to_exchange(task("5"), "nowhere", "image"),
    ];
    let outcomes = broker.publish(&batch).await;

    assert_eq!(queued_count(&server, "errors"), 1);
    assert_eq!(queued_count(&server, "all"), 2);
    assert_eq!(queued_count(&server, "images"), 1);
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|o| o.as_ref().err().map(|e| e.kind()))
        .collect();
    let unroutable = Some(ServiceErrorKind::Unroutable);
    assert_eq!(kinds, [None, None, None, unroutable, unroutable]);
    // kombu writes the same members for this declaration.
    let members = server
        .command(&["SMEMBERS", "_kombu.binding.media"])
        .texts();
    assert_eq!(members, ["image\x06\x16\x06\x16images"]);
    let members = server
        .command(&["SMEMBERS", "_kombu.binding_permanent.media"])
        .texts();
    assert_eq!(members, ["image\x06\x16\x06\x16images"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn key_of_wrong_type_is_an_error_with_remedy() {
    let server = RedisServer::start();
    let broker = broker(&server);
    server.command(&["SET", "celery", "foreign"]);

    let batch = [
        Publication::to_queue(task("1"), "celery"),
        Publication::to_queue(task("2"), "other"),
    ];
    let outcomes = broker.publish(&batch).await;
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid);
    assert!(error.to_string().contains("global_keyprefix"), "{error}");
    assert!(outcomes[1].is_ok());
    let error = broker.declare(&Queue::new("celery")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn global_keyprefix_applies_to_every_key() {
    let server = RedisServer::start();
    let broker = broker_with(&server, &json!({"global_keyprefix": "shop:"}));
    broker.declare(&Queue::new("celery")).await.unwrap();
    send(&broker, "celery", &["1", "2"]).await;
    let consumer = consumer(&broker, &["celery"]).await;
    assert_eq!(ids(&receive(&*consumer, 1).await), ["1"]);
    let keys = keys(&server);
    assert!(keys.iter().all(|key| key.starts_with("shop:")), "{keys:?}");
    for key in [
        "shop:celery",
        "shop:unacked",
        "shop:unacked_index",
        "shop:_kombu.binding.celery",
    ] {
        assert!(keys.iter().any(|found| found == key), "{key} in {keys:?}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn binary_body_is_unchanged_on_the_server() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mut message = task("1");
    message.body = vec![0, 255, 128, 10, 13].into();
    let sent = Publication::to_queue(message, "q");
    broker
        .publish(std::slice::from_ref(&sent))
        .await
        .remove(0)
        .unwrap();
    let raw = server.command(&["LINDEX", "q", "0"]).text();
    let message = kombu::decode(&raw.into()).unwrap();
    assert_eq!(message.body, sent.message.body);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn declare_queue_binds_the_queue_once() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let queue = Queue::new("errors")
        .bound_to(Exchange::topic("logs"), "*.error")
        .also_bound_to(Binding::new(Exchange::direct("alarms"), "red"));
    let queue = Arc::new(queue);
    let send = async |exchange: &str, key: &str| {
        let publication = Publication::to_exchange(task("1"), exchange, key);
        let batch = [publication.declare_queue(Arc::clone(&queue))];
        broker.publish(&batch).await.remove(0)
    };
    send("logs", "disk.error").await.unwrap();
    send("alarms", "red").await.unwrap();
    assert_eq!(queued_count(&server, "errors"), 2);
    assert_eq!(count(&server, &["SCARD", "_kombu.binding.logs"]), 1);
    assert_eq!(count(&server, &["SCARD", "_kombu.binding.alarms"]), 1);
    let error = send("logs", "disk.full").await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unroutable);

    // As after a restart of a server without persistence.
    server.command(&["FLUSHALL"]);
    send("logs", "disk.error").await.unwrap();
    assert_eq!(queued_count(&server, "errors"), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn anonymous_exchange_needs_no_declaration() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let queue = Arc::new(Queue::new("q"));
    let batch = [Publication::to_queue(task("1"), "q").declare_queue(queue)];
    broker.publish(&batch).await.remove(0).unwrap();
    assert_eq!(keys(&server), ["q"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn failed_declaration_fails_only_its_own_messages() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let headers = Exchange::new("h", ExchangeKind::Headers);
    let impossible = Arc::new(Queue::new("q").bound_to(headers, ""));
    let batch = [
        Publication::to_exchange(task("1"), "h", "k").declare_queue(impossible),
        Publication::to_queue(task("2"), "other"),
    ];
    let outcomes = broker.publish(&batch).await;
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unsupported, "{error}");
    assert!(outcomes[1].is_ok());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn fifty_thousand_concurrent_sends_are_all_sent() {
    const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").queue("new").ignore_result();
    let server = RedisServer::start();
    let client = App::new(Arc::new(broker(&server)))
        .with_config(Config::new())
        .client();
    let sends = (0..50_000).map(|number| client.send(ADD, (number, number)));
    let failed: Vec<_> = join_all(sends)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(failed.is_empty(), "{} failed: {}", failed.len(), failed[0]);
    assert_eq!(queued_count(&server, "new"), 50_000);
}
