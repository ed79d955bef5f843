//! The threads of blocking tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::sync::Semaphore;
use tokio::task::JoinError;

use crate::env;

/// So many threads as there are slots. A thread that is left behind, as at a
/// hard limit, keeps its place until it really ends: code of a user's that never
/// ends can take the threads of one worker, and not the machine's.
#[derive(Debug)]
pub(crate) struct BlockingPool {
    places: Arc<Semaphore>,
    abandoned: Arc<AtomicUsize>,
}

impl BlockingPool {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            abandoned: Arc::default(),
        }
    }

    /// Those that go on though their task has ended.
    pub(crate) fn abandoned(&self) -> usize {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub(crate) fn grow(&self, places: usize) {
        self.places.add_permits(places);
    }

    /// Takes places away that are free, and says how many.
    pub(crate) fn shrink(&self, places: usize) -> usize {
        self.places.forget_permits(places)
    }

    /// Runs `work`, which is done for the task called `name`, on a thread of its
    /// own, once there is a place.
    ///
    /// # Cancel safety
    ///
    /// A dropped future abandons the thread, which then counts as such.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("the semaphore lives as long as the worker");
        let life = ThreadState {
            state: Arc::default(),
            abandoned: Arc::clone(&self.abandoned),
        };
        let _here = Awaited {
            life: life.clone(),
            name,
        };
        env::spawn_blocking(move || {
            let _place = place;
            let _life = ThreadGuard(life);
            work()
        })
        .await
    }
}

const RUNNING: u8 = 0;
const ABANDONED: u8 = 1;
const ENDED: u8 = 2;

/// What a thread and those who wait for it know of each other.
#[derive(Clone)]
struct ThreadState {
    state: Arc<AtomicU8>,
    abandoned: Arc<AtomicUsize>,
}

impl ThreadState {
    /// Goes on from `RUNNING`, unless the other side was first.
    fn becomes(&self, state: u8) -> bool {
        let changed =
            self.state
                .compare_exchange(RUNNING, state, Ordering::SeqCst, Ordering::SeqCst);
        changed.is_ok()
    }
}

/// Held by who waits for the thread.
struct Awaited<'a> {
    life: ThreadState,
    name: &'a str,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if self.life.becomes(ABANDONED) {
            let count = self.life.abandoned.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::warn!(
                "the thread of task {} goes on though the task has ended; {count} such threads \
                 keep blocking tasks from running (an isolated task could be killed)",
                self.name
            );
        }
    }
}

/// Held by the thread.
struct ThreadGuard(ThreadState);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        if !self.0.becomes(ENDED) {
            self.0.abandoned.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_thread_that_is_left_behind_is_counted_and_keeps_its_place() {
        let threads = BlockingPool::new(1);
        assert_eq!(threads.run("t", || 1).await.unwrap(), 1);
        assert_eq!(threads.abandoned(), 0);
        let (end, ended) = mpsc::channel::<()>();
        {
            let mut left = Box::pin(threads.run("t", move || {
                let _ = ended.recv();
            }));
            while threads.places.available_permits() > 0 {
                tokio::select! {
                    biased;
                    _ = &mut left => unreachable!("it waits for its end"),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        assert_eq!(threads.abandoned(), 1);
        let mut next = Box::pin(threads.run("t", || 2));
        tokio::select! {
            biased;
            _ = &mut next => panic!("there is no place"),
            () = tokio::task::yield_now() => {}
        }
        end.send(()).unwrap();
        assert_eq!(next.await.unwrap(), 2);
        assert_eq!(threads.abandoned(), 0);
    }
}
