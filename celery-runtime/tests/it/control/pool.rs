//! Inspection, the pool and the queues of a worker.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::Value;
use celery_runtime::{Task, TaskError, Tasks};

use super::{ADD, LATE, SLEEP, run_pending, start, tasks, wait_until};
use crate::remote_control::{error, ok};
use crate::support::{Running, Setup, within};

#[tokio::test(start_paused = true)]
async fn finished_task_is_ready_until_result_is_stored() {
    let setup = Setup::new();
    let _worker = start(&setup, 1);
    let sent = setup.client().send(LATE, (1,)).await.unwrap();
    run_pending().await;
    setup.backend.faults().go_down();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = [("ids", Value::Array(vec![sent.id().into(), "none".into()]))];
    let found = setup.query("query_task", asked).await;
    let found = found.as_map().unwrap();
    let pair = found.get(sent.id()).and_then(Value::as_array).unwrap();
    assert_eq!(pair[0], "ready".into());
    assert_eq!(found.iter().count(), 1);
    assert!(setup.ids("active").await.is_empty());
    assert!(setup.ids("reserved").await.is_empty());
    setup.backend.faults().come_back();
    assert_eq!(within(60, sent.get()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn pool_grows_and_shrinks_on_command() {
    let setup = Setup::new();
    let _worker = start(&setup, 1);
    let calls = (0..10).map(|_| SLEEP.s((100,)));
    setup.client().apply_all(calls).await;
    run_pending().await;
    assert_eq!(setup.ids("active").await.len(), 1);
    let grown = setup.query("pool_grow", [("n", Value::Int(3))]).await;
    assert_eq!(grown, ok("pool will grow"));
    run_pending().await;
    assert_eq!(setup.ids("active").await.len(), 4);
    let shrunk = setup.query("pool_shrink", [("n", Value::Int(2))]).await;
    assert_eq!(shrunk, ok("pool will shrink"));
    run_pending().await;
    assert_eq!(setup.ids("active").await.len(), 4, "running tasks continue");
    tokio::time::sleep(Duration::from_secs(101)).await;
    assert_eq!(setup.ids("active").await.len(), 2);
    let refused = setup.query("pool_shrink", [("n", Value::Int(2))]).await;
    error(&refused);
    let refused = setup.query("autoscale", [("max", Value::Int(2))]).await;
    assert_eq!(error(&refused), "ValueError('Autoscale not enabled')");
}

/// Each task waits for the other one, so both pass only if they run at the same time.
#[tokio::test]
async fn blocking_task_uses_added_slot() {
    const MEET: Task<(), bool> = Task::new("tasks.meet");
    let here = Arc::new((Mutex::new(0), std::sync::Condvar::new()));
    let meet = move || {
        let (count, changed) = &*here;
        let mut count = count.lock().unwrap();
        *count += 1;
        changed.notify_all();
        let timeout = Duration::from_secs(5);
        let (count, _) = changed
            .wait_timeout_while(count, timeout, |count| *count < 2)
            .unwrap();
        Ok::<_, TaskError>(*count == 2)
    };
    let setup = Setup::new();
    let worker = setup.app.worker(Tasks::new().with_blocking(MEET, meet));
    let _worker = Running::start(worker.concurrency(1));
    setup.query("pool_grow", [("n", Value::Int(1))]).await;
    let calls = setup.client().apply_all((0..2).map(|_| MEET.s(()))).await;
    for call in calls {
        assert!(within(20, call.unwrap().get()).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn autoscaled_pool_follows_load() {
    let setup = Setup::new();
    let worker = setup.app.worker(tasks()).autoscale(2..=10);
    let _worker = Running::start(worker);
    let size = async || {
        let stats = setup.query("stats", ()).await;
        let pool = stats.as_map().unwrap().get("pool").unwrap();
        let processes = pool.as_map().unwrap().get("processes").unwrap();
        processes.as_array().unwrap().len()
    };
    assert_eq!(size().await, 2);
    let calls = (0..25).map(|_| SLEEP.s((100,)));
    setup.client().apply_all(calls).await;
    run_pending().await;
    assert_eq!(setup.ids("active").await.len(), 10);
    assert_eq!(size().await, 10);
    error(&setup.query("pool_grow", ()).await);
    let range = [("max", Value::Int(12)), ("min", Value::Int(3))];
    let set = setup.query("autoscale", range).await;
    assert_eq!(set, ok("autoscale now max=12 min=3"));
    wait_until("all are done", 301, async || {
        setup.ids("active").await.is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(size().await, 3);
}

#[tokio::test(start_paused = true)]
async fn autoscaled_pool_without_prefetch_follows_load() {
    let setup = Setup::new();
    let worker = setup.app.worker(tasks()).prefetch_multiplier(1);
    let _worker = Running::start(worker.autoscale(1..=5));
    let calls = (0..8).map(|_| SLEEP.s((100,)));
    setup.client().apply_all(calls).await;
    run_pending().await;
    assert_eq!(setup.ids("active").await.len(), 5);
    assert_eq!(setup.depth("celery").await, 3);
    let range = [("max", Value::Int(7)), ("min", Value::Int(1))];
    setup.query("autoscale", range).await;
    run_pending().await;
    assert_eq!(setup.ids("active").await.len(), 7);
}

/// The worker cancels its only queue and consumes it again.
#[tokio::test(start_paused = true)]
async fn worker_without_queues_handles_commands() {
    let setup = Setup::new();
    let _worker = start(&setup, 1);
    let queue = [("queue", Value::from("celery"))];
    setup.query("cancel_consumer", queue.clone()).await;
    assert_eq!(
        setup.query("active_queues", ()).await,
        Value::Array(Vec::new())
    );
    let left = setup.client().send(ADD, (1, 2)).await.unwrap();
    run_pending().await;
    assert!(!left.ready().await.unwrap());
    setup.query("add_consumer", queue).await;
    assert_eq!(within(5, left.get()).await.unwrap(), 3);
}
