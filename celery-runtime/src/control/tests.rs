//! Control on the in-memory broker, with workers that a test plays.

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

/// An app, and the requests that its workers get.
struct Stage {
    app: App,
    broker: Arc<MemoryBroker>,
    requests: mpsc::UnboundedReceiver<ControlRequest>,
}

impl Stage {
    /// Workers of these names, which answer to everything as `answer` says.
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
                    // As everybody's do: an older call's answer comes as well.
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
async fn a_command_without_replies_is_celerys_and_opens_no_mailbox() {
    let mut stage = Stage::with(&[], pong).await;
    let control = stage.app.control();
    control.revoke(["id-1"]).send().await.unwrap();
    let request = stage.request().await;
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
    let request = stage.request().await;
    let ids = request.arguments.get("task_id").unwrap();
    assert_eq!(ids, &Value::from(vec!["a", "b"]));
    assert_eq!(request.arguments.get("signal"), Some(&"SIGKILL".into()));
    let matcher = (request.pattern.as_deref(), request.matcher.as_deref());
    assert_eq!(matcher, (Some("w*"), Some("glob")));
    assert_eq!(request.clock, 2);
}

#[tokio::test(start_paused = true)]
async fn replies_are_collected_until_the_timeout() {
    let mut stage = Stage::with(&["a", "b"], pong).await;
    let started = Instant::now();
    let replies = stage.app.control().ping().await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    let nodes: Vec<_> = replies.answers().map(|(node, ())| node).collect();
    assert_eq!(nodes, ["a", "b"], "foreign tickets do not count");
    assert!(!replies.is_truncated());
    let request = stage.request().await;
    assert_eq!(request.reply_to.unwrap().exchange, "reply.celery.pidbox");
    assert!(
        stage.app.inner().logical_clock.value() > 100,
        "clocks are adjusted"
    );
}

#[tokio::test(start_paused = true)]
async fn enough_replies_end_the_wait() {
    let stage = Stage::with(&["a", "b"], pong).await;
    let started = Instant::now();
    let control = stage.app.control().timeout(Duration::from_secs(60));
    let named = control.clone().destination(["a", "b"]);
    assert_eq!(named.ping().await.unwrap().len(), 2);
    assert_eq!(control.clone().limit(1).ping().await.unwrap().len(), 1);
    assert_eq!(started.elapsed(), Duration::ZERO);
    // Nobody there is an answer, too.
    let nobody = Stage::with(&[], pong).await;
    assert!(nobody.app.inspect().ping().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_empty_destination_is_nobody_and_not_everybody() {
    let mut stage = Stage::with(&["a"], pong).await;
    let control = stage.app.control().destination(Vec::<String>::new());
    let error = control.shutdown().send().await.unwrap_err();
    assert!(matches!(error, ControlError::Nobody { .. }), "{error}");
    assert!(!error.is_transient());
    assert!(stage.requests.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn one_workers_answer_does_not_hide_anothers() {
    let stage = Stage::with(&["good", "bad", "odd"], |node| match node {
        "good" => Value::Map(Map::from([("clock", 7)])),
        "bad" => Value::Map(Map::from([("error", "KeyError('clock')")])),
        _ => Value::from("?"),
    })
    .await;
    let clocks = stage.app.inspect().clock().await.unwrap();
    assert_eq!(clocks.answers().collect::<Vec<_>>(), [("good", &7)]);
    assert_eq!(clocks.errors().count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_mailbox_is_an_error_and_the_next_call_opens_another() {
    let mut stage = Stage::with(&[], pong).await;
    let control = stage.app.control();
    let asking = tokio::spawn({
        let control = control.clone();
        async move { control.ping().await }
    });
    let first = stage.request().await.reply_to.unwrap();
    stage.broker.faults().go_down();
    let error = asking.await.unwrap().unwrap_err();
    assert!(matches!(error, ControlError::Receive { .. }), "{error}");
    assert!(error.is_transient());

    stage.broker.faults().come_back();
    let pidbox = Exchange::fanout("celery.pidbox").transient();
    let mut workers = stage
        .broker
        .subscribe(&Mailbox::of(pidbox, ""))
        .await
        .unwrap();
    let again = control.call("custom", Map::new()).await.unwrap();
    assert!(again.is_empty(), "the workers are gone, too");
    let request = ControlRequest::read(&workers.next().await.unwrap()).unwrap();
    assert_ne!(request.reply_to.unwrap(), first);
    let name = format!("{}.reply.celery.pidbox", first.routing_key);
    assert_eq!(stage.broker.depth(&Queue::new(name)).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_is_an_error_within_the_deadline() {
    let stage = Stage::with(&[], pong).await;
    stage.broker.faults().freeze();
    let started = Instant::now();
    let sent = stage.app.control().heartbeat().send().await.unwrap_err();
    let ControlError::Send { cause, .. } = &sent else {
        panic!("{sent}");
    };
    assert_eq!(cause.kind(), ServiceErrorKind::TimedOut);
    let asked = stage.app.inspect().conf().await;
    assert!(matches!(asked, Err(ControlError::Receive { .. })));
    assert_eq!(started.elapsed(), 2 * Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn settings_name_the_exchanges() {
    let stage = Stage::with(&[], pong).await;
    let config = crate::Config::new()
        .set("control_exchange", "shop")
        .unwrap()
        .set("control_queue_expires", 3)
        .unwrap();
    let app = stage.app.clone().with_config(config);
    let pidbox = Exchange::fanout("shop.pidbox").transient();
    let mut shop = stage
        .broker
        .subscribe(&Mailbox::of(pidbox, ""))
        .await
        .unwrap();
    app.control().pool_grow(2).send().await.unwrap();
    let request = ControlRequest::read(&shop.next().await.unwrap()).unwrap();
    assert_eq!(request.arguments, Map::from([("n", 2)]));
}
