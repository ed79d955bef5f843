//! Tasks for what only a test wants to see. `python/more.py` has those that
//! both languages serve.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery::{Context, Requeue, Task, TaskError, Tasks, Value};
use serde::Serialize;
use tokio::sync::Semaphore;

/// Appends the worker's language to the path.
pub(crate) const HOP: Task<(Vec<String>,), Vec<String>> = Task::new("test.hop").params(&["path"]);

/// Returns the worker's language.
pub(crate) const LANGUAGE: Task<(), String> = Task::new("test.language");

/// Retries so often, each time after so many seconds, then returns how often
/// it did.
///
/// Not at once, as `tasks.retry` does: Python looks at a result's state before
/// it writes RETRY, and what was stored in between it overwrites.
pub(crate) const RETRY_TIMES: Task<(u32, f64), u32> =
    Task::new("test.retry").params(&["times", "delay=0.2"]);

/// Notes a number in the runs, after so many milliseconds.
pub(crate) const RECORD: Task<(i64, u64), i64> =
    Task::new("test.record").params(&["number", "after=0"]);

/// Reports PROGRESS, and waits for `test.release`.
const WAIT: Task<(), String> = Task::new("test.wait");
const RELEASE: Task<(), ()> = Task::new("test.release");

/// Asks to be retried in an hour.
const RETRY_IN_AN_HOUR: Task<(), ()> = Task::new("test.retry_in_an_hour");

/// The time at which it runs, in seconds since 1970.
pub(crate) const NOW: Task<(), f64> = Task::new("test.now");

/// Rejects its message the first time, and answers the second time whether it
/// is flagged as redelivered.
pub(crate) const REJECT: Task<(bool,), bool> =
    Task::new("test.reject").params(&["requeue"]).acks_late();

/// A header of its own message.
const HEADER: Task<(String,), Value> = Task::new("test.header").params(&["name"]);

/// The examples' tasks and the ones above, [`RECORD`] excepted.
pub(crate) fn test_tasks() -> Tasks {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    crate::handlers::all()
        .with(HOP, hop)
        .with(LANGUAGE, who)
        .with(RETRY_TIMES, again)
        .with(WAIT, move |ctx: Context| wait(ctx, Arc::clone(&gate)))
        .with(RELEASE, move || open(Arc::clone(&opened)))
        .with(RETRY_IN_AN_HOUR, later)
        .with(NOW, now)
        .with(HEADER, header)
        .with(REJECT, refuse)
}

/// What ran, in the order in which it ran.
#[derive(Clone, Default)]
pub(crate) struct RunLog {
    numbers: Arc<Mutex<Vec<i64>>>,
}

impl RunLog {
    pub(crate) fn numbers(&self) -> Vec<i64> {
        self.numbers.lock().unwrap().clone()
    }

    /// The tasks of [`story`], and [`RECORD`], which notes in this runs.
    pub(crate) fn tasks(&self) -> Tasks {
        let runs = self.clone();
        test_tasks().with(RECORD, move |number, after| {
            runs.clone().mark(number, after)
        })
    }

    async fn mark(self, number: i64, after: u64) -> Result<i64, TaskError> {
        tokio::time::sleep(Duration::from_millis(after)).await;
        self.numbers.lock().unwrap().push(number);
        Ok(number)
    }
}

async fn hop(mut path: Vec<String>) -> Result<Vec<String>, TaskError> {
    path.push(who().await?);
    Ok(path)
}

async fn who() -> Result<String, TaskError> {
    Ok("rust".to_owned())
}

async fn again(ctx: Context, times: u32, delay: f64) -> Result<u32, TaskError> {
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

async fn wait(ctx: Context, gate: Arc<Semaphore>) -> Result<String, TaskError> {
    let progress = Progress {
        current: 1,
        total: 2,
    };
    ctx.update_state("PROGRESS", progress).await?;
    gate.acquire().await?.forget();
    Ok("opened".to_owned())
}

async fn open(gate: Arc<Semaphore>) -> Result<(), TaskError> {
    gate.add_permits(1);
    Ok(())
}

async fn later() -> Result<(), TaskError> {
    Err(TaskError::retry().after(Duration::from_secs(3600)))
}

async fn now() -> Result<f64, TaskError> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

async fn refuse(ctx: Context, requeue: bool) -> Result<bool, TaskError> {
    let again = match requeue {
        true => Requeue::Yes,
        false => Requeue::No,
    };
    match ctx.is_redelivered() {
        true => Ok(true),
        false => Err(TaskError::reject("not now", again)),
    }
}

async fn header(ctx: Context, name: String) -> Result<Value, TaskError> {
    Ok(ctx.header(&name).unwrap_or_default())
}
