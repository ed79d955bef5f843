//! Remote control of a worker and the settings of workers, with tokio's clock paused.

mod events;
mod load;
mod pool;
mod rate_limit;
mod redelivery;
mod revocation;
mod shutdown;

use std::time::Duration;

use celery_protocol::State;
use celery_runtime::{AsyncResult, Config, ResultError, Task, TaskError, Tasks};

use crate::support::{Running, Setup, within};

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

/// Returns an app with these settings.
fn setup_with(settings: &[(&str, serde_json::Value)]) -> Setup {
    let config = settings
        .iter()
        .fold(Config::new(), |config, (name, value)| {
            config.set(name, value.clone()).unwrap()
        });
    Setup::with_config(config)
}

/// Starts a worker that sends task events.
fn start(setup: &Setup, concurrency: usize) -> Running {
    Running::start(
        setup
            .app
            .worker(tasks())
            .concurrency(concurrency)
            .task_events(true),
    )
}

/// Waits until everything has run that takes no time.
async fn run_pending() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Waits until `condition` holds, at most this many seconds.
async fn wait_until(what: &str, seconds: u64, mut look: impl AsyncFnMut() -> bool) {
    let found = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(seconds), found).await;
    assert!(found.is_ok(), "not within {seconds} s: {what}");
}

/// Asserts that the task was revoked for this reason.
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
