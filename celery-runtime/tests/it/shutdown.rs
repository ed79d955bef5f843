//! Shutdown: warm, cold and killed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::State;
use celery_runtime::{ServiceErrorKind, Task, TaskError, Tasks, WorkerError};

use crate::support::{Running, Setup, within};

const EARLY: Task<(u32,), u32> = Task::new("tasks.early").params(&["number"]);
const LATE: Task<(u32,), u32> = Task::new("tasks.late").params(&["number"]).acks_late();

/// Returns tasks that take ten seconds and log their end.
fn tasks(log: &Arc<Mutex<Vec<u32>>>) -> Tasks {
    let handler = || {
        let log = Arc::clone(log);
        move |number: u32| {
            let log = Arc::clone(&log);
            async move {
                tokio::time::sleep(Duration::from_secs(10)).await;
                log.lock().unwrap().push(number);
                Ok::<_, TaskError>(number)
            }
        }
    };
    Tasks::new().with(EARLY, handler()).with(LATE, handler())
}

#[tokio::test(start_paused = true)]
async fn warm_shutdown_finishes_running_and_requeues_rest_in_order() {
    let log = Arc::default();
    let setup = Setup::new();
    let client = setup.client();
    for task in [EARLY, LATE] {
        client
            .apply_all((0..6).map(|number| task.s((number,))))
            .await;
    }
    let mut worker = Running::start(setup.app.worker(tasks(&log)).concurrency(2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.request_stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        setup.depth("celery").await,
        10,
        "prefetched messages are requeued at once"
    );
    worker.wait().await.unwrap();
    assert_eq!(setup.elapsed().round() as u64, 10);
    assert_eq!(*log.lock().unwrap(), [0, 1]);
    assert_eq!(setup.broker.unsettled(), 0);

    let second = Running::start(setup.app.worker(tasks(&log)).concurrency(1));
    tokio::time::sleep(Duration::from_secs(101)).await;
    second.stop().await.unwrap();
    assert_eq!(*log.lock().unwrap(), [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn cold_shutdown_requeues_late_and_marks_early_tasks() {
    let log = Arc::default();
    let setup = Setup::new();
    let early = setup.client().send(EARLY, (1,)).await.unwrap();
    let late = setup.client().send(LATE, (2,)).await.unwrap();
    let mut worker = setup.start(tasks(&log));
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.request_stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.force_shutdown();
    within(1, worker.wait()).await.unwrap();
    assert!(log.lock().unwrap().is_empty());
    assert_eq!(early.state().await.unwrap(), State::Retry);
    assert_eq!(late.state().await.unwrap(), State::Pending);
    let message = setup.take("celery").await;
    assert!(message.properties.delivery_info.redelivered);
}

#[tokio::test(start_paused = true)]
async fn killed_worker_loses_no_late_task() {
    let log = Arc::default();
    let setup = Setup::new();
    let results = setup
        .client()
        .apply_all((0..20).map(|number| LATE.s((number,))))
        .await;
    let worker = setup.start(tasks(&log));
    tokio::time::sleep(Duration::from_secs(15)).await;
    worker.kill().await;
    let _second = setup.start(tasks(&log));
    for result in results {
        within(60, result.unwrap().get()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn teardown_runs_after_the_last_task() {
    let log: Arc<Mutex<Vec<u32>>> = Arc::default();
    let setup = Setup::new();
    setup.client().send(LATE, (1,)).await.unwrap();
    let seen = Arc::clone(&log);
    let worker = setup.app.worker(tasks(&log)).on_stop(|| async move {
        seen.lock().unwrap().push(99);
    });
    let worker = Running::start(worker);
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.stop().await.unwrap();
    assert_eq!(*log.lock().unwrap(), [1, 99]);
}

#[tokio::test(start_paused = true)]
async fn delayed_task_survives_worker_restart() {
    let log = Arc::default();
    let setup = Setup::new();
    let later = EARLY.s((1,)).countdown(Duration::from_secs(1000));
    let later = setup.client().apply(later).await.unwrap();
    let first = setup.start(tasks(&log));
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.stop().await.unwrap();
    let _second = setup.start(tasks(&log));
    assert_eq!(later.get().await.unwrap(), 1);
    assert_eq!(setup.elapsed().round() as u64, 1010);
}

#[tokio::test(start_paused = true)]
async fn shutdown_without_backend_ends_after_timeout() {
    let log = Arc::default();
    let setup = Setup::new();
    setup.client().send(LATE, (1,)).await.unwrap();
    let worker = setup.start(tasks(&log));
    tokio::time::sleep(Duration::from_secs(1)).await;
    setup.backend.faults().go_down();
    let error = within(60, worker.stop()).await.unwrap_err();
    assert!(
        matches!(error, WorkerError::Unsettled { count: 1, .. }),
        "{error}"
    );
    // The result was not stored, so the task is not acknowledged and runs again.
    setup.backend.faults().come_back();
    assert_eq!(setup.depth("celery").await, 1);
    assert!(!ServiceErrorKind::Denied.is_transient());
}
