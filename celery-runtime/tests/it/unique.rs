//! Unique tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::{Raw, ResultDocument, State};
use celery_runtime::memory::MemoryStore;
use celery_runtime::{
    App, Config, ConfigError, Context, ResultBackend, ResultError, ResultRecord, SendError,
    ServiceErrorKind, Task, TaskError, Tasks, Unique, WorkerError,
};

use crate::support::{Running, Setup, within};

const PER_KEY: Task<(String, u64), u64> = Task::new("tasks.per_key")
    .params(&["key", "seconds=1"])
    .unique(Unique::by(&["key"]));

/// The number of running tasks by key, its maximum, and the number of runs.
#[derive(Default)]
struct Concurrency {
    running: HashMap<String, u32>,
    max: HashMap<String, u32>,
    runs: u32,
}

type Shared = Arc<Mutex<Concurrency>>;

async fn work(ctx: Context<Shared>, key: String, seconds: u64) -> Result<u64, TaskError> {
    {
        let mut concurrency = ctx.state().lock().unwrap();
        concurrency.runs += 1;
        let running = concurrency.running.entry(key.clone()).or_default();
        *running += 1;
        let running = *running;
        let max = concurrency.max.entry(key.clone()).or_default();
        *max = running.max(*max);
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    *ctx.state().lock().unwrap().running.get_mut(&key).unwrap() -= 1;
    Ok(seconds)
}

/// An app with a store, and the state of its tasks.
struct UniqueSetup {
    base: Setup,
    app: App,
    state: Shared,
}

impl UniqueSetup {
    fn new() -> Self {
        let setup = Setup::new();
        let store = MemoryStore::with_clock(setup.clock.clone());
        let app = setup.app.clone().with_store(Arc::new(store));
        Self {
            base: setup,
            app,
            state: Shared::default(),
        }
    }

    fn start(&self, task: Task<(String, u64), u64>) -> Running {
        let tasks = Tasks::new()
            .with(task, work)
            .with_state(Arc::clone(&self.state));
        Running::start(self.app.worker(tasks).concurrency(4))
    }

    fn max_running(&self, key: &str) -> u32 {
        self.state.lock().unwrap().max[key]
    }

    fn runs(&self) -> u32 {
        self.state.lock().unwrap().runs
    }
}

fn call(key: &str, seconds: u64) -> (String, u64) {
    (key.to_owned(), seconds)
}

#[tokio::test(start_paused = true)]
async fn tasks_with_equal_key_run_one_at_a_time() {
    let setup = UniqueSetup::new();
    let _workers = [setup.start(PER_KEY), setup.start(PER_KEY)];
    let client = setup.app.client();
    let calls = (0..12).map(|n| PER_KEY.s(call(["a", "b", "c"][n % 3], 1)));
    for sent in client.apply_all(calls).await {
        within(120, sent.unwrap().get()).await.unwrap();
    }
    assert_eq!(["a", "b", "c"].map(|key| setup.max_running(key)), [1, 1, 1]);
    assert_eq!(setup.runs(), 12);
    // Tasks with different keys run at the same time.
    assert!(setup.base.elapsed() < 12.0, "{}", setup.base.elapsed());
}

#[tokio::test(start_paused = true)]
async fn task_sent_by_name_observes_lock() {
    let setup = UniqueSetup::new();
    let _worker = setup.start(PER_KEY);
    let client = setup.app.client();
    // Python sends it without a lock and with keyword arguments.
    let kwargs = serde_json::json!({"key": "a", "seconds": 2});
    let by_name = client
        .send_by_name("tasks.per_key", (), kwargs)
        .await
        .unwrap();
    let typed = client.send(PER_KEY, call("a", 2)).await.unwrap();
    within(60, by_name.get()).await.unwrap();
    within(60, typed.get()).await.unwrap();
    assert_eq!(setup.max_running("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn duplicate_task_is_dropped_or_fails() {
    const DROPPED: Task<(String, u64), u64> = Task::new("tasks.dropped")
        .params(&["key", "seconds=1"])
        .unique(Unique::by(&["key"]).or_drop());
    const FAILED: Task<(String, u64), u64> = Task::new("tasks.failed")
        .params(&["key", "seconds=1"])
        .unique(Unique::by(&["key"]).or_fail());
    for (task, expected) in [(DROPPED, "TaskRevokedError"), (FAILED, "NotUnique")] {
        let setup = UniqueSetup::new();
        let _workers = [setup.start(task), setup.start(task)];
        let client = setup.app.client();
        let calls = [task.s(call("a", 5)), task.s(call("a", 5))];
        let sent = client.apply_all(calls).await;
        let mut ends = Vec::new();
        for one in sent {
            ends.push(match within(60, one.unwrap().get()).await {
                Ok(value) => value.to_string(),
                Err(ResultError::Task(failure)) => failure.exception.exc_type,
                Err(other) => panic!("{other}"),
            });
        }
        ends.sort_unstable();
        assert_eq!(ends, ["5", expected]);
    }
}

#[tokio::test(start_paused = true)]
async fn lock_expires_after_crash_and_is_renewed_while_running() {
    const LEASED: Task<(String, u64), u64> = Task::new("tasks.leased")
        .params(&["key", "seconds=1"])
        .acks_late()
        .unique(Unique::task().lease(Duration::from_secs(10)));
    let setup = UniqueSetup::new();
    let first = setup.start(LEASED);
    let client = setup.app.client();
    let long = client.send(LEASED, call("a", 100)).await.unwrap();
    let waiting = client.send(LEASED, call("b", 1)).await.unwrap();
    within(150, long.get()).await.unwrap();
    within(150, waiting.get()).await.unwrap();
    let after = setup.base.elapsed();
    assert!((101.0..115.0).contains(&after), "{after}");

    let held = client.send(LEASED, call("c", 1000)).await.unwrap();
    within(60, async {
        while setup.runs() < 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    first.kill().await;
    let _second = setup.start(LEASED);
    let next = client.send(LEASED, call("d", 1)).await.unwrap();
    within(3000, next.get()).await.unwrap();
    within(3000, held.get()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn queued_task_is_not_sent_again() {
    const QUEUED: Task<(String, u64), u64> = Task::new("tasks.queued")
        .params(&["key", "seconds=1"])
        .unique(
            Unique::by(&["key"])
                .while_queued(Duration::from_secs(3600))
                .or_drop(),
        );
    let setup = UniqueSetup::new();
    let client = setup.app.client();
    let first = client.send(QUEUED, call("a", 1)).await.unwrap();
    let second = client.send(QUEUED, call("a", 1)).await.unwrap();
    assert_eq!(first.id(), second.id());
    let other = client.send(QUEUED, call("b", 1)).await.unwrap();
    assert_eq!(setup.base.depth("celery").await, 2);
    let _worker = setup.start(QUEUED);
    for one in [&first, &second, &other] {
        within(60, one.get()).await.unwrap();
    }
    assert_eq!(setup.runs(), 2);
    // After the task has ended and its lock is released, another one is sent.
    let third = within(60, async {
        loop {
            let sent = client.send(QUEUED, call("a", 1)).await.unwrap();
            if sent.id() != first.id() {
                break sent;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    within(60, third.get()).await.unwrap();
    assert_eq!(setup.runs(), 3);
}

const QUEUED: Task<(String, u64), u64> = Task::new("tasks.queued_once")
    .params(&["key", "seconds=1"])
    .unique(
        Unique::by(&["key"])
            .while_queued(Duration::from_secs(3600))
            .or_fail(),
    );

const DAILY: Task<(String, u64), u64> = Task::new("tasks.daily")
    .params(&["key", "seconds=1"])
    .unique(
        Unique::task()
            .for_period(Duration::from_secs(100))
            .or_fail(),
    );

impl UniqueSetup {
    /// Sends a task that another program receives, which stores this state and does not release
    /// the lock, as a Python worker does.
    async fn run_elsewhere(&self, task: Task<(String, u64), u64>, state: State) -> String {
        let sent = self.app.client().send(task, call("a", 1)).await.unwrap();
        self.base.take("celery").await;
        let document = ResultDocument::new(sent.id().to_owned(), state, Raw::json("null"));
        let stored = self.base.backend.store(ResultRecord::new(&document));
        stored.await.unwrap();
        sent.id().to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn client_takes_over_lock_of_task_that_ended_elsewhere() {
    for (task, state, is_taken_over) in [
        (QUEUED, State::Success, true),
        (QUEUED, State::Failure, true),
        (QUEUED, State::Revoked, true),
        (QUEUED, State::Started, false),
        (QUEUED, State::Retry, false),
        (DAILY, State::Success, false),
    ] {
        let setup = UniqueSetup::new();
        let first = setup.run_elsewhere(task, state.clone()).await;
        match setup.app.client().send(task, call("a", 1)).await {
            Ok(_) => assert!(is_taken_over, "{state}"),
            Err(SendError::NotUnique { holder, .. }) => {
                assert!(!is_taken_over, "{state}");
                assert_eq!(holder, first);
            }
            Err(error) => panic!("{error}"),
        }
        // The new holder has no state.
        let error = setup.app.client().send(task, call("a", 1)).await;
        assert!(matches!(error, Err(SendError::NotUnique { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn worker_takes_over_lock_of_task_that_ended_elsewhere() {
    for (state, expected) in [(State::Failure, "1"), (State::Started, "NotUnique")] {
        let setup = UniqueSetup::new();
        setup.run_elsewhere(QUEUED, state).await;
        let client = setup.app.client();
        let by_name = client.send_by_name(QUEUED.name(), call("a", 1), ());
        let by_name = by_name.await.unwrap();
        let _worker = setup.start(QUEUED);
        let end = match within(60, by_name.get()).await {
            Ok(value) => value.as_i64().unwrap().to_string(),
            Err(ResultError::Task(failure)) => failure.exception.exc_type,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(end, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_state_of_holder_keeps_its_lock() {
    let setup = UniqueSetup::new();
    setup.run_elsewhere(QUEUED, State::Success).await;
    let faults = setup.base.backend.faults();
    for kind in [ServiceErrorKind::Invalid, ServiceErrorKind::Disconnected] {
        faults.fail_next("fetch", kind);
        let error = setup
            .app
            .client()
            .send(QUEUED, call("a", 1))
            .await
            .unwrap_err();
        match kind {
            ServiceErrorKind::Invalid => assert!(matches!(error, SendError::NotUnique { .. })),
            _ => assert!(matches!(error, SendError::Store { .. })),
        }
    }
    setup.app.client().send(QUEUED, call("a", 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn task_unique_for_period_is_refused_after_it_ended() {
    let setup = UniqueSetup::new();
    let _worker = setup.start(DAILY);
    let client = setup.app.client();
    let first = client.send(DAILY, call("a", 1)).await.unwrap();
    within(60, first.get()).await.unwrap();
    let error = client.send(DAILY, call("b", 1)).await.unwrap_err();
    assert!(
        matches!(&error, SendError::NotUnique { holder, .. } if holder == first.id()),
        "{error}"
    );
    tokio::time::sleep(Duration::from_secs(100)).await;
    let later = client.send(DAILY, call("c", 1)).await.unwrap();
    within(60, later.get()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn unique_task_without_store_is_refused() {
    const QUEUED: Task<(String, u64), u64> = Task::new("tasks.queued")
        .params(&["key", "seconds=1"])
        .unique(Unique::task().while_queued(Duration::from_secs(60)));
    let setup = Setup::new();
    let tasks = Tasks::new()
        .with(QUEUED, work)
        .with_state(Shared::default());
    let error = setup.app.worker(tasks).run().await.unwrap_err();
    assert!(
        matches!(error, WorkerError::Config(ConfigError::NoStore)),
        "{error}"
    );
    let sent = setup.client().send(QUEUED, call("a", 1)).await;
    assert!(matches!(sent, Err(SendError::Store { .. })));
    let durable = Config::new().set("worker_durable_revokes", 60).unwrap();
    let worker = Setup::with_config(durable).app.worker(Tasks::new());
    assert!(worker.run().await.is_err());
}
