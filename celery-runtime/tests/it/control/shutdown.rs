//! Shutdown by remote control, and soft shutdown.

use std::time::Duration;

use celery_protocol::State;
use celery_runtime::{Context, Task, TaskError};

use super::{LATE, SLEEP, run_pending, setup_with, start, tasks};
use crate::support::{Running, Setup, within};

const OBSERVE: Task<(), String> = Task::new("tasks.observe");

/// Waits for the shutdown.
async fn observe(ctx: Context) -> Result<String, TaskError> {
    ctx.shutdown_requested().await;
    Ok("observed".to_owned())
}

#[tokio::test(start_paused = true)]
async fn task_observes_warm_shutdown() {
    let setup = Setup::new();
    let worker = Running::start(setup.app.worker(tasks().with(OBSERVE, observe)));
    let observer = setup.client().send(OBSERVE, ()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!observer.ready().await.unwrap());
    worker.stop().await.unwrap();
    assert_eq!(within(1, observer.get()).await.unwrap(), "observed");
    assert_eq!(setup.elapsed().round() as u64, 100);
}

#[tokio::test(start_paused = true)]
async fn soft_shutdown_gives_tasks_time_to_finish() {
    let setup = setup_with(&[("worker_soft_shutdown_timeout", 10.into())]);
    let events = setup.record_events().await;
    let mut worker = start(&setup, 4);
    let client = setup.client();
    run_pending().await;
    let short = client.send(LATE, (7,)).await.unwrap();
    let long = client.send(LATE, (500,)).await.unwrap();
    let early = client.send(SLEEP, (500,)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.request_stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    worker.force_shutdown();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The command has no effect after a forced shutdown.
    setup.send_command("shutdown", ()).await;
    worker.wait().await.unwrap();
    assert_eq!(setup.elapsed().round() as u64, 12);
    assert_eq!(short.state().await.unwrap(), State::Success);
    assert_eq!(long.state().await.unwrap(), State::Pending);
    assert_eq!(early.state().await.unwrap(), State::Retry);
    assert_eq!(setup.depth("celery").await, 1);
    run_pending().await;
    assert_eq!(events.of("task-cancelled").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn idle_soft_shutdown_waits_only_if_configured() {
    for (idle, seconds) in [(false, 2), (true, 12)] {
        let setup = setup_with(&[
            ("worker_soft_shutdown_timeout", 10.into()),
            ("worker_enable_soft_shutdown_on_idle", idle.into()),
        ]);
        let mut worker = start(&setup, 1);
        // Keeps the worker running until the shutdown is forced.
        let long = setup.client().send(SLEEP, (2,)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        worker.request_stop();
        tokio::time::sleep(Duration::from_secs(1)).await;
        worker.force_shutdown();
        worker.wait().await.unwrap();
        assert_eq!(setup.elapsed().round() as u64, seconds);
        assert_eq!(long.state().await.unwrap(), State::Success);
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_command_is_warm() {
    let setup = Setup::new();
    let worker = start(&setup, 1);
    let long = setup.client().send(SLEEP, (30,)).await.unwrap();
    let waiting = setup.client().send(SLEEP, (30,)).await.unwrap();
    run_pending().await;
    setup.send_command("shutdown", ()).await;
    run_pending().await;
    setup.send_command("shutdown", ()).await;
    worker.wait().await.unwrap();
    assert_eq!(setup.elapsed().round() as u64, 30);
    assert_eq!(long.state().await.unwrap(), State::Success);
    assert_eq!(waiting.state().await.unwrap(), State::Pending);
    assert_eq!(setup.depth("celery").await, 1);
}
