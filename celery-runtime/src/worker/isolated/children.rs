//! The children of a worker: [`Children`].

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
use crate::worker::isolated::child::{Child, ChildRun, Unknown};
use crate::worker::isolated::program::Program;
use crate::worker::isolated::protocol::Welcome;
use crate::worker::isolated::{ChildError, memory};

/// How long the end of a worker waits for the end of its children, which are
/// killed by then.
const CLOSING: Duration = Duration::from_secs(5);

/// How often in a row a child is started for a task, with a pause between, until
/// the task is given up.
const ATTEMPTS: u32 = 6;

/// Processes that run tasks, one at a time each. They are started when they are
/// needed, kept, and replaced when they end or have done enough.
pub(crate) struct Children {
    program: Program,
    /// The worker's name for the program's `main`.
    worker: String,
    welcome: Welcome,
    rules: ChildLimits,
    state: Mutex<State>,
    /// Somebody may sit down, or the last child has ended.
    change: Notify,
    jobs: AtomicU64,
}

/// When children are replaced, and how long a backend may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChildLimits {
    pub(super) max_tasks: Option<u32>,
    pub(super) max_memory: Option<u32>,
    pub(super) deadline: Duration,
}

#[derive(Default)]
struct State {
    /// Most children at the same time, but for those that are on their way out.
    size: usize,
    /// Tasks that have a child or wait for one to start.
    busy: usize,
    idle: Vec<Child>,
    /// Children that are starting to be idle.
    starting: usize,
    /// Tasks that have a seat and wait for one of those.
    waiting: usize,
    /// Every process that has not ended, with the number of its tasks.
    roll: BTreeMap<u32, u64>,
    closed: bool,
}

/// What there is to know about children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChildrenStats {
    /// Most children at the same time.
    pub(crate) size: usize,
    /// Those that are there, and how many tasks each has run or runs.
    pub(crate) tasks: Vec<(u32, u64)>,
    /// After how many tasks a child is replaced.
    pub(crate) max_tasks: Option<u32>,
    /// Above which resident memory in KiB a child is replaced.
    pub(crate) max_memory: Option<u32>,
}

impl Children {
    pub(super) fn new(
        program: Program,
        worker: String,
        welcome: Welcome,
        rules: ChildLimits,
        size: usize,
    ) -> Arc<Self> {
        let state = State {
            size,
            ..State::default()
        };
        Arc::new(Self {
            program,
            worker,
            welcome,
            rules,
            state: Mutex::new(state),
            change: Notify::new(),
            jobs: AtomicU64::new(0),
        })
    }

    /// Starts the first child, so that a program which cannot be one is found
    /// out before any message is taken.
    pub(crate) async fn check(self: &Arc<Self>) -> Result<(), ChildError> {
        let child = self.start().await?;
        self.keep(child, None);
        Ok(())
    }

    /// How many children there may be from now on. Tasks that run finish.
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
                .roll
                .iter()
                .map(|(pid, tasks)| (*pid, *tasks))
                .collect(),
            max_tasks: self.rules.max_tasks,
            max_memory: self.rules.max_memory,
        }
    }

    /// Sends all children away and waits until they are gone.
    pub(crate) async fn close(&self) {
        {
            let mut state = self.state();
            state.closed = true;
            state.idle.clear();
        }
        let all_gone = async {
            loop {
                let changed = self.change.notified();
                if self.state().roll.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(CLOSING, all_gone).await.is_err() {
            let left = self.state().roll.len();
            tracing::warn!("{left} child processes have not ended within {CLOSING:?}");
        }
    }

    /// Runs a task in one of the children.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the task, with its child.
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
                // It ended while it was idle, and nobody had noticed yet.
                ChildRun::Lost(loss) if !loss.began && attempt < ATTEMPTS => attempt += 1,
                run => return run,
            }
        }
    }

    async fn lease(self: &Arc<Self>, job: &Arc<Job>) -> Result<Lease, ProcessLost> {
        let seat = self.sit_down().await;
        let child = match self.idle().await {
            Some(child) => child,
            None => self.start_patiently().await?,
        };
        job.control.set_pid(child.id());
        Ok(Lease {
            seat: Some(seat),
            child: Some(child),
            is_running: false,
            job: Arc::clone(job),
        })
    }

    async fn sit_down(self: &Arc<Self>) -> SlotGuard {
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

    /// A child that is there, or is about to be; `None` when there is none for
    /// the one who asks.
    async fn idle(&self) -> Option<Child> {
        loop {
            let changed = self.change.notified();
            let waiting = {
                let mut state = self.state();
                while let Some(child) = state.idle.pop() {
                    if !child.has_ended() {
                        return Some(child);
                    }
                }
                if state.waiting >= state.starting {
                    return None;
                }
                state.waiting += 1;
                Waiting(self)
            };
            changed.await;
            drop(waiting);
        }
    }

    /// Starts a child, also if that takes several attempts: the system may be
    /// short of memory or processes, and a task waits.
    async fn start_patiently(self: &Arc<Self>) -> Result<Child, ProcessLost> {
        let mut attempt = 0;
        loop {
            let error = match self.start().await {
                Ok(child) => return Ok(child),
                Err(error) => error,
            };
            tracing::error!("{error}");
            attempt += 1;
            if attempt == ATTEMPTS {
                return Err(ProcessLost {
                    message: error.to_string(),
                    began: false,
                });
            }
            tokio::time::sleep(Backoff::CONNECTION.delay(attempt, 0.0)).await;
        }
    }

    async fn start(self: &Arc<Self>) -> Result<Child, ChildError> {
        let unknown = self.spawn()?;
        unknown.greet(&self.program, &self.welcome).await
    }

    fn spawn(self: &Arc<Self>) -> Result<Unknown, ChildError> {
        let children: Weak<Self> = Arc::downgrade(self);
        // Held meanwhile, so that the end of a child, whenever it comes, finds
        // it on the roll.
        let mut state = self.state();
        let unknown = Unknown::start(&self.program, &self.worker, move |pid| {
            if let Some(children) = children.upgrade() {
                children.ended(pid);
            }
        })?;
        state.roll.insert(unknown.id(), 0);
        Ok(unknown)
    }

    /// Takes note of the end of a child. One that was idle is replaced.
    fn ended(self: &Arc<Self>, pid: u32) {
        let mut state = self.state();
        state.roll.remove(&pid);
        let place = state.idle.iter().position(|child| child.id() == pid);
        let was_idle = place.map(|place| state.idle.swap_remove(place)).is_some();
        drop(state);
        self.change.notify_waiters();
        if was_idle {
            tracing::warn!("child process {pid} ended while it had nothing to do");
            self.replace();
        }
    }

    /// Keeps a child for the next task, if there is room for it.
    fn keep(&self, child: Child, starting: Option<Starting>) {
        let mut state = self.state();
        let has_room = starting.is_some() || state.has_room();
        if !state.closed && has_room && !child.has_ended() {
            state.idle.push(child);
        }
        drop(state);
        drop(starting);
        self.change.notify_waiters();
    }

    /// Starts a child in the stead of one that is gone, without keeping anybody
    /// waiting.
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
        let starting = Starting(Arc::clone(self));
        // Ends by itself, at the latest when the child has said nothing for
        // too long.
        env::spawn_on(&runtime, async move {
            let children = Arc::clone(&starting.0);
            match children.start().await {
                Ok(child) => children.keep(child, Some(starting)),
                // The next task tries again.
                Err(error) => tracing::error!("{error}"),
            }
        });
    }

    /// Whether a child has done enough.
    fn is_worn(&self, child: &Child) -> bool {
        let ChildLimits {
            max_tasks,
            max_memory,
            ..
        } = self.rules;
        let memory = |most| memory::resident(child.id()).is_some_and(|kib| kib > most);
        max_tasks.is_some_and(|most| child.tasks >= u64::from(most))
            || max_memory.is_some_and(memory)
    }

    fn count(&self, child: &Child) {
        let mut state = self.state();
        if let Some(tasks) = state.roll.get_mut(&child.id()) {
            *tasks += 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.idle.len() + self.starting + self.busy < self.size
    }
}

impl fmt::Debug for Children {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Children")
            .field("program", &self.program.name())
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// A child that runs a task. Dropped in the middle of it, the child is ended
/// and replaced.
struct Lease {
    job: Arc<Job>,
    /// There until it is dropped, as the child is.
    seat: Option<SlotGuard>,
    child: Option<Child>,
    is_running: bool,
}

impl Lease {
    async fn run(&mut self, number: u64) -> ChildRun {
        let (Some(SlotGuard(children)), Some(child)) = (&self.seat, &mut self.child) else {
            unreachable!("a lease was used after its end")
        };
        self.is_running = true;
        children.count(child);
        let run = child.run(&self.job, number, children.rules.deadline).await;
        self.is_running = false;
        run
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (Some(seat), Some(child)) = (self.seat.take(), self.child.take()) else {
            return;
        };
        let children = Arc::clone(&seat.0);
        // The child counts as idle from now on, or not at all.
        drop(seat);
        if self.is_running {
            child.end(self.job.control.signal());
            children.replace();
        } else if child.has_ended() || children.is_worn(&child) {
            drop(child);
            children.replace();
        } else {
            children.keep(child, None);
        }
    }
}

/// Counted among the busy until it is dropped.
struct SlotGuard(Arc<Children>);

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.0.state().busy -= 1;
        self.0.change.notify_waiters();
    }
}

/// Counted among those who wait for a child that is starting.
struct Waiting<'a>(&'a Children);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// A child that is starting for nobody in particular.
struct Starting(Arc<Children>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.state().starting -= 1;
        self.0.change.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
