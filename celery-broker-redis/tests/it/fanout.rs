//! Broadcasts and replies.

use std::time::Duration;

use celery_broker_redis::RedisBroker;
use celery_runtime::{
    Broker, ConsumeOptions, Exchange, ExchangeKind, Mailbox, Publication, Queue, ServiceErrorKind,
    Subscription,
};
use serde_json::json;
use test_servers::RedisServer;

use crate::support::{
    TIMEOUT, broker, broker_at, broker_with, count, keys, message_id, send, task, wait_until,
};

async fn next(subscription: &mut dyn Subscription) -> String {
    let message = tokio::time::timeout(TIMEOUT, subscription.next())
        .await
        .expect("in time");
    message_id(&message.expect("a message"))
}

async fn broadcast(broker: &RedisBroker, exchange: &str, key: &str, id: &str) {
    broker
        .broadcast(&Exchange::topic(exchange), key, &task(id))
        .await
        .expect("broadcast");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn subscriber_receives_messages_matching_its_pattern() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mut all = broker
        .subscribe(&Mailbox::of(Exchange::topic("celeryev"), "#"))
        .await
        .unwrap();
    let mut every = broker
        .subscribe(&Mailbox::of(Exchange::topic("celeryev"), ""))
        .await
        .unwrap();
    let mut workers = broker
        .subscribe(&Mailbox::of(Exchange::topic("celeryev"), "worker.*"))
        .await
        .unwrap();
    broadcast(&broker, "celeryev", "task.multi", "1").await;
    broadcast(&broker, "celeryev", "worker.online.twice", "2").await;
    broadcast(&broker, "celeryev", "worker.online", "3").await;
    broadcast(&broker, "other", "worker.online", "4").await;
    broadcast(&broker, "celeryev", "", "5").await;
    assert_eq!(next(&mut *workers).await, "3");
    for subscription in [&mut all, &mut every] {
        for id in ["1", "2", "3", "5"] {
            assert_eq!(next(&mut **subscription).await, id);
        }
    }
    assert!(keys(&server).is_empty());
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn channel_names_match_kombu() {
    let server = RedisServer::start();
    let broker = broker_at(&server.database_url(3), &json!({"global_keyprefix": "p:"}));
    let mut pidbox = broker
        .subscribe(&Mailbox::of(Exchange::fanout("celery.pidbox"), ""))
        .await
        .unwrap();
    let channels = server.command(&["PUBSUB", "NUMPAT"]).integer();
    assert_eq!(channels, 2);
    // An envelope as kombu sends it.
    let envelope = r#"{"body": "e30=", "headers": {"task": "t", "id": "by-hand"},
        "properties": {"body_encoding": "base64"}}"#;
    let receivers = server
        .command(&["PUBLISH", "p:/3.celery.pidbox", envelope])
        .integer();
    assert_eq!(receivers, 1);
    assert_eq!(next(&mut *pidbox).await, "by-hand");
    // A payload that is not a message does not end the subscription.
    server.command(&["PUBLISH", "p:/3.celery.pidbox", "garbage"]);
    broadcast(&broker, "celery.pidbox", "", "ours").await;
    assert_eq!(next(&mut *pidbox).await, "ours");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn declared_fanout_exchange_publishes_to_subscribers() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let queue = Queue::new("bcast").bound_to(Exchange::fanout("tasks"), "");
    broker.declare(&queue).await.unwrap();
    let mut subscription = broker
        .subscribe(&Mailbox::of(Exchange::topic("tasks"), ""))
        .await
        .unwrap();
    let sent = [Publication::to_exchange(task("1"), "tasks", "")];
    broker.publish(&sent).await.remove(0).unwrap();
    assert_eq!(next(&mut *subscription).await, "1");
    assert_eq!(count(&server, &["EXISTS", "bcast"]), 0);
    assert!(keys(&server).is_empty(), "a channel needs no binding");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn broadcast_queue_is_unsupported_for_consumers() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let queues = vec![Queue::new("celery"), Queue::broadcast("news")];
    let error = broker
        .consume(&ConsumeOptions::new(queues, 0))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains("news") && text.contains("RabbitMQ"), "{text}");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn lost_connection_ends_the_subscription() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mut subscription = broker
        .subscribe(&Mailbox::of(Exchange::topic("celeryev"), "#"))
        .await
        .unwrap();
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let error = tokio::time::timeout(TIMEOUT, subscription.next())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Disconnected, "{error}");
}

#[tokio::test]
#[cfg(unix)]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn silent_server_ends_the_subscription() {
    let server = RedisServer::start();
    let options = json!({"health_check_interval": 0.1, "socket_timeout": 0.3});
    let broker = broker_with(&server, &options);
    let mut subscription = broker
        .subscribe(&Mailbox::of(Exchange::topic("celeryev"), "#"))
        .await
        .unwrap();
    server.pause();
    let error = tokio::time::timeout(TIMEOUT, subscription.next())
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
    server.resume();
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn replies_arrive_in_order_and_the_list_expires() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mut replies = broker
        .subscribe(&Mailbox::named("my-replies", Duration::from_millis(500)))
        .await
        .unwrap();
    let ids: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    send(&broker, "my-replies", &ids).await;
    for id in &ids {
        assert_eq!(next(&mut *replies).await, *id);
    }
    let ttl = count(&server, &["PTTL", "my-replies"]);
    assert!(ttl > 0, "{ttl}");
    drop(replies);
    // A late reply finds a list with a time to live.
    send(&broker, "my-replies", &["late"]).await;
    assert_ne!(count(&server, &["PTTL", "my-replies"]), -1);
    wait_until("the list is gone", async || keys(&server).is_empty()).await;
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn open_mailbox_renews_its_time_to_live() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mut replies = broker
        .subscribe(&Mailbox::named("mine", Duration::from_millis(150)))
        .await
        .unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(600), replies.next()).await;
    assert!(waited.is_err(), "nothing was sent");
    assert_ne!(count(&server, &["PTTL", "mine"]), -2, "it is still there");
    send(&broker, "mine", &["1"]).await;
    assert_eq!(next(&mut *replies).await, "1");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn cancelled_next_loses_no_reply() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mut replies = broker
        .subscribe(&Mailbox::named("mine", Duration::from_secs(60)))
        .await
        .unwrap();
    let gave_up = tokio::time::timeout(Duration::ZERO, replies.next()).await;
    assert!(gave_up.is_err());
    send(&broker, "mine", &["1"]).await;
    assert_eq!(next(&mut *replies).await, "1");
}

fn reply_exchange() -> Exchange {
    Exchange::direct("reply.celery.pidbox").transient()
}

const BINDINGS: &str = "_kombu.binding.reply.celery.pidbox";

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn direct_mailbox_is_bound_as_in_kombu_and_unbound_on_drop() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mailbox = Mailbox::control("oid.reply.celery.pidbox", reply_exchange(), "oid");
    let mut opened = broker.subscribe(&mailbox).await.unwrap();
    let members = server.command(&["SMEMBERS", BINDINGS]).texts();
    assert_eq!(members, ["oid\x06\x16\x06\x16oid.reply.celery.pidbox"]);
    let deadlines = [
        "ZRANGE",
        "_kombu.binding_deadlines",
        "0",
        "-1",
        "WITHSCORES",
    ];
    let deadlines = server.command(&deadlines).texts();
    assert_eq!(deadlines[0], "reply.celery.pidbox");
    let deadline: i64 = deadlines[1].parse().unwrap();
    let time = server.command(&["TIME"]).texts();
    let now: i64 = time[0].parse().unwrap();
    assert!(
        (3590..=3600).contains(&(deadline / 1000 - now)),
        "{deadline}"
    );
    send(&broker, &mailbox.name, &["1"]).await;
    assert_eq!(next(&mut *opened).await, "1");
    assert!(count(&server, &["PTTL", &mailbox.name]) > 9_000);

    drop(opened);
    wait_until("the binding is gone", async || {
        keys(&server) == [mailbox.name.as_str()]
    })
    .await;
    // A late reply finds a list with a time to live.
    send(&broker, &mailbox.name, &["late"]).await;
    assert!(count(&server, &["PTTL", &mailbox.name]) > 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn closed_broker_removes_its_bindings() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mailbox = Mailbox::control("oid.reply.celery.pidbox", reply_exchange(), "oid");
    let mut opened = broker.subscribe(&mailbox).await.unwrap();
    broker.close().await;
    let closed = opened.next().await.unwrap_err();
    assert_eq!(closed.kind(), ServiceErrorKind::Closed);
    wait_until("the binding is gone", async || {
        keys(&server) == [mailbox.name.as_str()]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn mailbox_push_sets_a_time_to_live() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let broadcast_reply = async || {
        broker
            .broadcast(&reply_exchange(), "oid", &task("1"))
            .await
            .expect("no receiver is not an error");
    };
    let ttl = |list: &str| count(&server, &["PTTL", list]);
    // Without a binding.
    broadcast_reply().await;
    assert!(keys(&server).is_empty());
    // Bound as kombu's clients are; the first message creates the list.
    for list in ["new", "short", "long", "ever"] {
        let member = format!("oid\x06\x16\x06\x16{list}");
        server.command(&["SADD", BINDINGS, &member]);
    }
    for (list, ttl) in [
        ("short", Some("500")),
        ("long", Some("99000")),
        ("ever", None),
    ] {
        server.command(&["LPUSH", list, "before"]);
        if let Some(ttl) = ttl {
            server.command(&["PEXPIRE", list, ttl]);
        }
    }
    // A durable queue is not a mailbox.
    for set in [BINDINGS, "_kombu.binding_permanent.reply.celery.pidbox"] {
        server.command(&["SADD", set, "oid\x06\x16\x06\x16tasks"]);
    }
    broadcast_reply().await;
    assert!((9_000..=10_000).contains(&ttl("new")), "{}", ttl("new"));
    assert!((9_000..=10_000).contains(&ttl("short")), "{}", ttl("short"));
    assert!(ttl("long") > 90_000);
    assert_eq!(ttl("ever"), -1, "a list without a time to live keeps none");
    for (list, messages) in [
        ("new", 1),
        ("short", 2),
        ("long", 2),
        ("ever", 2),
        ("tasks", 0),
    ] {
        assert_eq!(count(&server, &["LLEN", list]), messages, "{list}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn mailbox_on_a_headers_exchange_is_unsupported() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let headers = Exchange::new("h", ExchangeKind::Headers);
    let mailbox = Mailbox::control("m", headers, "");
    let refused = broker.subscribe(&mailbox).await.unwrap_err();
    assert_eq!(refused.kind(), ServiceErrorKind::Unsupported, "{refused}");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn reply_wakes_its_reader() {
    let server = RedisServer::start();
    let broker = broker(&server);
    let mailbox = Mailbox::control("oid.reply.celery.pidbox", reply_exchange(), "oid");
    let mut opened = broker.subscribe(&mailbox).await.unwrap();
    let started = tokio::time::Instant::now();
    for number in 0..20 {
        let id = number.to_string();
        let (received, ()) = tokio::join!(next(&mut *opened), async {
            // The reader finds the list empty first.
            tokio::task::yield_now().await;
            send(&broker, &mailbox.name, &[&id]).await;
        });
        assert_eq!(received, id);
    }
    // Without notifications it polls once a second.
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "it was not notified"
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn mailbox_of_a_dead_client_expires() {
    let server = RedisServer::start();
    let options = server.url();
    let mut mailbox = Mailbox::control("oid.reply.celery.pidbox", reply_exchange(), "oid");
    mailbox.expires = Duration::from_secs(1);
    let dying = mailbox.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let broker = broker_at(&options, &json!({}));
        let opened = runtime.block_on(broker.subscribe(&dying)).unwrap();
        // Its tasks end here, so the mailbox is not closed.
        runtime.shutdown_background();
        opened
    });
    let _opened = opened.await.unwrap();
    let broker = broker(&server);
    let list = mailbox.name.as_str();
    let ttl = || count(&server, &["PTTL", list]);
    // A reply of Python, then one of this crate.
    server.command(&["LPUSH", list, "late"]);
    assert!((1..=1_000).contains(&ttl()), "{}", ttl());
    wait_until("the list is gone", async || ttl() == -2).await;
    broker
        .broadcast(&reply_exchange(), "oid", &task("later"))
        .await
        .unwrap();
    assert!((9_000..=10_000).contains(&ttl()), "{}", ttl());
}
