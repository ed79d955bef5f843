//! Finds tasks that keep the async runtime from doing anything else.
//!
//! A task that computes or waits without an await stops every other one on its
//! thread. Each poll of a task leaves a mark while it lasts; a thread of its
//! own, which no task can block, looks for marks that stay.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::env;
use crate::execution::Job;

/// How often the marks are looked at, in each time after which one counts.
const LOOKS: u32 = 4;

/// Looks after the tasks of one worker; ends with it.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Counts the looks; polls are dated by it.
    now: AtomicU64,
    polls: Mutex<Vec<Weak<Mark>>>,
    ended: AtomicBool,
}

/// The poll of one task.
#[derive(Debug)]
struct Mark {
    job: Arc<Job>,
    /// When the poll began that is under way; 0 where there is none.
    since: AtomicU64,
    reported: AtomicBool,
}

impl Watchdog {
    /// Reports polls that take longer than `limit`.
    pub(crate) fn start(limit: Duration) -> Self {
        let shared = Arc::new(Shared {
            now: AtomicU64::new(1),
            ..Shared::default()
        });
        let pause = (limit / LOOKS).max(Duration::from_millis(1));
        let looking = Arc::clone(&shared);
        // Without the thread nothing is reported, and all else works.
        if let Err(error) = env::spawn_thread("celery-watchdog", move || looking.look(pause)) {
            tracing::warn!("tasks that block the runtime will not be found: {error}");
        }
        Self { shared }
    }

    /// The task, marked while it is polled.
    pub(crate) fn watch<F: Future>(&self, job: &Arc<Job>, task: F) -> Watched<F> {
        let mark = Arc::new(Mark {
            job: Arc::clone(job),
            since: AtomicU64::new(0),
            reported: AtomicBool::new(false),
        });
        let mut polls = self.shared.polls();
        // Those that ended are swept out whenever the list would grow.
        if polls.len() == polls.capacity() {
            polls.retain(|mark| mark.strong_count() > 0);
        }
        polls.push(Arc::downgrade(&mark));
        drop(polls);
        Watched {
            task: Box::pin(task),
            mark,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn polls(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Mark>>> {
        self.polls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, pause: Duration) {
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(pause);
            let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
            for mark in self.polls().iter().filter_map(Weak::upgrade) {
                let since = mark.since.load(Ordering::Relaxed);
                let is_long = since != 0 && now - since > u64::from(LOOKS);
                if is_long && !mark.reported.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "task {} ({}) blocks the runtime: it has not come to an await for {:?}; \
                         register it with `with_blocking`",
                        mark.job.task,
                        mark.job.id,
                        pause * LOOKS
                    );
                }
            }
        }
    }
}

/// A task that is marked while it is polled.
pub(crate) struct Watched<F> {
    task: Pin<Box<F>>,
    mark: Arc<Mark>,
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
