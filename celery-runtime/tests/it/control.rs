//! What remote control and the settings of workers do, on a clock that is
//! paused.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::{Map, State, Value};
use celery_runtime::{
    AsyncResult, Clock, Config, Context, ResultError, Task, TaskError, TaskOptions, Tasks, Worker,
};

use crate::fleet::{error, ok};
use crate::support::{Running, Setup, start_time, within};

const SLEEP: Task<(u64,), u64> = Task::new("tasks.sleep").params(&["seconds"]);
const LATE: Task<(u64,), u64> = Task::new("tasks.late").params(&["seconds"]).acks_late();
const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);

async fn sleep(seconds: u64) -> Result<u64, TaskError> {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    Ok(seconds)
}

async fn add(x: i64, y: i64) -> Result<i64, TaskError> {
    Ok(x + y)
}

fn tasks() -> Tasks {
    Tasks::new()
        .with(SLEEP, sleep)
        .with(LATE, sleep)
        .with(ADD, add)
}

fn set(settings: &[(&str, serde_json::Value)]) -> Setup {
    let config = settings
        .iter()
        .fold(Config::new(), |config, (name, value)| {
            config.set(name, value.clone()).unwrap()
        });
    Setup::with_config(config)
}

fn start(setup: &Setup, concurrency: usize) -> Running {
    Running::start(
        setup
            .app
            .worker(tasks())
            .concurrency(concurrency)
            .task_events(true),
    )
}

/// Enough for everything that takes no time to happen.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Waits for what takes time to be so.
async fn until(what: &str, seconds: u64, mut look: impl AsyncFnMut() -> bool) {
    let found = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(seconds), found).await;
    assert!(found.is_ok(), "not within {seconds} s: {what}");
}

async fn assert_revoked<R: serde::de::DeserializeOwned + std::fmt::Debug>(
    result: &AsyncResult<R>,
    reason: &str,
) {
    match within(60, result.get()).await.unwrap_err() {
        ResultError::Task(failure) => {
            let expected = format!("TaskRevokedError('{reason}')");
            assert_eq!(failure.exception.to_string(), expected);
        }
        other => panic!("{other}"),
    }
    assert_eq!(result.state().await.unwrap(), State::Revoked);
}

// Rate limits.

/// When tasks started, in seconds.
type Starts = Arc<Mutex<Vec<f64>>>;

const STEADY: &str = "tasks.steady";

/// A worker whose task `tasks.steady` starts ten times a minute at most.
fn steady(setup: &Setup, starts: &Starts) -> Worker {
    let mut options = TaskOptions::default();
    options.rate_limit = Some("10/m");
    let steady: Task<(), ()> = Task::new(STEADY).options(options);
    let (starts, clock) = (Arc::clone(starts), setup.clock.clone());
    let note = move || {
        let (starts, clock) = (Arc::clone(&starts), clock.clone());
        async move {
            starts.lock().unwrap().push(seconds(&clock));
            Ok::<_, TaskError>(())
        }
    };
    setup.app.worker(tasks().with(steady, note)).concurrency(4)
}

fn seconds(clock: &Clock) -> f64 {
    let elapsed = clock.now().duration_since(start_time()).unwrap();
    elapsed.as_secs_f64()
}

async fn send_steady(setup: &Setup, count: usize) {
    for _ in 0..count {
        let sent = setup.client().send_by_name(STEADY, (), ()).await;
        sent.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_keeps_its_pace_and_holds_up_nobody() {
    let setup = Setup::new();
    let starts = Starts::default();
    send_steady(&setup, 100).await;
    let calls = (0..100).map(|number| ADD.s((number, 1)));
    let unlimited = setup.client().apply_all(calls).await;
    let worker = Running::start(steady(&setup, &starts));
    for result in unlimited {
        within(1, result.unwrap().get()).await.unwrap();
    }
    assert!(setup.elapsed() < 1.0, "{}", setup.elapsed());
    assert_eq!(starts.lock().unwrap().len(), 1);

    until("all have run", 620, async || {
        starts.lock().unwrap().len() == 100
    })
    .await;
    let starts = starts.lock().unwrap().clone();
    for pair in starts.windows(2) {
        let gap = pair[1] - pair[0];
        assert!((5.9..6.5).contains(&gap), "{gap} s apart: {starts:?}");
    }
    worker.stop().await.unwrap();
    assert_eq!(setup.broker.unsettled(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_changed_and_lifted_for_those_who_wait() {
    let setup = Setup::new();
    let starts = Starts::default();
    send_steady(&setup, 200).await;
    let _worker = Running::start(steady(&setup, &starts));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(starts.lock().unwrap().len(), 11);

    let limit = |rate: &str| [("task_name", STEADY.into()), ("rate_limit", rate.into())];
    let set = setup.ask("rate_limit", limit("1/s")).await;
    assert_eq!(set, ok("new rate limit set successfully"));
    // Those who wait with the broker come back after half a minute at most.
    tokio::time::sleep(Duration::from_secs(40)).await;
    let before = starts.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let started = starts.lock().unwrap().len() - before;
    assert!((29..=31).contains(&started), "{started} in 30 s");

    let set = setup.ask("rate_limit", limit("0")).await;
    assert_eq!(set, ok("rate limit disabled successfully"));
    until("all have run", 31, async || {
        starts.lock().unwrap().len() == 200
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_is_revoked_gives_up_his_turn() {
    let setup = Setup::new();
    let starts = Starts::default();
    let client = setup.client();
    let mut sent = Vec::new();
    for _ in 0..20 {
        sent.push(client.send_by_name(STEADY, (), ()).await.unwrap());
    }
    let _worker = Running::start(steady(&setup, &starts));
    settle().await;
    let ids = sent[1..20].iter().map(|result| result.id().into());
    setup
        .ask("revoke", [("task_id", Value::Array(ids.collect()))])
        .await;
    for result in &sent[1..20] {
        assert_revoked(result, "revoked").await;
    }
    tokio::time::sleep(Duration::from_secs(40)).await;
    let next = client.send_by_name(STEADY, (), ()).await.unwrap();
    within(7, next.get()).await.unwrap();
    assert_eq!(starts.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn workers_that_share_a_queue_keep_the_pace_each() {
    let setup = Setup::new();
    let (one, two) = (Starts::default(), Starts::default());
    send_steady(&setup, 100).await;
    let _one = Running::start(steady(&setup, &one).hostname("one@host"));
    let _two = Running::start(steady(&setup, &two).hostname("two@host"));
    until("all have run", 600, async || {
        one.lock().unwrap().len() + two.lock().unwrap().len() == 100
    })
    .await;
    for starts in [one, two] {
        let starts = starts.lock().unwrap().clone();
        for pair in starts.windows(2) {
            let gap = pair[1] - pair[0];
            assert!(gap > 5.9, "{gap} s apart: {starts:?}");
        }
    }
}

// Revocation.

#[tokio::test(start_paused = true)]
async fn a_task_is_revoked_before_receipt_in_line_and_before_it_is_due() {
    let setup = Setup::new();
    let watch = setup.watch().await;
    let worker = start(&setup, 1);
    let client = setup.client();
    let unseen = AsyncResult::<i64>::clone(&client.result("unseen"));
    setup.ask("revoke", [("task_id", "unseen".into())]).await;
    assert_revoked(&unseen, "revoked").await;
    client.apply(ADD.s((1, 2)).task_id("unseen")).await.unwrap();

    let blocker = client.send(SLEEP, (30,)).await.unwrap();
    let waiting = client.send(ADD, (1, 2)).await.unwrap();
    let later = ADD.s((1, 2)).countdown(Duration::from_secs(10));
    let later = client.apply(later).await.unwrap();
    settle().await;
    assert_eq!(setup.ids("active").await, [blocker.id()]);
    assert_eq!(setup.ids("reserved").await, [waiting.id()]);
    assert_eq!(setup.ids("scheduled").await, [later.id()]);
    let ids = [waiting.id(), later.id(), blocker.id()];
    let ids = Value::Array(ids.map(Value::from).to_vec());
    setup.ask("revoke", [("task_id", ids)]).await;
    assert_revoked(&waiting, "revoked").await;
    assert_revoked(&later, "revoked").await;
    assert_eq!(watch.kinds(later.id()), ["task-received"]);
    assert_eq!(within(31, blocker.get()).await.unwrap(), 30);
    settle().await;

    assert_eq!(watch.kinds("unseen"), ["task-revoked"]);
    assert_eq!(watch.kinds(waiting.id()), ["task-received", "task-revoked"]);
    assert_eq!(watch.kinds(later.id()), ["task-received", "task-revoked"]);
    let finished = ["task-received", "task-started", "task-succeeded"];
    assert_eq!(watch.kinds(blocker.id()), finished);
    worker.stop().await.unwrap();
    assert_eq!(setup.broker.unsettled(), 0);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_running_task_is_ended_and_its_slot_is_free() {
    let setup = Setup::new();
    let watch = setup.watch().await;
    let worker = start(&setup, 2);
    let client = setup.client();
    let early = client.send(SLEEP, (1000,)).await.unwrap();
    let late = client.send(LATE, (1000,)).await.unwrap();
    settle().await;
    for result in [&early, &late] {
        let id = result.id();
        let answer = setup.ask("terminate", [("task_id", id.into())]).await;
        assert_eq!(answer, ok(&format!("terminate: {id}")));
        assert_revoked(result, "terminated").await;
    }
    assert!(setup.elapsed() < 1.0);
    let sum = client.send(ADD, (1, 2)).await.unwrap();
    assert_eq!(within(1, sum.get()).await.unwrap(), 3);
    for event in watch.of("task-revoked") {
        assert_eq!(event.fields.get("terminated"), Some(&Value::Bool(true)));
        assert_eq!(event.fields.get("signum"), Some(&Value::Int(15)));
    }
    assert_eq!(watch.of("task-revoked").len(), 2);
    worker.stop().await.unwrap();
    assert_eq!(setup.broker.unsettled(), 0);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_state_file_keeps_what_was_revoked_over_a_restart() {
    let folder = std::env::temp_dir().join(format!("celery-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("state.json");
    let setup = set(&[("worker_state_db", path.to_str().unwrap().into())]);
    let first = start(&setup, 1);
    setup.ask("revoke", [("task_id", "a".into())]).await;
    first.stop().await.unwrap();

    let second = start(&setup, 1);
    let hello = [
        ("from_node", "peer@host".into()),
        ("revoked", Value::Array(vec!["b".into()])),
    ];
    setup.ask("hello", hello).await;
    // Without an end, what is new is written every 10 s.
    tokio::time::sleep(Duration::from_secs(25)).await;
    second.kill().await;

    let third = start(&setup, 1);
    let known = setup.ask("revoked", ()).await;
    assert_eq!(known, Value::Array(vec!["a".into(), "b".into()]));
    let revoked = ADD.s((1, 2)).task_id("a");
    let revoked = setup.client().apply(revoked).await.unwrap();
    assert_revoked(&revoked, "revoked").await;
    third.stop().await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

// Inspection.

#[tokio::test(start_paused = true)]
async fn what_only_waits_for_its_end_is_ready() {
    let setup = Setup::new();
    let _worker = start(&setup, 1);
    let sent = setup.client().send(LATE, (1,)).await.unwrap();
    settle().await;
    setup.backend.faults().go_down();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = [("ids", Value::Array(vec![sent.id().into(), "none".into()]))];
    let found = setup.ask("query_task", asked).await;
    let found = found.as_map().unwrap();
    let pair = found.get(sent.id()).and_then(Value::as_array).unwrap();
    assert_eq!(pair[0], "ready".into());
    assert_eq!(found.iter().count(), 1);
    assert!(setup.ids("active").await.is_empty());
    assert!(setup.ids("reserved").await.is_empty());
    setup.backend.faults().come_back();
    assert_eq!(within(60, sent.get()).await.unwrap(), 1);
}

// The pool.

#[tokio::test(start_paused = true)]
async fn the_pool_grows_and_shrinks() {
    let setup = Setup::new();
    let _worker = start(&setup, 1);
    let calls = (0..10).map(|_| SLEEP.s((100,)));
    setup.client().apply_all(calls).await;
    settle().await;
    assert_eq!(setup.ids("active").await.len(), 1);
    let grown = setup.ask("pool_grow", [("n", Value::Int(3))]).await;
    assert_eq!(grown, ok("pool will grow"));
    settle().await;
    assert_eq!(setup.ids("active").await.len(), 4);
    let shrunk = setup.ask("pool_shrink", [("n", Value::Int(2))]).await;
    assert_eq!(shrunk, ok("pool will shrink"));
    settle().await;
    assert_eq!(setup.ids("active").await.len(), 4, "who runs goes on");
    tokio::time::sleep(Duration::from_secs(101)).await;
    assert_eq!(setup.ids("active").await.len(), 2);
    let refused = setup.ask("pool_shrink", [("n", Value::Int(2))]).await;
    error(&refused);
    let refused = setup.ask("autoscale", [("max", Value::Int(2))]).await;
    assert_eq!(error(&refused), "ValueError('Autoscale not enabled')");
}

/// Each needs the other one to run at the same time.
#[tokio::test]
async fn blocking_tasks_use_the_slots_that_were_added() {
    const MEET: Task<(), bool> = Task::new("tasks.meet");
    let here = Arc::new((Mutex::new(0), std::sync::Condvar::new()));
    let meet = move || {
        let (count, changed) = &*here;
        let mut count = count.lock().unwrap();
        *count += 1;
        changed.notify_all();
        let patience = Duration::from_secs(5);
        let (count, _) = changed
            .wait_timeout_while(count, patience, |count| *count < 2)
            .unwrap();
        Ok::<_, TaskError>(*count == 2)
    };
    let setup = Setup::new();
    let worker = setup.app.worker(Tasks::new().with_blocking(MEET, meet));
    let _worker = Running::start(worker.concurrency(1));
    setup.ask("pool_grow", [("n", Value::Int(1))]).await;
    let calls = setup.client().apply_all((0..2).map(|_| MEET.s(()))).await;
    for call in calls {
        assert!(within(20, call.unwrap().get()).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn the_pool_follows_the_work() {
    let setup = Setup::new();
    let worker = setup.app.worker(tasks()).autoscale(2..=10);
    let _worker = Running::start(worker);
    let size = async || {
        let stats = setup.ask("stats", ()).await;
        let pool = stats.as_map().unwrap().get("pool").unwrap();
        let processes = pool.as_map().unwrap().get("processes").unwrap();
        processes.as_array().unwrap().len()
    };
    assert_eq!(size().await, 2);
    let calls = (0..25).map(|_| SLEEP.s((100,)));
    setup.client().apply_all(calls).await;
    settle().await;
    assert_eq!(setup.ids("active").await.len(), 10);
    assert_eq!(size().await, 10);
    error(&setup.ask("pool_grow", ()).await);
    let range = [("max", Value::Int(12)), ("min", Value::Int(3))];
    let set = setup.ask("autoscale", range).await;
    assert_eq!(set, ok("autoscale now max=12 min=3"));
    until("all are done", 301, async || {
        setup.ids("active").await.is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(size().await, 3);
}

#[tokio::test(start_paused = true)]
async fn the_pool_follows_the_work_also_where_nothing_is_held_ahead() {
    let setup = Setup::new();
    let worker = setup.app.worker(tasks()).prefetch_multiplier(1);
    let _worker = Running::start(worker.autoscale(1..=5));
    let calls = (0..8).map(|_| SLEEP.s((100,)));
    setup.client().apply_all(calls).await;
    settle().await;
    assert_eq!(setup.ids("active").await.len(), 5);
    assert_eq!(setup.depth("celery").await, 3);
    let range = [("max", Value::Int(7)), ("min", Value::Int(1))];
    setup.ask("autoscale", range).await;
    settle().await;
    assert_eq!(setup.ids("active").await.len(), 7);
}

/// The one queue it has is given up and taken again.
#[tokio::test(start_paused = true)]
async fn a_worker_without_queues_listens() {
    let setup = Setup::new();
    let _worker = start(&setup, 1);
    let queue = [("queue", Value::from("celery"))];
    setup.ask("cancel_consumer", queue.clone()).await;
    assert_eq!(
        setup.ask("active_queues", ()).await,
        Value::Array(Vec::new())
    );
    let left = setup.client().send(ADD, (1, 2)).await.unwrap();
    settle().await;
    assert!(!left.ready().await.unwrap());
    setup.ask("add_consumer", queue).await;
    assert_eq!(within(5, left.get()).await.unwrap(), 3);
}

// Events.

#[tokio::test(start_paused = true)]
async fn without_events_nothing_is_told_of_tasks() {
    let setup = Setup::new();
    let watch = setup.watch().await;
    let worker = Running::start(setup.app.worker(tasks()));
    let client = setup.client();
    let silent = client.send(ADD, (1, 2)).await.unwrap();
    within(5, silent.get()).await.unwrap();
    let unknown = client.send_by_name("tasks.nosuch", (), ()).await.unwrap();
    within(5, unknown.get()).await.unwrap_err();
    settle().await;
    let told = |event: &celery_protocol::Event| event.kind.starts_with("task-");
    assert!(!watch.all().iter().any(told), "{:?}", watch.all());

    let switched = setup.ask("enable_events", ()).await;
    assert_eq!(switched, ok("task events enabled"));
    let loud = client.send(ADD, (1, 2)).await.unwrap();
    within(5, loud.get()).await.unwrap();
    settle().await;
    let kinds = ["task-received", "task-started", "task-succeeded"];
    assert_eq!(watch.kinds(loud.id()), kinds);
    worker.stop().await.unwrap();
    settle().await;
    let kinds: Vec<_> = watch.all().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds.first().map(String::as_str), Some("worker-online"));
    assert_eq!(kinds.last().map(String::as_str), Some("worker-offline"));
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_go_on_while_a_warm_stop_waits() {
    let setup = Setup::new();
    let watch = setup.watch().await;
    let mut worker = start(&setup, 1);
    let long = setup.client().send(SLEEP, (60,)).await.unwrap();
    settle().await;
    worker.ask_to_stop();
    settle().await;
    let before = watch.of("worker-heartbeat").len();
    worker.ended().await.unwrap();
    assert!(setup.elapsed() >= 60.0);
    assert_eq!(long.state().await.unwrap(), State::Success);
    settle().await;
    let beats = watch.of("worker-heartbeat").len() - before;
    assert!((29..=31).contains(&beats), "{beats}");
    assert_eq!(watch.all().last().unwrap().kind, "worker-offline");
}

#[tokio::test(start_paused = true)]
async fn events_wait_for_a_broker_that_is_slower_than_the_tasks() {
    let setup = Setup::new();
    let watch = setup.watch().await;
    let slow = crate::counting::Counting::new(&setup.broker).slowed_by(Duration::from_millis(5));
    let calls = (0..3000).map(|number| ADD.s((number, 1)).ignore_result());
    setup.client().apply_all(calls).await;
    let worker = slow.app(&setup).worker(tasks());
    // One at a time: they are told of one by one.
    let worker = Running::start(worker.concurrency(1).task_events(true));
    until("all are told of", 60, async || {
        watch.of("task-succeeded").len() == 3000
    })
    .await;
    assert_eq!(watch.of("task-received").len(), 3000);
    assert_eq!(watch.of("task-started").len(), 3000);
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn clients_tell_what_they_send_where_they_are_set_up_to() {
    let config = Config::new().set("task_send_sent_event", true).unwrap();
    let telling = Setup::with_config(config);
    let watch = telling.watch().await;
    let call = ADD.s((1, 2)).queue("sums");
    let sent = telling.client().apply(call).await.unwrap();
    settle().await;
    let told = watch.of("task-sent");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].task_id(), Some(sent.id()));
    let field = |name| told[0].fields.get(name).and_then(Value::as_str);
    assert_eq!(field("name"), Some("tasks.add"));
    assert_eq!(field("args"), Some("(1, 2)"));
    assert_eq!(field("queue"), Some("sums"));
    assert_eq!(field("routing_key"), Some("sums"));

    let silent = Setup::new();
    let watch = silent.watch().await;
    silent.client().send(ADD, (1, 2)).await.unwrap();
    settle().await;
    assert!(watch.all().is_empty());
}

// Stops.

const HEED: Task<(), String> = Task::new("tasks.heed");

async fn heed(ctx: Context) -> Result<String, TaskError> {
    ctx.shutdown_requested().await;
    Ok("told".to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_task_that_listens_hears_of_the_stop() {
    let setup = Setup::new();
    let worker = Running::start(setup.app.worker(tasks().with(HEED, heed)));
    let heeding = setup.client().send(HEED, ()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!heeding.ready().await.unwrap());
    worker.stop().await.unwrap();
    assert_eq!(within(1, heeding.get()).await.unwrap(), "told");
    assert_eq!(setup.elapsed().round() as u64, 100);
}

#[tokio::test(start_paused = true)]
async fn a_soft_stop_gives_tasks_some_time_before_they_are_ended() {
    let setup = set(&[("worker_soft_shutdown_timeout", 10.into())]);
    let watch = setup.watch().await;
    let mut worker = start(&setup, 4);
    let client = setup.client();
    settle().await;
    let short = client.send(LATE, (7,)).await.unwrap();
    let long = client.send(LATE, (500,)).await.unwrap();
    let early = client.send(SLEEP, (500,)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.ask_to_stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.lose_patience();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Changes nothing any more.
    setup.tell("shutdown", ()).await;
    worker.ended().await.unwrap();
    assert_eq!(setup.elapsed().round() as u64, 12);
    assert_eq!(short.state().await.unwrap(), State::Success);
    assert_eq!(long.state().await.unwrap(), State::Pending);
    assert_eq!(early.state().await.unwrap(), State::Retry);
    assert_eq!(setup.depth("celery").await, 1);
    settle().await;
    assert_eq!(watch.of("task-cancelled").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_soft_stop_waits_for_nothing_only_where_it_is_told_to() {
    for (idle, seconds) in [(false, 2), (true, 12)] {
        let setup = set(&[
            ("worker_soft_shutdown_timeout", 10.into()),
            ("worker_enable_soft_shutdown_on_idle", idle.into()),
        ]);
        let mut worker = start(&setup, 1);
        // Keeps the warm stop from ending before it gets cold.
        let long = setup.client().send(SLEEP, (2,)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        worker.ask_to_stop();
        tokio::time::sleep(Duration::from_secs(1)).await;
        worker.lose_patience();
        worker.ended().await.unwrap();
        assert_eq!(setup.elapsed().round() as u64, seconds);
        assert_eq!(long.state().await.unwrap(), State::Success);
    }
}

#[tokio::test(start_paused = true)]
async fn remote_control_stops_warmly_and_does_not_soften_a_cold_stop() {
    let setup = Setup::new();
    let worker = start(&setup, 1);
    let long = setup.client().send(SLEEP, (30,)).await.unwrap();
    let waiting = setup.client().send(SLEEP, (30,)).await.unwrap();
    settle().await;
    setup.tell("shutdown", ()).await;
    settle().await;
    setup.tell("shutdown", ()).await;
    worker.ended().await.unwrap();
    assert_eq!(setup.elapsed().round() as u64, 30);
    assert_eq!(long.state().await.unwrap(), State::Success);
    assert_eq!(waiting.state().await.unwrap(), State::Pending);
    assert_eq!(setup.depth("celery").await, 1);
}

// Redelivery.

/// Puts the task's message, as redelivered, back into the queue.
async fn redeliver(setup: &Setup) {
    use celery_runtime::{Broker, ConsumeOptions, Queue, QueueEnd, Settlement};
    let options = ConsumeOptions::new(vec![Queue::new("celery")], 1);
    let consumer = setup.broker.consume(&options).await.unwrap();
    let delivery = consumer.receive(1).await.unwrap().pop().unwrap();
    let back = Settlement::Requeue(delivery.tag, QueueEnd::Head);
    let settled = consumer.settle(&[back]).await;
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
}

#[tokio::test(start_paused = true)]
async fn what_has_succeeded_and_is_delivered_again_runs_again_only_by_default() {
    for (deduplicates, expected) in [(false, 3), (true, 2)] {
        let setup = set(&[("worker_deduplicate_successful_tasks", deduplicates.into())]);
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let handler = move |seconds: u64| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, TaskError>(seconds) }
        };
        let worker = || setup.app.worker(Tasks::new().with(LATE, handler.clone()));
        let call = || LATE.s((1,)).task_id("same");
        let client = setup.client();

        let first = Running::start(worker());
        let result = client.apply(call()).await.unwrap();
        within(5, result.get()).await.unwrap();
        // Sent again is not delivered again.
        client.apply(call()).await.unwrap();
        settle().await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        first.stop().await.unwrap();

        client.apply(call()).await.unwrap();
        redeliver(&setup).await;
        let second = Running::start(worker());
        until("it is settled", 5, async || {
            setup.depth("celery").await == 0 && setup.broker.unsettled() == 0
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), expected);
        assert_eq!(result.state().await.unwrap(), State::Success);
        second.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn late_tasks_are_ended_with_their_connection_only_where_that_is_wanted() {
    for (cancels, runs) in [(false, 1), (true, 2)] {
        let name = "worker_cancel_long_running_tasks_on_connection_loss";
        let setup = set(&[(name, cancels.into())]);
        let watch = setup.watch().await;
        let worker = start(&setup, 2);
        let client = setup.client();
        let late = client.send(LATE, (20,)).await.unwrap();
        let early = client.send(SLEEP, (20,)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        setup.broker.faults().go_down();
        tokio::time::sleep(Duration::from_secs(1)).await;
        setup.broker.faults().come_back();
        let again = setup.watch().await;
        assert_eq!(within(60, late.get()).await.unwrap(), 20);
        assert_eq!(within(60, early.get()).await.unwrap(), 20);
        settle().await;
        let started = |kind: &str| kind == "task-started";
        let count = |id: &str| {
            let kinds = watch.kinds(id).into_iter().chain(again.kinds(id));
            kinds.filter(|kind| started(kind)).count()
        };
        assert_eq!(count(late.id()), runs);
        assert_eq!(count(early.id()), 1, "its message is gone");
        worker.stop().await.unwrap();
        assert_eq!(setup.depth("celery").await, 0);
    }
}

// Many.

#[tokio::test(start_paused = true)]
async fn a_thousand_workers_tell_little() {
    let setup = Setup::new();
    let published = crate::counting::Counting::new(&setup.broker);
    let app = published.app(&setup);
    let start = |number: usize| {
        let worker = app
            .worker(tasks())
            .hostname(format!("worker-{number}@host"));
        Running::start(worker.concurrency(1).mingle(false).task_events(true))
    };
    let workers: Vec<_> = (0..1000).map(start).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = published.broadcasts();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let sent = published.broadcasts() - before;
    assert!(sent >= 2000, "they are heard of: {sent}");
    assert!(sent <= 6 * 1000, "{sent} messages in 6 s");
    // One that joins asks once, and each of the others answers once.
    let before = published.broadcasts();
    let worker = app.worker(tasks()).hostname("joins@host");
    let _joins = Running::start(worker);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sent = published.broadcasts() - before;
    assert!((2000..=2100).contains(&sent), "{sent} messages in 2 s");
    drop(workers);
}

/// A flood of commands must not keep the worker from its clock. In real time,
/// for one that is paused stands still while there is something to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_limits_hold_while_commands_pour_in() {
    let setup = Setup::new();
    let _worker = start(&setup, 1);
    setup.ask("ping", ()).await;
    let call = SLEEP.s((60,)).time_limit(Duration::from_millis(300));
    let begun = std::time::Instant::now();
    let limited = setup.client().apply(call).await.unwrap();
    let flood = async {
        loop {
            // Takes longer to answer than to read.
            setup.tell("stats", ()).await;
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::select! {
        ended = limited.get_timeout(Duration::from_secs(10)) => ended,
        () = flood => unreachable!("it has no end"),
    };
    assert!(ended.is_err());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_heard_while_tasks_pour_in() {
    let setup = Setup::new();
    let calls = (0..20_000).map(|number| ADD.s((number, 1)).ignore_result());
    setup.client().apply_all(calls).await;
    let _worker = start(&setup, 1);
    setup.ask("ping", ()).await;
    assert!(setup.depth("celery").await > 10_000);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_about_to_start_is_revoked_by_its_stamps() {
    const TRACKED: Task<(i64, i64), i64> = Task::new("tasks.tracked").track_started();
    let setup = Setup::new();
    let tasks = Tasks::new().with(TRACKED, add);
    let _worker = Running::start(setup.app.worker(tasks));
    settle().await;
    // Its state STARTED is being stored.
    setup.backend.faults().freeze();
    let stamps = Map::from([("tenant", "a")]);
    let call = TRACKED.s((1, 2)).header("stamps", stamps);
    let result = setup.client().apply(call).await.unwrap();
    settle().await;
    let headers = Map::from([("tenant", vec!["a"])]);
    let answer = setup
        .ask(
            "revoke_by_stamped_headers",
            [("headers", Value::Map(headers))],
        )
        .await;
    let expected = "headers {'tenant': ['a']} flagged as revoked, but not terminated";
    assert_eq!(answer, ok(expected));
    setup.backend.faults().thaw();
    let revoked = within(60, result.get()).await.unwrap_err();
    assert!(
        revoked.to_string().contains("TaskRevokedError"),
        "{revoked}"
    );
}
