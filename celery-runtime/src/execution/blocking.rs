//! The threads of blocking tasks: [`BlockingPool`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::sync::Semaphore;
use tokio::task::JoinError;

use crate::env;

/// A limit on the threads of blocking tasks: one per slot of the worker.
///
/// A thread whose task was aborted, as at a hard time limit, keeps its permit until it ends. A
/// handler that never ends can therefore exhaust the threads of one worker, but not those of the
/// machine.
#[derive(Debug)]
pub(crate) struct BlockingPool {
    permits: Arc<Semaphore>,
    abandoned: Arc<AtomicUsize>,
}

impl BlockingPool {
    /// Creates a pool of at most `threads` threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(threads)),
            abandoned: Arc::default(),
        }
    }

    /// Returns the number of threads that still run although their tasks have ended.
    pub(crate) fn abandoned(&self) -> usize {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Adds `threads` permits.
    pub(crate) fn grow(&self, threads: usize) {
        self.permits.add_permits(threads);
    }

    /// Removes up to `threads` permits that are free, and returns how many it has removed.
    pub(crate) fn shrink(&self, threads: usize) -> usize {
        self.permits.forget_permits(threads)
    }

    /// Waits for a permit, then runs `work` on a thread of its own. `task` is the name of the task,
    /// for the log.
    ///
    /// # Errors
    ///
    /// Fails if `work` panics or the runtime shuts down.
    ///
    /// # Cancel safety
    ///
    /// A dropped future abandons the thread, which is then counted in
    /// [`abandoned`](Self::abandoned).
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("the semaphore lives as long as the worker");
        let state = ThreadState {
            state: Arc::default(),
            abandoned: Arc::clone(&self.abandoned),
        };
        let _waiter = WaiterGuard {
            state: state.clone(),
            task,
        };
        env::spawn_blocking(move || {
            let _permit = permit;
            let _thread = ThreadGuard(state);
            work()
        })
        .await
    }
}

const RUNNING: u8 = 0;
const ABANDONED: u8 = 1;
const ENDED: u8 = 2;

/// The state of a thread, shared by the thread and the future that waits for it.
#[derive(Clone)]
struct ThreadState {
    state: Arc<AtomicU8>,
    abandoned: Arc<AtomicUsize>,
}

impl ThreadState {
    /// Changes the state from `RUNNING` to `state`. Returns whether it was `RUNNING`.
    fn leave_running(&self, state: u8) -> bool {
        let changed =
            self.state
                .compare_exchange(RUNNING, state, Ordering::SeqCst, Ordering::SeqCst);
        changed.is_ok()
    }
}

/// Marks the thread as abandoned when the future that waits for it is dropped first.
struct WaiterGuard<'a> {
    state: ThreadState,
    task: &'a str,
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        if self.state.leave_running(ABANDONED) {
            let count = self.state.abandoned.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::warn!(
                "the thread of task {} still runs although the task has ended; {count} such \
                 threads take slots from blocking tasks (an isolated task can be killed)",
                self.task
            );
        }
    }
}

/// Marks the thread as ended, and subtracts it from the abandoned ones if it was one.
struct ThreadGuard(ThreadState);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        if !self.0.leave_running(ENDED) {
            self.0.abandoned.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn abandoned_thread_is_counted_and_keeps_its_permit() {
        let pool = BlockingPool::new(1);
        assert_eq!(pool.run("t", || 1).await.unwrap(), 1);
        assert_eq!(pool.abandoned(), 0);
        let (end, ended) = mpsc::channel::<()>();
        {
            let mut abandoned = Box::pin(pool.run("t", move || {
                let _ = ended.recv();
            }));
            while pool.permits.available_permits() > 0 {
                tokio::select! {
                    biased;
                    _ = &mut abandoned => unreachable!("the thread waits for `end`"),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        assert_eq!(pool.abandoned(), 1);
        let mut next = Box::pin(pool.run("t", || 2));
        tokio::select! {
            biased;
            _ = &mut next => panic!("there is no free permit"),
            () = tokio::task::yield_now() => {}
        }
        end.send(()).unwrap();
        assert_eq!(next.await.unwrap(), 2);
        assert_eq!(pool.abandoned(), 0);
    }
}
