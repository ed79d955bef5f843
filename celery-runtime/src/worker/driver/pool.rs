//! Runs the tasks of a worker: [`Pool`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::env::{self, AbortOnDrop};
use crate::execution::{ErasedTask, Job, WorkerContext};
use crate::worker::core::slots::ThreadChange;
use crate::worker::delivery::event::Outcome;
use crate::worker::delivery::in_flight::DeliveryKey;
use crate::worker::effects::run_task;
use crate::worker::io::watchdog::Watchdog;
use crate::worker::isolated::Children;

/// The running tasks' outcomes, and the threads and child processes that they use.
pub(crate) struct Pool {
    /// The channel is unbounded in type only: each delivery in flight sends one
    /// message.
    sender: mpsc::UnboundedSender<(DeliveryKey, Outcome)>,
    outcomes: mpsc::UnboundedReceiver<(DeliveryKey, Outcome)>,
    watchdog: Watchdog,
    context: Arc<WorkerContext>,
    /// The child processes, if there are isolated tasks.
    children: Option<Arc<Children>>,
    /// The concurrency at the start.
    initial_size: usize,
}

impl Pool {
    /// Starts the watchdog, which reports polls that last longer than
    /// `blocked_after`.
    pub(crate) fn start(
        blocked_after: Duration,
        context: Arc<WorkerContext>,
        children: Option<Arc<Children>>,
        initial_size: usize,
    ) -> Self {
        let (sender, outcomes) = mpsc::unbounded_channel();
        Self {
            sender,
            outcomes,
            watchdog: Watchdog::start(blocked_after),
            context,
            children,
            initial_size,
        }
    }

    pub(crate) fn initial_size(&self) -> usize {
        self.initial_size
    }

    /// Runs the task of a delivery.
    pub(crate) fn run(
        &self,
        key: DeliveryKey,
        job: &Arc<Job>,
        run: &Arc<dyn ErasedTask>,
    ) -> AbortOnDrop {
        let task = run_task::run(Arc::clone(run), Arc::clone(job));
        let task = self.watchdog.watch(job, task);
        let sender = self.sender.clone();
        let running = env::spawn(async move {
            // The receiver exists as long as the pool.
            let _ = sender.send((key, task.await));
        });
        running.into()
    }

    /// Waits until tasks have ended, and moves at most `limit` outcomes to `ended`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn ended(&mut self, ended: &mut Vec<(DeliveryKey, Outcome)>, limit: usize) {
        self.outcomes.recv_many(ended, limit).await;
    }

    /// Changes the number of threads and child processes. Returns how many threads
    /// are in use and so cannot be removed.
    pub(crate) fn resize(&self, size: usize, threads: ThreadChange) -> usize {
        if let Some(children) = &self.children {
            children.resize(size);
        }
        match threads {
            ThreadChange::Grow(count) => {
                self.context.blocking.grow(count);
                0
            }
            ThreadChange::Shrink(count) => count - self.context.blocking.shrink(count),
        }
    }

    pub(crate) fn children(&self) -> Option<&Children> {
        self.children.as_deref()
    }

    /// Returns the number of threads that still run although their tasks have ended.
    pub(crate) fn abandoned_threads(&self) -> usize {
        self.context.blocking.abandoned()
    }
}
