//! Signals between the driver and a running task: [`TaskControl`].

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use tokio::sync::Notify;

/// The soft time limit, the shutdown and the process of one running task, shared by the driver
/// and the task.
#[derive(Debug, Default)]
pub(crate) struct TaskControl {
    /// Whether the task handles its soft time limit.
    handles_soft_limit: AtomicBool,
    soft_limit: OnceSignal,
    shutdown: OnceSignal,
    /// Notified once, when the task begins to handle its soft time limit; a child process forwards
    /// that to its worker.
    subscribed: Notify,
    /// The id of the child process that runs the task, or 0 if it runs in this process.
    pid: AtomicU32,
    /// The signal that aborts the child process, or 0 for the default.
    signal: AtomicI32,
}

impl TaskControl {
    /// Signals the soft time limit. Returns whether the task handles it; otherwise the caller has
    /// to abort the task.
    pub(crate) fn signal_soft_limit(&self) -> bool {
        self.soft_limit.set();
        self.handles_soft_limit.load(Ordering::SeqCst)
    }

    /// Signals the shutdown of the worker.
    pub(crate) fn signal_shutdown(&self) {
        self.shutdown.set();
    }

    /// Marks the soft time limit as handled by the task, and resolves when it is reached.
    pub(crate) async fn wait_soft_limit(&self) {
        self.subscribe_soft_limit();
        self.soft_limit().await;
    }

    /// Resolves when the soft time limit is reached. Unlike
    /// [`wait_soft_limit`](Self::wait_soft_limit) this does not mark the limit as handled by the
    /// task.
    pub(crate) async fn soft_limit(&self) {
        self.soft_limit.wait().await;
    }

    /// Returns whether the shutdown of the worker has been signalled.
    pub(crate) fn is_shutdown_requested(&self) -> bool {
        self.shutdown.is_set()
    }

    /// Resolves when the shutdown of the worker is signalled.
    pub(crate) async fn shutdown_requested(&self) {
        self.shutdown.wait().await;
    }

    /// Marks the soft time limit as handled by the task: the driver does not abort it then.
    pub(crate) fn subscribe_soft_limit(&self) {
        if !self.handles_soft_limit.swap(true, Ordering::SeqCst) {
            self.subscribed.notify_one();
        }
    }

    /// Resolves when the task has called [`subscribe_soft_limit`](Self::subscribe_soft_limit). Only
    /// one waiter is woken.
    pub(crate) async fn soft_limit_subscribed(&self) {
        self.subscribed.notified().await;
    }

    /// Returns whether the soft time limit has been reached.
    pub(crate) fn is_soft_limit_reached(&self) -> bool {
        self.soft_limit.is_set()
    }

    /// Returns the id of the process that runs the task.
    pub(crate) fn pid(&self) -> u32 {
        match self.pid.load(Ordering::Relaxed) {
            0 => std::process::id(),
            pid => pid,
        }
    }

    /// Sets the id of the child process that runs the task.
    pub(crate) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Sets the signal that is sent to the child process when the task is aborted. Without one the
    /// child is killed at once; a child that survives the signal is killed soon after.
    pub(crate) fn set_signal(&self, signal: i32) {
        self.signal.store(signal, Ordering::Relaxed);
    }

    /// Returns the signal set by [`set_signal`](Self::set_signal).
    pub(crate) fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }
}

/// A flag that is set once and wakes all waiters; later waiters resolve at once.
#[derive(Debug, Default)]
struct OnceSignal {
    is_set: AtomicBool,
    notify: Notify,
}

impl OnceSignal {
    fn set(&self) {
        self.is_set.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::SeqCst)
    }

    async fn wait(&self) {
        let notified = self.notify.notified();
        if !self.is_set() {
            notified.await;
        }
    }
}
