//! Addresses, credentials, failover.

use celery_broker_redis::{RedisBroker, RedisOptions};
use celery_runtime::{Broker, Mailbox, Queue, ServiceErrorKind};
use serde_json::{Map, json};
use test_servers::RedisServer;

use crate::support::{broker_at, consumer, count, id, queued_count, receive_one, send, wait_until};

#[tokio::test]
async fn unreachable_server_error_names_the_address() {
    let broker = broker_at("redis://:secret@127.0.0.1:1/2", &json!({}));
    let error = broker.depth(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unreachable);
    assert_eq!(
        error.to_string(),
        "cannot count the messages of queue q on redis://127.0.0.1:1/2: connection refused \
         (is the server running at this address?)"
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn wrong_credentials_are_denied_and_not_printed() {
    let server = RedisServer::builder().password("rightword").start();
    let address = format!("127.0.0.1:{}", server.port());
    for credentials in ["", ":wrongword@", "unknown:wrongword@"] {
        let broker = broker_at(&format!("redis://{credentials}{address}"), &json!({}));
        let error = broker.depth(&Queue::new("q")).await.unwrap_err();
        assert_eq!(
            error.kind(),
            ServiceErrorKind::Denied,
            "{credentials}: {error}"
        );
        let shown = format!("{error} {error:?} {broker:?}");
        assert!(!shown.contains("wrongword"), "{shown}");
        assert!(shown.contains("check user and password"), "{shown}");
        let options = celery_runtime::ConsumeOptions::new(vec!["q".into()], 1);
        let error = broker.consume(&options).await.unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
        let error = broker
            .subscribe(&Mailbox::of(celery_runtime::Exchange::topic("e"), "#"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
    }
    let broker = broker_at(&server.url(), &json!({}));
    assert_eq!(broker.depth(&Queue::new("q")).await.unwrap(), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn acl_user_without_permission_is_denied() {
    let server = RedisServer::builder()
        .user("ann", "word")
        .setting("user", &["bob", "on", ">word", "~other", "&*", "+@all"])
        .start();
    let at = |user: &str| {
        server
            .url()
            .replace("redis://", &format!("redis://{user}:word@"))
    };
    let ann = broker_at(&at("ann"), &json!({}));
    send(&ann, "q", &["1"]).await;
    let bob = broker_at(&at("bob"), &json!({}));
    let error = bob.depth(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn databases_are_separate() {
    let server = RedisServer::start();
    let second = broker_at(&server.database_url(2), &json!({}));
    send(&second, "q", &["1"]).await;
    assert_eq!(queued_count(&server, "q"), 0);
    let consumer = consumer(&second, &["q"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn unknown_database_is_invalid() {
    let server = RedisServer::start();
    let broker = broker_at(&server.database_url(9999), &json!({}));
    let error = broker.depth(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
}

#[tokio::test]
#[cfg(unix)]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn unix_socket_url_connects() {
    let server = RedisServer::builder().unix_socket().start();
    let path = server.socket();
    for scheme in ["unix", "redis+socket"] {
        let url = format!("{scheme}://{}?virtual_host=1", path.display());
        let broker = broker_at(&url, &json!({}));
        send(&broker, "q", &[scheme]).await;
        let consumer = consumer(&broker, &["q"]).await;
        assert_eq!(id(&receive_one(&*consumer).await), scheme);
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn unreachable_first_url_fails_over_to_the_next() {
    let server = RedisServer::start();
    let url = format!("redis://127.0.0.1:1;{}", server.url());
    let broker = broker_at(&url, &json!({}));
    send(&broker, "q", &["1"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn sentinel_url_follows_the_master_after_failover() {
    let master = RedisServer::start();
    let replica = RedisServer::builder().replica_of(&master).start();
    let sentinel = RedisServer::sentinel("mymaster", &master);
    let url = sentinel.url().replace("redis://", "sentinel://");
    let broker = broker_at(&url, &json!({"master_name": "mymaster"}));
    send(&broker, "q", &["1"]).await;
    assert_eq!(queued_count(&master, "q"), 1);
    wait_until("the replica has it", async || {
        count(&replica, &["LLEN", "q"]) == 1
    })
    .await;
    wait_until("sentinel knows the replica", async || {
        let masters = sentinel.command(&["INFO", "sentinel"]).text();
        masters.contains("slaves=1")
    })
    .await;

    master.kill();

    wait_until("the replica is master", async || {
        replica
            .command(&["INFO", "replication"])
            .text()
            .contains("role:master")
    })
    .await;
    let consumer = loop {
        let options = celery_runtime::ConsumeOptions::new(vec!["q".into()], 1);
        match broker.consume(&options).await {
            Ok(consumer) => break consumer,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    };
    assert_eq!(id(&receive_one(&*consumer).await), "1");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn master_unknown_to_sentinel_is_unreachable() {
    let master = RedisServer::start();
    let sentinel = RedisServer::sentinel("mymaster", &master);
    let url = sentinel.url().replace("redis://", "sentinel://");
    let broker = broker_at(&url, &json!({"master_name": "another"}));
    let error = broker.depth(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unreachable, "{error}");
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn external_pool_is_used_and_stays_open() {
    let server = RedisServer::start();
    let pool = deadpool_redis::Config::from_url(server.url())
        .create_pool(Some(deadpool_redis::Runtime::Tokio1))
        .unwrap();
    let options = RedisOptions::parse(&server.url(), &Map::new()).unwrap();
    let broker = RedisBroker::from_pool(pool.clone(), options);
    send(&broker, "q", &["1"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
    assert!(pool.status().size > 0);
    broker.close().await;
    assert!(!pool.is_closed());
}

#[cfg(any(feature = "tls-rustls", feature = "tls-native-tls"))]
#[tokio::test]
#[ignore = "needs redis-server and openssl; run cargo xtask test"]
async fn tls_certificate_is_verified_by_default() {
    let server = RedisServer::with_tls();
    let trusted = format!(
        "{}?ssl_ca_certs={}",
        server.tls_url(),
        server.authority().display()
    );
    let broker = broker_at(&trusted, &json!({}));
    send(&broker, "q", &["1"]).await;
    let consumer = consumer(&broker, &["q"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");

    let careless = broker_at(
        &format!("{}?ssl_cert_reqs=none", server.tls_url()),
        &json!({}),
    );
    send(&careless, "q", &["2"]).await;

    let strict = broker_at(&server.tls_url(), &json!({}));
    let error = strict.depth(&Queue::new("q")).await.unwrap_err();
    assert_ne!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
}

#[cfg(not(any(feature = "tls-rustls", feature = "tls-native-tls")))]
#[tokio::test]
async fn tls_without_feature_is_invalid() {
    let broker = broker_at("rediss://127.0.0.1:1", &json!({}));
    let error = broker.depth(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid);
    assert!(error.to_string().contains("tls-rustls"), "{error}");
}
