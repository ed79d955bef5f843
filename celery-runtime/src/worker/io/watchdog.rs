//! Detects tasks that block the async runtime: [`Watchdog`].
//!
//! A task that computes or blocks without an await stalls every other task on
//! its thread. Each poll of a task sets a mark while it lasts; a separate thread,
//! which no task can block, scans for marks that stay set.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::env;
use crate::execution::Job;

/// How many scans there are within the time limit of a poll.
const SCANS_PER_LIMIT: u32 = 4;

/// Watches the tasks of one worker; its thread ends after the watchdog is
/// dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The number of the current scan, which serves as the time.
    now: AtomicU64,
    marks: Mutex<Vec<Weak<PollMark>>>,
    stopped: AtomicBool,
}

/// Shows whether a task is being polled.
#[derive(Debug)]
struct PollMark {
    job: Arc<Job>,
    /// The scan during which the current poll began; 0 while there is none.
    since: AtomicU64,
    reported: AtomicBool,
}

impl Watchdog {
    /// Starts the thread, which logs polls that take longer than `limit`.
    pub(crate) fn start(limit: Duration) -> Self {
        let shared = Arc::new(Shared {
            now: AtomicU64::new(1),
            ..Shared::default()
        });
        let pause = (limit / SCANS_PER_LIMIT).max(Duration::from_millis(1));
        let scanning = Arc::clone(&shared);
        // The worker works without the thread; only the reports are missing.
        if let Err(error) = env::spawn_thread("celery-watchdog", move || scanning.run(pause)) {
            tracing::warn!("cannot detect tasks that block the runtime: {error}");
        }
        Self { shared }
    }

    /// Wraps the task's future in one that sets the mark during each poll.
    pub(crate) fn watch<F: Future>(&self, job: &Arc<Job>, task: F) -> Watched<F> {
        let mark = Arc::new(PollMark {
            job: Arc::clone(job),
            since: AtomicU64::new(0),
            reported: AtomicBool::new(false),
        });
        let mut marks = self.shared.marks();
        // Marks of finished tasks are removed whenever the list would grow.
        if marks.len() == marks.capacity() {
            marks.retain(|mark| mark.strong_count() > 0);
        }
        marks.push(Arc::downgrade(&mark));
        drop(marks);
        Watched {
            task: Box::pin(task),
            mark,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn marks(&self) -> std::sync::MutexGuard<'_, Vec<Weak<PollMark>>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, pause: Duration) {
        while !self.stopped.load(Ordering::Relaxed) {
            std::thread::sleep(pause);
            let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
            for mark in self.marks().iter().filter_map(Weak::upgrade) {
                let since = mark.since.load(Ordering::Relaxed);
                let is_long = since != 0 && now - since > u64::from(SCANS_PER_LIMIT);
                if is_long && !mark.reported.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "task {} ({}) blocks the runtime: no await for {:?}; register it with \
                         `with_blocking`",
                        mark.job.task,
                        mark.job.id,
                        pause * SCANS_PER_LIMIT
                    );
                }
            }
        }
    }
}

/// A task's future that sets its mark while it is polled.
pub(crate) struct Watched<F> {
    task: Pin<Box<F>>,
    mark: Arc<PollMark>,
    shared: Arc<Shared>,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let now = self.shared.now.load(Ordering::Relaxed);
        self.mark.since.store(now, Ordering::Relaxed);
        let polled = self.task.as_mut().poll(context);
        self.mark.since.store(0, Ordering::Relaxed);
        polled
    }
}
