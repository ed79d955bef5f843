//! Events of workers and clients.

use std::time::Duration;

use celery_protocol::{State, Value};
use celery_runtime::Config;

use super::{ADD, SLEEP, run_pending, start, tasks, wait_until};
use crate::remote_control::ok;
use crate::support::{Running, Setup, within};

#[tokio::test(start_paused = true)]
async fn disabled_task_events_are_not_sent() {
    let setup = Setup::new();
    let events = setup.record_events().await;
    let worker = Running::start(setup.app.worker(tasks()));
    let client = setup.client();
    let silent = client.send(ADD, (1, 2)).await.unwrap();
    within(5, silent.get()).await.unwrap();
    let unknown = client.send_by_name("tasks.nosuch", (), ()).await.unwrap();
    within(5, unknown.get()).await.unwrap_err();
    run_pending().await;
    let is_task_event = |event: &celery_protocol::Event| event.kind.starts_with("task-");
    assert!(
        !events.all().iter().any(is_task_event),
        "{:?}",
        events.all()
    );

    let switched = setup.query("enable_events", ()).await;
    assert_eq!(switched, ok("task events enabled"));
    let loud = client.send(ADD, (1, 2)).await.unwrap();
    within(5, loud.get()).await.unwrap();
    run_pending().await;
    let kinds = ["task-received", "task-started", "task-succeeded"];
    assert_eq!(events.kinds(loud.id()), kinds);
    worker.stop().await.unwrap();
    run_pending().await;
    let kinds: Vec<_> = events.all().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds.first().map(String::as_str), Some("worker-online"));
    assert_eq!(kinds.last().map(String::as_str), Some("worker-offline"));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_continue_during_warm_shutdown() {
    let setup = Setup::new();
    let events = setup.record_events().await;
    let mut worker = start(&setup, 1);
    let long = setup.client().send(SLEEP, (60,)).await.unwrap();
    run_pending().await;
    worker.request_stop();
    run_pending().await;
    let before = events.of("worker-heartbeat").len();
    worker.wait().await.unwrap();
    assert!(setup.elapsed() >= 60.0);
    assert_eq!(long.state().await.unwrap(), State::Success);
    run_pending().await;
    let beats = events.of("worker-heartbeat").len() - before;
    assert!((29..=31).contains(&beats), "{beats}");
    assert_eq!(events.all().last().unwrap().kind, "worker-offline");
}

#[tokio::test(start_paused = true)]
async fn events_wait_for_slow_broker() {
    let setup = Setup::new();
    let events = setup.record_events().await;
    let slow = crate::counting_broker::CountingBroker::new(&setup.broker)
        .with_delay(Duration::from_millis(5));
    let calls = (0..3000).map(|number| ADD.s((number, 1)).ignore_result());
    setup.client().apply_all(calls).await;
    let worker = slow.app(&setup).worker(tasks());
    // With one slot, each event is published on its own.
    let worker = Running::start(worker.concurrency(1).task_events(true));
    wait_until("all events are received", 60, async || {
        events.of("task-succeeded").len() == 3000
    })
    .await;
    assert_eq!(events.of("task-received").len(), 3000);
    assert_eq!(events.of("task-started").len(), 3000);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn client_sends_task_sent_event_if_enabled() {
    let config = Config::new().set("task_send_sent_event", true).unwrap();
    let enabled = Setup::with_config(config);
    let events = enabled.record_events().await;
    let call = ADD.s((1, 2)).queue("sums");
    let sent = enabled.client().apply(call).await.unwrap();
    run_pending().await;
    let sent_events = events.of("task-sent");
    assert_eq!(sent_events.len(), 1);
    assert_eq!(sent_events[0].task_id(), Some(sent.id()));
    let field = |name| sent_events[0].fields.get(name).and_then(Value::as_str);
    assert_eq!(field("name"), Some("tasks.add"));
    assert_eq!(field("args"), Some("(1, 2)"));
    assert_eq!(field("queue"), Some("sums"));
    assert_eq!(field("routing_key"), Some("sums"));

    let silent = Setup::new();
    let events = silent.record_events().await;
    silent.client().send(ADD, (1, 2)).await.unwrap();
    run_pending().await;
    assert!(events.all().is_empty());
}

/// The names are Celery's: Python's gossip reads them.
#[tokio::test(start_paused = true)]
async fn election_events_have_names_of_celery() {
    let setup = Setup::new();
    let events = setup.record_events().await;
    let worker = Running::start(setup.app.worker(tasks()));
    run_pending().await;
    let arguments = [("id", "election-1"), ("topic", "none"), ("action", "none")];
    let arguments = arguments.map(|(name, value)| (name, Value::from(value)));
    setup.query("election", arguments).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let kinds: Vec<_> = events
        .all()
        .into_iter()
        .map(|event| event.kind)
        .filter(|kind| kind.contains("elect"))
        .collect();
    assert_eq!(kinds, ["worker-elect", "worker-elect-ack"]);
    worker.stop().await.unwrap();
}
