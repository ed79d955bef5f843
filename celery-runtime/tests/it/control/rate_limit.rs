//! Rate limits.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::Value;
use celery_runtime::{Clock, Task, TaskError, TaskOptions, Worker};

use super::{ADD, assert_revoked, run_pending, tasks, wait_until};
use crate::remote_control::ok;
use crate::support::{Running, Setup, start_time, within};

/// The times at which tasks started, in seconds.
type Starts = Arc<Mutex<Vec<f64>>>;

const LIMITED: &str = "tasks.limited";

/// Returns a worker whose task `tasks.limited` starts at most ten times a minute.
fn limited_worker(setup: &Setup, starts: &Starts) -> Worker {
    let mut options = TaskOptions::default();
    options.rate_limit = Some("10/m");
    let limited: Task<(), ()> = Task::new(LIMITED).options(options);
    let (starts, clock) = (Arc::clone(starts), setup.clock.clone());
    let record = move || {
        let (starts, clock) = (Arc::clone(&starts), clock.clone());
        async move {
            starts.lock().unwrap().push(seconds(&clock));
            Ok::<_, TaskError>(())
        }
    };
    setup
        .app
        .worker(tasks().with(limited, record))
        .concurrency(4)
}

/// Returns the seconds since the start of the test.
fn seconds(clock: &Clock) -> f64 {
    let elapsed = clock.now().duration_since(start_time()).unwrap();
    elapsed.as_secs_f64()
}

/// Sends the limited task several times.
async fn send_limited(setup: &Setup, count: usize) {
    for _ in 0..count {
        let sent = setup.client().send_by_name(LIMITED, (), ()).await;
        sent.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn rate_limited_task_keeps_pace_and_delays_no_other() {
    let setup = Setup::new();
    let starts = Starts::default();
    send_limited(&setup, 100).await;
    let calls = (0..100).map(|number| ADD.s((number, 1)));
    let unlimited = setup.client().apply_all(calls).await;
    let worker = Running::start(limited_worker(&setup, &starts));
    for result in unlimited {
        within(1, result.unwrap().get()).await.unwrap();
    }
    assert!(setup.elapsed() < 1.0, "{}", setup.elapsed());
    assert_eq!(starts.lock().unwrap().len(), 1);

    wait_until("all have run", 620, async || {
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
async fn changed_rate_limit_applies_to_waiting_tasks() {
    let setup = Setup::new();
    let starts = Starts::default();
    send_limited(&setup, 200).await;
    let _worker = Running::start(limited_worker(&setup, &starts));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(starts.lock().unwrap().len(), 11);

    let limit = |rate: &str| [("task_name", LIMITED.into()), ("rate_limit", rate.into())];
    let set = setup.query("rate_limit", limit("1/s")).await;
    assert_eq!(set, ok("new rate limit set successfully"));
    // Deferred tasks are redelivered after half a minute at most.
    tokio::time::sleep(Duration::from_secs(40)).await;
    let before = starts.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let started = starts.lock().unwrap().len() - before;
    assert!((29..=31).contains(&started), "{started} in 30 s");

    let set = setup.query("rate_limit", limit("0")).await;
    assert_eq!(set, ok("rate limit disabled successfully"));
    wait_until("all have run", 31, async || {
        starts.lock().unwrap().len() == 200
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn revoked_task_frees_its_rate_limit_slot() {
    let setup = Setup::new();
    let starts = Starts::default();
    let client = setup.client();
    let mut sent = Vec::new();
    for _ in 0..20 {
        sent.push(client.send_by_name(LIMITED, (), ()).await.unwrap());
    }
    let _worker = Running::start(limited_worker(&setup, &starts));
    run_pending().await;
    let ids = sent[1..20].iter().map(|result| result.id().into());
    setup
        .query("revoke", [("task_id", Value::Array(ids.collect()))])
        .await;
    for result in &sent[1..20] {
        assert_revoked(result, "revoked").await;
    }
    tokio::time::sleep(Duration::from_secs(40)).await;
    let next = client.send_by_name(LIMITED, (), ()).await.unwrap();
    within(7, next.get()).await.unwrap();
    assert_eq!(starts.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn rate_limit_applies_to_each_worker() {
    let setup = Setup::new();
    let (one, two) = (Starts::default(), Starts::default());
    send_limited(&setup, 100).await;
    let _one = Running::start(limited_worker(&setup, &one).hostname("one@host"));
    let _two = Running::start(limited_worker(&setup, &two).hostname("two@host"));
    wait_until("all have run", 600, async || {
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
