//! Tests of remote control on the in-memory broker with simulated workers.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use celery_protocol::{ControlReply, ControlRequest, Map, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::App;
use crate::boundary::{Broker, Exchange, Mailbox, Queue, ServiceErrorKind};
use crate::control::ControlError;
use crate::env::Clock;
use crate::memory::MemoryBroker;

/// An app, and the requests that its simulated workers receive.
struct Fixture {
    app: App,
    broker: Arc<MemoryBroker>,
    requests: mpsc::UnboundedReceiver<ControlRequest>,
}

impl Fixture {
    /// Simulates workers of these names, which reply with `answer` to every command.
    async fn with(nodes: &[&'static str], answer: fn(&str) -> Value) -> Self {
        let broker = Arc::new(MemoryBroker::new());
        let app = App::new(broker.clone()).with_clock(Clock::tokio(UNIX_EPOCH));
        let pidbox = Exchange::fanout("celery.pidbox").transient();
        let (seen, requests) = mpsc::unbounded_channel();
        let mut mailbox = broker.subscribe(&Mailbox::of(pidbox, "")).await.unwrap();
        let (nodes, workers) = (nodes.to_vec(), broker.clone());
        tokio::spawn(async move {
            while let Ok(message) = mailbox.next().await {
                let request = ControlRequest::read(&message).unwrap();
                seen.send(request.clone()).ok();
                let Some(address) = &request.reply_to else {
                    continue;
                };
                let exchange = Exchange::direct(address.exchange.as_str()).transient();
                for node in &nodes {
                    // A reply to an earlier call is in the same mailbox.
                    for ticket in [Some("older".to_owned()), request.ticket.clone()] {
                        let mut reply = ControlReply::new(*node, answer(node));
                        reply.ticket = ticket;
                        reply.clock = 100;
                        let reply = reply.write().unwrap();
                        workers
                            .broadcast(&exchange, &address.routing_key, &reply)
                            .await
                            .unwrap();
                    }
                }
            }
        });
        Self {
            app,
            broker,
            requests,
        }
    }

    async fn request(&mut self) -> ControlRequest {
        self.requests.recv().await.unwrap()
    }
}

fn pong(_: &str) -> Value {
    Value::Map(Map::from([("ok", "pong")]))
}

#[tokio::test(start_paused = true)]
async fn command_without_replies_matches_celery_and_opens_no_mailbox() {
    let mut fixture = Fixture::with(&[], pong).await;
    let control = fixture.app.control();
    control.revoke(["id-1"]).send().await.unwrap();
    let request = fixture.request().await;
    let expected = Map::from([
        ("task_id", Value::from("id-1")),
        ("terminate", false.into()),
        ("signal", "SIGTERM".into()),
    ]);
    assert_eq!(
        (&*request.method, &request.arguments),
        ("revoke", &expected)
    );
    assert_eq!((request.ticket, request.reply_to), (None, None));
    assert_eq!((request.clock, request.expires), (1, 1.0));
    let control = control.glob("w*");
    control
        .terminate(["a", "b"], "SIGKILL")
        .send()
        .await
        .unwrap();
    let request = fixture.request().await;
    let ids = request.arguments.get("task_id").unwrap();
    assert_eq!(ids, &Value::from(vec!["a", "b"]));
    assert_eq!(request.arguments.get("signal"), Some(&"SIGKILL".into()));
    let matcher = (request.pattern.as_deref(), request.matcher.as_deref());
    assert_eq!(matcher, (Some("w*"), Some("glob")));
    assert_eq!(request.clock, 2);
}

#[tokio::test(start_paused = true)]
async fn replies_are_collected_until_the_timeout() {
    let mut fixture = Fixture::with(&["a", "b"], pong).await;
    let started = Instant::now();
    let replies = fixture.app.control().ping().await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    let nodes: Vec<_> = replies.answers().map(|(node, ())| node).collect();
    assert_eq!(nodes, ["a", "b"], "foreign tickets do not count");
    assert!(!replies.is_truncated());
    let request = fixture.request().await;
    assert_eq!(request.reply_to.unwrap().exchange, "reply.celery.pidbox");
    assert!(
        fixture.app.inner().logical_clock.value() > 100,
        "clocks are adjusted"
    );
}

#[tokio::test(start_paused = true)]
async fn call_ends_at_the_limit_of_replies() {
    let fixture = Fixture::with(&["a", "b"], pong).await;
    let started = Instant::now();
    let control = fixture.app.control().timeout(Duration::from_secs(60));
    let named = control.clone().destination(["a", "b"]);
    assert_eq!(named.ping().await.unwrap().len(), 2);
    assert_eq!(control.clone().limit(1).ping().await.unwrap().len(), 1);
    assert_eq!(started.elapsed(), Duration::ZERO);
    // Without workers the result is empty.
    let empty = Fixture::with(&[], pong).await;
    assert!(empty.app.inspect().ping().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn empty_destination_is_an_error() {
    let mut fixture = Fixture::with(&["a"], pong).await;
    let control = fixture.app.control().destination(Vec::<String>::new());
    let error = control.shutdown().send().await.unwrap_err();
    assert!(
        matches!(error, ControlError::EmptyDestination { .. }),
        "{error}"
    );
    assert!(!error.is_transient());
    assert!(fixture.requests.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn invalid_reply_of_one_worker_keeps_the_others() {
    let fixture = Fixture::with(&["good", "bad", "odd"], |node| match node {
        "good" => Value::Map(Map::from([("clock", 7)])),
        "bad" => Value::Map(Map::from([("error", "KeyError('clock')")])),
        _ => Value::from("?"),
    })
    .await;
    let clocks = fixture.app.inspect().clock().await.unwrap();
    assert_eq!(clocks.answers().collect::<Vec<_>>(), [("good", &7)]);
    assert_eq!(clocks.errors().count(), 2);
}

#[tokio::test(start_paused = true)]
async fn lost_mailbox_is_an_error_and_the_next_call_opens_another() {
    let mut fixture = Fixture::with(&[], pong).await;
    let control = fixture.app.control();
    let calling = tokio::spawn({
        let control = control.clone();
        async move { control.ping().await }
    });
    let first = fixture.request().await.reply_to.unwrap();
    fixture.broker.faults().go_down();
    let error = calling.await.unwrap().unwrap_err();
    assert!(matches!(error, ControlError::Receive { .. }), "{error}");
    assert!(error.is_transient());

    fixture.broker.faults().come_back();
    let pidbox = Exchange::fanout("celery.pidbox").transient();
    let mut workers = fixture
        .broker
        .subscribe(&Mailbox::of(pidbox, ""))
        .await
        .unwrap();
    let replies = control.call("custom", Map::new()).await.unwrap();
    assert!(replies.is_empty(), "the workers are disconnected, too");
    let request = ControlRequest::read(&workers.next().await.unwrap()).unwrap();
    assert_ne!(request.reply_to.unwrap(), first);
    let name = format!("{}.reply.celery.pidbox", first.routing_key);
    assert_eq!(fixture.broker.depth(&Queue::new(name)).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn unresponsive_broker_is_an_error_within_the_timeout() {
    let fixture = Fixture::with(&[], pong).await;
    fixture.broker.faults().freeze();
    let started = Instant::now();
    let sent = fixture.app.control().heartbeat().send().await.unwrap_err();
    let ControlError::Send { cause, .. } = &sent else {
        panic!("{sent}");
    };
    assert_eq!(cause.kind(), ServiceErrorKind::TimedOut);
    let inspected = fixture.app.inspect().conf().await;
    assert!(matches!(inspected, Err(ControlError::Receive { .. })));
    assert_eq!(started.elapsed(), 2 * Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn exchange_names_follow_the_settings() {
    let fixture = Fixture::with(&[], pong).await;
    let config = crate::Config::new()
        .set("control_exchange", "shop")
        .unwrap()
        .set("control_queue_expires", 3)
        .unwrap();
    let app = fixture.app.clone().with_config(config);
    let pidbox = Exchange::fanout("shop.pidbox").transient();
    let mut shop = fixture
        .broker
        .subscribe(&Mailbox::of(pidbox, ""))
        .await
        .unwrap();
    app.control().pool_grow(2).send().await.unwrap();
    let request = ControlRequest::read(&shop.next().await.unwrap()).unwrap();
    assert_eq!(request.arguments, Map::from([("n", 2)]));
}
