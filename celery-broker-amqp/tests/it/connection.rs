//! Tests of addresses, credentials, failover, TLS and heartbeats.

use std::time::{Duration, Instant};

use celery_broker_amqp::AmqpOptions;
use celery_runtime::{Broker, ConsumeOptions, Exchange, Mailbox, Queue, ServiceErrorKind};
use test_servers::{Proxy, RabbitServer};

use crate::support::{
    TestVhost, broker_at, consumer, id, publish_one, receive_one, send, to, wait_until, within,
};

/// Returns the errors of all operations that connect.
async fn errors(url: &str) -> Vec<celery_runtime::ServiceError> {
    let broker = broker_at(url);
    let queue = Queue::new("q");
    let options = ConsumeOptions::new(vec![queue.clone()], 1);
    let events = Exchange::topic("e");
    let errors = vec![
        within("depth", broker.depth(&queue)).await.unwrap_err(),
        publish_one(&broker, to("q", "1")).await.unwrap_err(),
        within("consume", broker.consume(&options))
            .await
            .unwrap_err(),
        within(
            "subscribe",
            broker.subscribe(&Mailbox::of(events.clone(), "#")),
        )
        .await
        .unwrap_err(),
    ];
    for error in &errors {
        let shown = format!(
            "{error} {error:?} {broker:?} {:?}",
            std::error::Error::source(error)
        );
        assert!(!shown.contains("secret"), "{shown}");
    }
    errors
}

fn unused_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn unused_address_is_unreachable_and_named() {
    let port = unused_port();
    for error in errors(&format!("amqp://me:secret@127.0.0.1:{port}/shop")).await {
        assert_eq!(error.kind(), ServiceErrorKind::Unreachable, "{error}");
        let text = error.to_string();
        let address = format!("amqp://me:***@127.0.0.1:{port}/shop");
        assert!(text.contains(&address), "{text}");
        assert!(text.contains("connection refused"), "{text}");
    }
    for error in errors("amqp://me:secret@no-such-host.invalid/shop").await {
        assert_eq!(error.kind(), ServiceErrorKind::Unreachable, "{error}");
    }
}

#[tokio::test]
async fn server_without_amqp_is_unreachable_within_the_connect_timeout() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let broker = broker_at(&format!("amqp://127.0.0.1:{port}?connection_timeout=0.3"));
    let started = Instant::now();
    let error = broker.depth(&Queue::new("q")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unreachable, "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert!(error.to_string().contains("300ms"), "{error}");
}

#[test]
fn too_long_virtual_host_name_is_an_error() {
    let url = format!("amqp://me:secret@127.0.0.1:1/{}", "v".repeat(300));
    let error = AmqpOptions::parse(&url).unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid);
    let text = error.to_string();
    assert!(
        text.contains("255 bytes") && !text.contains("secret"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn wrong_credentials_or_virtual_host_is_a_permanent_error_with_a_remedy() {
    let test_vhost = TestVhost::create();
    let denied = test_vhost.url.replace("guest:guest@", "guest:secret@");
    for error in errors(&denied).await {
        assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
        assert!(
            error.to_string().contains("check user and password"),
            "{error}"
        );
    }
    let missing = RabbitServer::shared().vhost_url("nowhere");
    for error in errors(&missing).await {
        assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("nowhere") && text.contains("check the virtual host"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn operation_without_permission_is_denied() {
    let test_vhost = TestVhost::create();
    let server = RabbitServer::shared();
    let vhost = test_vhost.url.rsplit('/').next().unwrap().to_owned();
    crate::support::blocking(|| {
        server.control(&["add_user", "reader", "word"]);
        server.control(&["set_permissions", "-p", &vhost, "reader", "^$", "^$", ".*"]);
    });
    send(&test_vhost.broker(), &Queue::new("q"), &["1"]).await;
    let broker = broker_at(&test_vhost.url.replace("guest:guest@", "reader:word@"));
    let error = broker.declare(&Queue::new("other")).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
    let publication =
        celery_runtime::Publication::to_exchange(crate::support::task("1"), "amq.topic", "k");
    let error = publish_one(&broker, publication).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Denied, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn next_url_is_used_when_the_first_fails() {
    let test_vhost = TestVhost::create();
    let broker = broker_at(&format!(
        "amqp://127.0.0.1:{}/x;{}",
        unused_port(),
        test_vhost.url
    ));
    let queue = Queue::new("q");
    send(&broker, &queue, &["1"]).await;
    let consumer = consumer(&broker, &[&queue], 1).await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
    // A server that is silent while connecting is skipped, too.
    let network = Proxy::to(RabbitServer::shared().port());
    network.silence();
    let silent = test_vhost.url.replace(
        &RabbitServer::shared().port().to_string(),
        &network.port().to_string(),
    );
    let broker = broker_at(&format!(
        "{silent}?connection_timeout=0.3;{}",
        test_vhost.url
    ));
    assert_eq!(within("depth", broker.depth(&queue)).await.unwrap(), 0);
}

#[cfg(any(feature = "tls-rustls", feature = "tls-native-tls"))]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server and openssl; run cargo xtask test"]
async fn tls_verifies_server_and_client_certificates() {
    let server = crate::support::blocking(|| RabbitServer::builder().client_certificates().start());
    let url = |host: &str, query: &str| server.tls_url().replace("127.0.0.1", host) + query;
    let (authority, certificate, key) = (
        server.authority().display(),
        server.client_certificate().display(),
        server.client_key().display(),
    );
    let trusting = format!("?cacertfile={authority}");
    let proven = format!("{trusting}&certfile={certificate}&keyfile={key}");
    let queue = Queue::new("q");
    for (number, url) in [
        url("localhost", &proven),
        url("127.0.0.1", &proven),
        url(
            "127.0.0.1",
            &format!("{proven}&server_name_indication=localhost"),
        ),
    ]
    .iter()
    .enumerate()
    {
        let broker = broker_at(url);
        let sent = number.to_string();
        send(&broker, &queue, &[&sent]).await;
        let consumer = consumer(&broker, &[&queue], 1).await;
        let delivery = receive_one(&*consumer).await;
        assert_eq!(id(&delivery), sent);
        crate::support::ack_all(&*consumer, &[delivery]).await;
        within("close", consumer.close()).await.unwrap();
    }

    let other = format!("{proven}&server_name_indication=rabbit.example");
    let missing = "?cacertfile=/nowhere/ca.pem".to_owned();
    let mut wrong = Vec::new();
    for (query, part) in [
        (String::new(), "cacertfile"),
        (other, "server_name_indication"),
        (missing, "/nowhere/ca.pem"),
    ] {
        let broker = broker_at(&url("127.0.0.1", &query));
        let error = within("depth", broker.depth(&queue)).await.unwrap_err();
        wrong.extend((error.is_transient() || !error.to_string().contains(part)).then_some(error));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The server rejects a client without a certificate.
    let broker = broker_at(&url("127.0.0.1", &trusting));
    let error = within("depth", broker.depth(&queue)).await.unwrap_err();
    println!("{:?} {error}", error.kind());
    assert_ne!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
}

#[cfg(any(feature = "tls-rustls", feature = "tls-native-tls"))]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server and openssl; run cargo xtask test"]
async fn tls_to_a_plain_port_fails_before_the_timeout() {
    let test_vhost = TestVhost::create();
    let broker = broker_at(&test_vhost.url.replace("amqp://", "amqps://"));
    let error = within("depth", broker.depth(&Queue::new("q")))
        .await
        .unwrap_err();
    println!("{:?} {error}", error.kind());
    assert_ne!(error.kind(), ServiceErrorKind::TimedOut, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn heartbeat_is_the_smaller_of_both_sides() {
    let test_vhost = TestVhost::create();
    for (query, seconds) in [
        ("?heartbeat=3", "3"),
        ("", "10"),
        ("?heartbeat=0", "60"),
        ("?heartbeat=600", "60"),
    ] {
        let broker = broker_at(&format!("{}{query}", test_vhost.url));
        broker.depth(&Queue::new("q")).await.unwrap();
        wait_until("the connection is listed", async || {
            test_vhost.connections(&["timeout"]) == [[seconds]]
        })
        .await;
        within("close", broker.close()).await;
        wait_until("the connection is closed", async || {
            test_vhost.connections(&["timeout"]).is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn silent_network_is_detected_by_heartbeats() {
    let test_vhost = TestVhost::create();
    let network = Proxy::to(RabbitServer::shared().port());
    let port = RabbitServer::shared().port().to_string();
    let url = test_vhost.url.replace(&port, &network.port().to_string());
    let broker = broker_at(&format!("{url}?heartbeat=1"));
    let queue = Queue::new("q");
    let first = consumer(&broker, &[&queue], 4).await;
    publish_one(&broker, to("q", "1")).await.unwrap();
    assert_eq!(id(&receive_one(&*first).await), "1");

    network.silence();
    let started = Instant::now();
    let (received, sent) = tokio::join!(
        within("the consumer notices", first.receive(1)),
        publish_one(&broker, to("q", "2"))
    );
    let noticed = started.elapsed();
    for error in [received.unwrap_err(), sent.unwrap_err()] {
        assert!(error.is_transient(), "{error}");
        assert!(error.to_string().contains("heartbeats"), "{error}");
    }
    println!("a silent network was detected after {noticed:?} with heartbeats of 1 s");
    assert!(noticed < Duration::from_millis(2_700), "{noticed:?}");
    drop(first);

    network.heal();
    let healed = Instant::now();
    let second = consumer(&broker, &[&queue], 4).await;
    publish_one(&broker, to("q", "3")).await.unwrap();
    println!("and replaced after {:?}", healed.elapsed());
    assert!(healed.elapsed() < Duration::from_secs(2));
    let _ = receive_one(&*second).await;
}
