//! A task that does nothing, and a worker that counts its runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use celery_runtime::{App, Task, TaskError, Tasks};
use tokio::sync::Notify;

/// Does nothing; its result is ignored.
pub const NOOP: Task<(), ()> = Task::new("bench.noop").params(&[]).ignore_result();

/// Runs a worker until it has run `tasks` no-op tasks, and returns the time from its start to the
/// end of the last task, without the shutdown.
///
/// # Panics
///
/// Panics if the worker fails.
pub async fn consume(app: &App, task: Task<(), ()>, tasks: u64, slots: usize) -> Duration {
    let progress = Arc::new(Progress {
        remaining: AtomicU64::new(tasks),
        end: OnceLock::new(),
        finished: Notify::new(),
    });
    let counted = Arc::clone(&progress);
    let handlers = Tasks::new().with(task, move || noop(Arc::clone(&counted)));
    let done = Arc::clone(&progress);
    let worker = app
        .worker(handlers)
        .concurrency(slots)
        .prefetch_multiplier(4)
        .run_until(async move { done.finished.notified().await });

    let start = Instant::now();
    tokio::spawn(worker)
        .await
        .expect("the worker does not panic")
        .expect("the worker succeeds");
    let end = progress.end.get().expect("the worker ran all tasks");
    end.duration_since(start)
}

struct Progress {
    remaining: AtomicU64,
    end: OnceLock<Instant>,
    finished: Notify,
}

async fn noop(progress: Arc<Progress>) -> Result<(), TaskError> {
    if progress.remaining.fetch_sub(1, Ordering::Relaxed) == 1 {
        progress.end.get_or_init(Instant::now);
        progress.finished.notify_one();
    }
    Ok(())
}
