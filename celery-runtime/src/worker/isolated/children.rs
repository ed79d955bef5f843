//! The pool of child processes of a worker: [`Children`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::backoff::Backoff;
use crate::env;
use crate::execution::{Job, ProcessLost};
use crate::worker::isolated::child::{Child, ChildRun, StartingChild};
use crate::worker::isolated::program::Program;
use crate::worker::isolated::protocol::ChildConfig;
use crate::worker::isolated::{ChildError, memory};

/// How long a worker waits for the exit of its children while it shuts down; they
/// are killed earlier than that.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often in a row the pool tries to start a child for a task, with a back-off,
/// before the task fails.
const MAX_START_ATTEMPTS: u32 = 6;

/// A pool of processes that run one task at a time each. Children are started on
/// demand, reused, and replaced when they exit or reach a limit.
pub(crate) struct Children {
    program: Program,
    /// The name by which the program's `main` recognizes the worker.
    worker: String,
    config: ChildConfig,
    limits: ChildLimits,
    state: Mutex<PoolState>,
    /// Notified when a slot or a child becomes available, or a child has exited.
    change: Notify,
    /// The number of tasks so far.
    jobs: AtomicU64,
}

/// The limits at which children are replaced, and the timeout of the result
/// backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChildLimits {
    /// The number of tasks after which a child is replaced.
    pub(super) max_tasks: Option<u32>,
    /// The resident memory in KiB above which a child is replaced.
    pub(super) max_memory: Option<u32>,
    pub(super) deadline: Duration,
}

#[derive(Default)]
struct PoolState {
    /// Most children at the same time, without those that are exiting.
    size: usize,
    /// Slots in use: tasks that have a child or wait for one to start.
    busy: usize,
    idle: Vec<Child>,
    /// Children that are starting without a task.
    starting: usize,
    /// Tasks that have a slot and wait for one of the starting children.
    waiting: usize,
    /// All processes that have not exited, with their number of tasks.
    processes: BTreeMap<u32, u64>,
    closed: bool,
}

/// The state of the pool for `inspect stats`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChildrenStats {
    /// Most children at the same time.
    pub(crate) size: usize,
    /// The processes, and how many tasks each has run, including the current one.
    pub(crate) tasks: Vec<(u32, u64)>,
    /// The number of tasks after which a child is replaced.
    pub(crate) max_tasks: Option<u32>,
    /// The resident memory in KiB above which a child is replaced.
    pub(crate) max_memory: Option<u32>,
}

impl Children {
    pub(super) fn new(
        program: Program,
        worker: String,
        config: ChildConfig,
        limits: ChildLimits,
        size: usize,
    ) -> Arc<Self> {
        let state = PoolState {
            size,
            ..PoolState::default()
        };
        Arc::new(Self {
            program,
            worker,
            config,
            limits,
            state: Mutex::new(state),
            change: Notify::new(),
            jobs: AtomicU64::new(0),
        })
    }

    /// Starts the first child, so that a program that cannot run as one is detected
    /// before the worker consumes a message.
    pub(crate) async fn check(self: &Arc<Self>) -> Result<(), ChildError> {
        let child = self.start().await?;
        self.release(child, None);
        Ok(())
    }

    /// Sets the number of children. Running tasks finish.
    pub(crate) fn resize(&self, size: usize) {
        let mut state = self.state();
        state.size = size.max(1);
        let idle = state.size.saturating_sub(state.busy);
        state.idle.truncate(idle);
        drop(state);
        self.change.notify_waiters();
    }

    pub(crate) fn stats(&self) -> ChildrenStats {
        let state = self.state();
        ChildrenStats {
            size: state.size,
            tasks: state
                .processes
                .iter()
                .map(|(pid, tasks)| (*pid, *tasks))
                .collect(),
            max_tasks: self.limits.max_tasks,
            max_memory: self.limits.max_memory,
        }
    }

    /// Closes the channels to all idle children, and waits until all have exited.
    pub(crate) async fn close(&self) {
        {
            let mut state = self.state();
            state.closed = true;
            state.idle.clear();
        }
        let all_exited = async {
            loop {
                let changed = self.change.notified();
                if self.state().processes.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, all_exited)
            .await
            .is_err()
        {
            let left = self.state().processes.len();
            tracing::warn!("{left} child processes have not exited within {CLOSE_TIMEOUT:?}");
        }
    }

    /// Runs a task in one of the children.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future terminates the task together with its child.
    pub(super) async fn run(self: &Arc<Self>, job: &Arc<Job>) -> ChildRun {
        let number = self.jobs.fetch_add(1, Ordering::Relaxed);
        let mut attempt = 1;
        loop {
            let mut lease = match self.lease(job).await {
                Ok(lease) => lease,
                Err(loss) => return ChildRun::Lost(loss),
            };
            let run = lease.run(number).await;
            drop(lease);
            match run {
                // The child had exited while idle, before the exit was detected.
                ChildRun::Lost(loss) if !loss.began && attempt < MAX_START_ATTEMPTS => attempt += 1,
                run => return run,
            }
        }
    }

    /// Waits for a slot, and takes an idle child or starts one.
    async fn lease(self: &Arc<Self>, job: &Arc<Job>) -> Result<ChildLease, ProcessLost> {
        let slot = self.acquire_slot().await;
        let child = match self.take_idle().await {
            Some(child) => child,
            None => self.start_with_retries().await?,
        };
        job.control.set_pid(child.id());
        Ok(ChildLease {
            slot: Some(slot),
            child: Some(child),
            is_running: false,
            job: Arc::clone(job),
        })
    }

    async fn acquire_slot(self: &Arc<Self>) -> SlotGuard {
        loop {
            let changed = self.change.notified();
            {
                let mut state = self.state();
                if state.busy < state.size {
                    state.busy += 1;
                    return SlotGuard(Arc::clone(self));
                }
            }
            changed.await;
        }
    }

    /// Takes an idle child, or waits for one that is starting; `None` if there are
    /// not enough of either.
    async fn take_idle(&self) -> Option<Child> {
        loop {
            let changed = self.change.notified();
            let waiting = {
                let mut state = self.state();
                while let Some(child) = state.idle.pop() {
                    if !child.has_exited() {
                        return Some(child);
                    }
                }
                if state.waiting >= state.starting {
                    return None;
                }
                state.waiting += 1;
                WaitingGuard(self)
            };
            changed.await;
            drop(waiting);
        }
    }

    /// Starts a child for a waiting task. Retries errors, since the system may be
    /// short of memory or processes for a moment.
    async fn start_with_retries(self: &Arc<Self>) -> Result<Child, ProcessLost> {
        let mut attempt = 0;
        loop {
            let error = match self.start().await {
                Ok(child) => return Ok(child),
                Err(error) => error,
            };
            tracing::error!("{error}");
            attempt += 1;
            if attempt == MAX_START_ATTEMPTS {
                return Err(ProcessLost {
                    message: error.to_string(),
                    began: false,
                });
            }
            tokio::time::sleep(Backoff::CONNECTION.delay(attempt, 0.0)).await;
        }
    }

    async fn start(self: &Arc<Self>) -> Result<Child, ChildError> {
        let starting = self.spawn()?;
        starting.handshake(&self.program, &self.config).await
    }

    fn spawn(self: &Arc<Self>) -> Result<StartingChild, ChildError> {
        let children: Weak<Self> = Arc::downgrade(self);
        // Locked until the process is in the table, so that `exited` finds it there
        // even if it exits at once.
        let mut state = self.state();
        let starting = StartingChild::start(&self.program, &self.worker, move |pid| {
            if let Some(children) = children.upgrade() {
                children.exited(pid);
            }
        })?;
        state.processes.insert(starting.id(), 0);
        Ok(starting)
    }

    /// Removes a child that has exited, and replaces it if it was idle.
    fn exited(self: &Arc<Self>, pid: u32) {
        let mut state = self.state();
        state.processes.remove(&pid);
        let index = state.idle.iter().position(|child| child.id() == pid);
        let was_idle = index.map(|index| state.idle.swap_remove(index)).is_some();
        drop(state);
        self.change.notify_waiters();
        if was_idle {
            tracing::warn!("child process {pid} exited while it was idle");
            self.replace();
        }
    }

    /// Keeps a child for the next task, unless the pool is full or closed.
    fn release(&self, child: Child, starting: Option<StartingGuard>) {
        let mut state = self.state();
        let has_room = starting.is_some() || state.has_room();
        if !state.closed && has_room && !child.has_exited() {
            state.idle.push(child);
        }
        drop(state);
        drop(starting);
        self.change.notify_waiters();
    }

    /// Starts a child in the background as the replacement of another one.
    fn replace(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        {
            let mut state = self.state();
            if state.closed || !state.has_room() {
                return;
            }
            state.starting += 1;
        }
        let starting = StartingGuard(Arc::clone(self));
        // Ends at the latest when the handshake times out.
        env::spawn_on(&runtime, async move {
            let children = Arc::clone(&starting.0);
            match children.start().await {
                Ok(child) => children.release(child, Some(starting)),
                // The next task tries to start another one.
                Err(error) => tracing::error!("{error}"),
            }
        });
    }

    /// Returns whether a child has reached a limit.
    fn is_used_up(&self, child: &Child) -> bool {
        let ChildLimits {
            max_tasks,
            max_memory,
            ..
        } = self.limits;
        let memory = |limit| memory::resident(child.id()).is_some_and(|kib| kib > limit);
        max_tasks.is_some_and(|limit| child.tasks >= u64::from(limit))
            || max_memory.is_some_and(memory)
    }

    /// Counts a task of a child.
    fn count(&self, child: &Child) {
        let mut state = self.state();
        if let Some(tasks) = state.processes.get_mut(&child.id()) {
            *tasks += 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolState {
    fn has_room(&self) -> bool {
        self.idle.len() + self.starting + self.busy < self.size
    }
}

impl fmt::Debug for Children {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Children")
            .field("program", &self.program.name())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A child that is leased for a task. If it is dropped while the task runs, the
/// child is terminated and replaced.
struct ChildLease {
    job: Arc<Job>,
    /// `None` only while the lease is dropped; so is the child.
    slot: Option<SlotGuard>,
    child: Option<Child>,
    is_running: bool,
}

impl ChildLease {
    async fn run(&mut self, number: u64) -> ChildRun {
        let (Some(SlotGuard(children)), Some(child)) = (&self.slot, &mut self.child) else {
            unreachable!("the lease is used after it was dropped")
        };
        self.is_running = true;
        children.count(child);
        let run = child.run(&self.job, number, children.limits.deadline).await;
        self.is_running = false;
        run
    }
}

impl Drop for ChildLease {
    fn drop(&mut self) {
        let (Some(slot), Some(child)) = (self.slot.take(), self.child.take()) else {
            return;
        };
        let children = Arc::clone(&slot.0);
        // From here on the child counts as idle or not at all.
        drop(slot);
        if self.is_running {
            child.terminate(self.job.control.signal());
            children.replace();
        } else if child.has_exited() || children.is_used_up(&child) {
            drop(child);
            children.replace();
        } else {
            children.release(child, None);
        }
    }
}

/// A slot that is in use until this is dropped.
struct SlotGuard(Arc<Children>);

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.0.state().busy -= 1;
        self.0.change.notify_waiters();
    }
}

/// Counts a task that waits for a starting child, until it is dropped.
struct WaitingGuard<'a>(&'a Children);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// Counts a child that is starting without a task, until it is dropped.
struct StartingGuard(Arc<Children>);

impl Drop for StartingGuard {
    fn drop(&mut self) {
        self.0.state().starting -= 1;
        self.0.change.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
