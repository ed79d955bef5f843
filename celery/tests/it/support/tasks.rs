//! Tasks of the tests' Rust workers. `python/worker_app.py` has those that both
//! languages serve.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use celery::{Context, Requeue, Task, TaskError, Tasks, Value};
use serde::Serialize;
use tokio::sync::Semaphore;

/// Appends the worker's language to the path.
pub(crate) const HOP: Task<(Vec<String>,), Vec<String>> = Task::new("test.hop").params(&["path"]);

/// Returns the worker's language.
pub(crate) const LANGUAGE: Task<(), String> = Task::new("test.language");

/// Retries `times` times, each time after `delay` seconds, then returns the
/// number of retries.
///
/// `tasks.retry` has no delay, which is too fast beside Python workers: Python
/// reads a result's state before it writes RETRY, and overwrites what another
/// worker has stored in between.
pub(crate) const RETRY_TIMES: Task<(u32, f64), u32> =
    Task::new("test.retry").params(&["times", "delay=0.2"]);

/// Records a number in the [`RunLog`] after `after` milliseconds.
pub(crate) const RECORD: Task<(i64, u64), i64> =
    Task::new("test.record").params(&["number", "after=0"]);

/// Reports PROGRESS, and waits for [`RELEASE`].
const WAIT: Task<(), String> = Task::new("test.wait");

/// Ends one [`WAIT`].
const RELEASE: Task<(), ()> = Task::new("test.release");

/// Retries with a countdown of an hour.
const RETRY_IN_AN_HOUR: Task<(), ()> = Task::new("test.retry_in_an_hour");

/// Returns the time at which it runs, in seconds since 1970.
pub(crate) const NOW: Task<(), f64> = Task::new("test.now");

/// Rejects its message the first time. Returns the second time whether the
/// message is flagged as redelivered.
pub(crate) const REJECT: Task<(bool,), bool> =
    Task::new("test.reject").params(&["requeue"]).acks_late();

/// Returns a header of its own message.
const HEADER: Task<(String,), Value> = Task::new("test.header").params(&["name"]);

/// The examples' tasks and all of the above except [`RECORD`].
pub(crate) fn test_tasks() -> Tasks {
    let waiting = Arc::new(Semaphore::new(0));
    let released = Arc::clone(&waiting);
    crate::handlers::all()
        .with(HOP, hop)
        .with(LANGUAGE, language)
        .with(RETRY_TIMES, retry_times)
        .with(WAIT, move |ctx: Context| wait(ctx, Arc::clone(&waiting)))
        .with(RELEASE, move || release(Arc::clone(&released)))
        .with(RETRY_IN_AN_HOUR, retry_in_an_hour)
        .with(NOW, now)
        .with(HEADER, header)
        .with(REJECT, reject)
}

/// The runs of [`RECORD`], in the order in which they ended.
#[derive(Clone, Default)]
pub(crate) struct RunLog {
    runs: Arc<Mutex<Vec<(i64, Instant)>>>,
}

impl RunLog {
    /// [`test_tasks`] and a [`RECORD`] that writes to this log.
    pub(crate) fn tasks(&self) -> Tasks {
        let log = self.clone();
        test_tasks().with(RECORD, move |number, after| {
            log.clone().record(number, after)
        })
    }

    async fn record(self, number: i64, after: u64) -> Result<i64, TaskError> {
        tokio::time::sleep(Duration::from_millis(after)).await;
        self.runs.lock().unwrap().push((number, Instant::now()));
        Ok(number)
    }

    /// The recorded numbers.
    pub(crate) fn numbers(&self) -> Vec<i64> {
        let runs = self.runs.lock().unwrap();
        runs.iter().map(|(number, _)| *number).collect()
    }

    /// The recorded numbers without repetitions.
    pub(crate) fn distinct(&self) -> HashSet<i64> {
        self.numbers().into_iter().collect()
    }

    /// The number of runs.
    pub(crate) fn count(&self) -> usize {
        self.runs.lock().unwrap().len()
    }

    /// How often a number was recorded.
    pub(crate) fn times(&self, number: i64) -> usize {
        let runs = self.runs.lock().unwrap();
        runs.iter().filter(|(ran, _)| *ran == number).count()
    }

    /// When the first run after this time ended.
    pub(crate) fn first_after(&self, time: Instant) -> Option<Instant> {
        let runs = self.runs.lock().unwrap();
        runs.iter().map(|(_, end)| *end).find(|end| *end > time)
    }
}

async fn hop(mut path: Vec<String>) -> Result<Vec<String>, TaskError> {
    path.push(language().await?);
    Ok(path)
}

async fn language() -> Result<String, TaskError> {
    Ok("rust".to_owned())
}

async fn retry_times(ctx: Context, times: u32, delay: f64) -> Result<u32, TaskError> {
    if ctx.retries() < times {
        let delay = Duration::try_from_secs_f64(delay)?;
        return Err(TaskError::retry().after(delay).at_most(times));
    }
    Ok(ctx.retries())
}

#[derive(Serialize)]
struct Progress {
    current: u32,
    total: u32,
}

async fn wait(ctx: Context, released: Arc<Semaphore>) -> Result<String, TaskError> {
    let progress = Progress {
        current: 1,
        total: 2,
    };
    ctx.update_state("PROGRESS", progress).await?;
    released.acquire().await?.forget();
    Ok("released".to_owned())
}

async fn release(waiting: Arc<Semaphore>) -> Result<(), TaskError> {
    waiting.add_permits(1);
    Ok(())
}

async fn retry_in_an_hour() -> Result<(), TaskError> {
    Err(TaskError::retry().after(Duration::from_secs(3600)))
}

async fn now() -> Result<f64, TaskError> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

async fn reject(ctx: Context, requeue: bool) -> Result<bool, TaskError> {
    if ctx.is_redelivered() {
        return Ok(true);
    }
    let requeue = if requeue { Requeue::Yes } else { Requeue::No };
    Err(TaskError::reject("not now", requeue))
}

async fn header(ctx: Context, name: String) -> Result<Value, TaskError> {
    Ok(ctx.header(&name).unwrap_or_default())
}
