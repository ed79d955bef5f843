//! Declarations with their handlers, [`Tasks`], and the tasks of a worker by name, [`Registry`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use celery_protocol::{Value, WireSignature};
use serde::Serialize;

use crate::execution::builtin;
use crate::execution::erased::{AsyncTask, BlockingTask, ErasedTask, Errback};
use crate::execution::handler::{BlockingHandler, Handler, OfFailure};
use crate::task::{Declaration, DynArgs, DynTask, Params, ParamsError, Task, TaskArgs};

/// The tasks that a worker serves: declarations with their handlers.
///
/// `S` is the type of the application's state. The handlers that take a
/// [`Context<S>`](crate::Context) determine it. A worker takes only `Tasks<()>`, so a missing
/// state is a compile error:
///
/// ```
/// use celery_runtime::{Context, Task, TaskError, Tasks};
///
/// const GREET: Task<(String,), String> = Task::new("tasks.greet").params(&["name"]);
///
/// struct Settings {
///     greeting: String,
/// }
///
/// async fn greet(ctx: Context<Settings>, name: String) -> Result<String, TaskError> {
///     Ok(format!("{}, {name}!", ctx.state().greeting))
/// }
///
/// let tasks: Tasks = Tasks::new().with(GREET, greet).with_state(Settings {
///     greeting: "Hello".to_owned(),
/// });
/// ```
pub struct Tasks<S = ()> {
    entries: Vec<Registration<S>>,
}

/// A declaration and its handler before the state is known.
struct Registration<S> {
    declaration: Result<Declaration, ParamsError>,
    placement: Placement,
    is_errback: bool,
    bind: Box<dyn FnOnce(Arc<S>) -> Arc<dyn ErasedTask> + Send>,
}

/// The process that runs a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// In the worker's own process.
    InProcess,
    /// In a child process.
    ChildProcess,
}

impl<S: Send + Sync + 'static> Tasks<S> {
    /// Creates an empty set of tasks.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// Adds a task and its async handler.
    #[must_use]
    pub fn with<M, A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: Handler<M, A, R, S>,
    {
        self.add(task.declaration(), Placement::InProcess, |params, state| {
            Arc::new(AsyncTask::new(params, handler, state))
        })
    }

    /// Adds a task and its blocking handler, which runs on a thread. The worker has as many
    /// threads for these as its concurrency. A time limit ends the task, but not the thread.
    #[must_use]
    pub fn with_blocking<M, A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: BlockingHandler<M, A, R, S>,
    {
        self.add(task.declaration(), Placement::InProcess, |params, state| {
            Arc::new(BlockingTask::new(params, handler, state))
        })
    }

    /// Adds a task and its blocking handler, which runs in a child process. A crash, an
    /// out-of-memory kill or a time limit then ends the child process and not the worker. A task
    /// whose child process is lost fails with `WorkerLostError`; see also
    /// [`TaskOptions::reject_on_worker_lost`](crate::TaskOptions).
    ///
    /// A child process is this program, started again with the same arguments. Its `main` runs
    /// again, and its [`Worker::run_until`](crate::Worker::run_until) receives tasks from the
    /// parent instead of the broker. The application's state is therefore created in each child
    /// as well. To skip other parts of `main` in a child, check
    /// [`is_isolated_child`](crate::is_isolated_child). The standard input of a child is reserved
    /// for the worker. A child process runs one task at a time and is reused. Child processes need
    /// Unix and a tokio runtime with I/O enabled.
    ///
    /// At the hard time limit the task is killed together with the processes that it started. At
    /// the soft limit it is killed unless it has called
    /// [`Context::is_soft_time_limit_reached`](crate::Context::is_soft_time_limit_reached); then it
    /// may run until the hard limit.
    #[must_use]
    pub fn with_isolated<M, A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: BlockingHandler<M, A, R, S>,
    {
        self.with_blocking(task, handler).isolate_last()
    }

    /// Adds a task and its async handler, which runs in a child process, on the runtime of its
    /// `main`; see [`with_isolated`](Self::with_isolated).
    #[must_use]
    pub fn with_isolated_async<M, A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: Handler<M, A, R, S>,
    {
        self.with(task, handler).isolate_last()
    }

    /// Adds an errback. The worker calls it in place, without a message, when a task fails whose
    /// `link_error` names it. The handler takes the [`FailedTask`](crate::FailedTask), then the
    /// arguments of the declaration, which are stored with the link:
    ///
    /// ```
    /// use celery_runtime::{FailedTask, Task, TaskError, Tasks};
    ///
    /// const NOTE: Task<(String,), ()> = Task::new("tasks.note").params(&["label"]);
    ///
    /// async fn note(failed: FailedTask, label: String) -> Result<(), TaskError> {
    ///     println!("{label}: {} failed with {:?}", failed.id(), failed.exception());
    ///     Ok(())
    /// }
    ///
    /// let tasks: Tasks = Tasks::new().errback(NOTE, note);
    /// # const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
    /// let call = ADD.s((2, 2)).link_error(&NOTE.s(("sums".to_owned(),)));
    /// # let _ = (tasks, call);
    /// ```
    ///
    /// The returned value is discarded, and an error is only logged. The errback takes no slot of
    /// the worker. It may run until its hard limit ([`Task::time_limits`]), 60 s by default. A
    /// worker on which it is not registered sends it as a message with the id of the failed task,
    /// as Celery does; therefore `errback` also registers it as a task.
    ///
    /// An ordinary task can be an errback too, by Celery's rule. A task that takes a single
    /// positional argument, or is [bound](Task::bound), is sent with the id of the failed task. Any
    /// other is called in place, with three arguments before the stored ones: a map with the `id`,
    /// `task` and `root_id` of the failed task, its exception in the form of a stored result, and
    /// the traceback. An immutable link adds no arguments.
    #[must_use]
    pub fn errback<A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: Handler<OfFailure, A, R, S>,
    {
        let mut tasks = self.add(task.declaration(), Placement::InProcess, |params, state| {
            let max_positional = params.open_positions(0, &[]);
            let run = Arc::new(AsyncTask::new(params, handler, state));
            Arc::new(Errback::new(max_positional, run))
        });
        if let Some(registration) = tasks.entries.last_mut() {
            registration.is_errback = true;
        }
        tasks
    }

    /// Adds a task that is declared at run time, and its handler of untyped values.
    #[must_use]
    pub fn with_dyn<M, H>(self, task: DynTask, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        H: Handler<M, DynArgs, Value, S>,
    {
        self.add(
            Ok(task.declaration),
            Placement::InProcess,
            |params, state| Arc::new(AsyncTask::new(params, handler, state)),
        )
    }

    /// Sets the application's state, which all handlers share.
    pub fn with_state(self, state: S) -> Tasks {
        let state = Arc::new(state);
        self.with_shared(move || Arc::clone(&state))
    }

    /// Sets the function that creates the application's state. It is called when a worker starts,
    /// and only in a process that runs tasks: if all tasks run in child processes, it is called in
    /// each of these and not in the worker.
    pub fn with_state_factory(self, create: impl FnOnce() -> S + Send + 'static) -> Tasks {
        let state = LazyLock::new(Box::new(|| Arc::new(create())) as Box<dyn FnOnce() -> _ + Send>);
        self.with_shared(move || Arc::clone(&*state))
    }

    fn with_shared(self, state: impl Fn() -> Arc<S> + Send + Sync + 'static) -> Tasks {
        let state = Arc::new(state);
        let entries = self.entries.into_iter().map(|registration| {
            let state = Arc::clone(&state);
            Registration {
                declaration: registration.declaration,
                placement: registration.placement,
                is_errback: registration.is_errback,
                bind: Box::new(move |_| (registration.bind)(state())),
            }
        });
        Tasks {
            entries: entries.collect(),
        }
    }

    fn isolate_last(mut self) -> Self {
        if let Some(registration) = self.entries.last_mut() {
            registration.placement = Placement::ChildProcess;
        }
        self
    }

    fn add(
        mut self,
        declaration: Result<Declaration, ParamsError>,
        placement: Placement,
        create: impl FnOnce(Params, Arc<S>) -> Arc<dyn ErasedTask> + Send + 'static,
    ) -> Self {
        let params = declaration.as_ref().ok().map(|valid| valid.params.clone());
        self.entries.push(Registration {
            declaration,
            placement,
            is_errback: false,
            bind: Box::new(move |state| {
                create(params.expect("only bound for a valid declaration"), state)
            }),
        });
        self
    }
}

impl Tasks {
    /// Runs all tasks in child processes.
    pub(crate) fn isolate(&mut self) {
        for registration in &mut self.entries {
            registration.placement = Placement::ChildProcess;
        }
    }

    /// Returns whether any task runs in a child process.
    pub(crate) fn has_isolated(&self) -> bool {
        let mut placements = self.entries.iter().map(|entry| entry.placement);
        placements.any(|placement| placement == Placement::ChildProcess)
    }

    /// Returns the names of all tasks, in the order in which they were added.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let declarations = self.entries.iter();
        declarations.filter_map(|entry| Some(entry.declaration.as_ref().ok()?.name.as_str()))
    }
}

impl<S: Send + Sync + 'static> Default for Tasks<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for Tasks<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.entries.iter().map(|entry| match &entry.declaration {
            Ok(declaration) => declaration.name.as_str(),
            Err(_) => "(invalid)",
        });
        f.debug_list().entries(names).finish()
    }
}

/// An error in a set of tasks, returned when a worker starts.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The parameters of a declaration are malformed.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// Two declarations have the same name.
    #[error("cannot register task {0:?} twice")]
    Duplicate(String),
}

/// The tasks of a worker by name, ordered by it.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    tasks: BTreeMap<String, RegistryEntry>,
}

/// A task that is ready to run.
pub(crate) struct RegistryEntry {
    pub(crate) name: Arc<str>,
    pub(crate) declaration: Declaration,
    pub(crate) run: Arc<dyn ErasedTask>,
    is_errback: bool,
}

impl Registry {
    /// Creates the registry of `tasks` and of the built-in tasks. `child_runner` runs the tasks
    /// that are placed in child processes; without it all tasks run in this process.
    ///
    /// # Errors
    ///
    /// Fails if a declaration is malformed or two have the same name.
    pub(crate) fn new(
        tasks: Tasks,
        child_runner: Option<&Arc<dyn ErasedTask>>,
    ) -> Result<Self, RegistryError> {
        let mut registry = Self::default();
        for registration in tasks.entries {
            let entry = RegistryEntry::new(registration, child_runner)?;
            let name = entry.name.to_string();
            if registry.tasks.contains_key(&name) {
                return Err(RegistryError::Duplicate(name));
            }
            registry.tasks.insert(name, entry);
        }
        for registration in builtin::tasks().entries {
            let entry = RegistryEntry::new(registration, None)?;
            let name = entry.name.to_string();
            registry.tasks.entry(name).or_insert(entry);
        }
        Ok(registry)
    }

    /// Returns the task with this name.
    pub(crate) fn find(&self, name: &str) -> Option<&RegistryEntry> {
        self.tasks.get(name)
    }

    /// Returns all tasks in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &RegistryEntry> {
        self.tasks.values()
    }
}

impl RegistryEntry {
    fn new(
        registration: Registration<()>,
        child_runner: Option<&Arc<dyn ErasedTask>>,
    ) -> Result<Self, RegistryError> {
        let declaration = registration.declaration?;
        Ok(Self {
            name: declaration.name.as_str().into(),
            declaration,
            is_errback: registration.is_errback,
            run: match child_runner {
                Some(child_runner) if registration.placement == Placement::ChildProcess => {
                    Arc::clone(child_runner)
                }
                _ => (registration.bind)(Arc::new(())),
            },
        })
    }

    /// Returns whether the task was registered with [`Tasks::errback`]: its handler takes a
    /// [`FailedTask`](crate::FailedTask).
    pub(crate) fn is_errback(&self) -> bool {
        self.is_errback
    }

    /// Returns whether the task is called in place as `errback`, with its stored arguments. In
    /// Celery a task is, if it takes more arguments than the id of the failed task.
    pub(crate) fn is_called_in_place(&self, errback: &WireSignature<'_>) -> bool {
        let params = &self.declaration.params;
        if self.is_errback {
            return true;
        }
        if params.is_bound() {
            return false;
        }
        let open = if errback.immutable {
            params.open_positions(0, &[])
        } else {
            let stored = errback.args.elements().map_or(0, |args| args.len());
            let names = errback.kwargs.entries().unwrap_or_default();
            let names: Vec<_> = names.iter().map(|(name, _)| &**name).collect();
            params.open_positions(stored, &names)
        };
        open.is_none_or(|open| open > 1)
    }
}

impl fmt::Debug for RegistryEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegistryEntry").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::boundary::BoxFuture;
    use crate::execution::context::Context;
    use crate::execution::erased::RunResult;
    use crate::execution::error::TaskError;
    use crate::execution::job::Job;

    const IN_PROCESS: Task<(), ()> = Task::new("in_process");
    const ISOLATED: Task<(), ()> = Task::new("isolated");

    #[derive(Debug)]
    struct ChildRunner;

    impl ErasedTask for ChildRunner {
        fn run(self: Arc<Self>, _: Arc<Job>) -> BoxFuture<'static, RunResult> {
            Box::pin(std::future::ready(Ok(None)))
        }
    }

    fn handler(_: Context<u8>) -> Result<(), TaskError> {
        Ok(())
    }

    #[test]
    fn state_factory_runs_only_in_processes_that_run_tasks() {
        let child_runner: Arc<dyn ErasedTask> = Arc::new(ChildRunner);
        let calls = Arc::new(AtomicUsize::new(0));
        let with_factory = |tasks: Tasks<u8>| {
            let calls = Arc::clone(&calls);
            tasks.with_state_factory(move || calls.fetch_add(1, Ordering::SeqCst) as u8)
        };
        let isolated = || with_factory(Tasks::new().with_isolated(ISOLATED, handler));
        let mixed = || {
            let tasks = Tasks::new().with_isolated(ISOLATED, handler);
            with_factory(tasks.with_blocking(IN_PROCESS, handler))
        };
        assert!(mixed().has_isolated());
        Registry::new(isolated(), Some(&child_runner)).unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        Registry::new(mixed(), Some(&child_runner)).unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        Registry::new(mixed(), None).unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn own_task_replaces_built_in_task() {
        let registry = Registry::new(Tasks::new(), None).unwrap();
        assert!(registry.find("celery.ping").is_some());
        let own: Task<(), ()> = Task::new("celery.ping").queue("own");
        let tasks = Tasks::new().with(own, async || Ok::<_, TaskError>(()));
        let registry = Registry::new(tasks, None).unwrap();
        let found = registry.find("celery.ping").unwrap();
        assert_eq!(found.declaration.queue.as_deref(), Some("own"));
    }

    #[test]
    fn isolate_moves_all_tasks_to_child_processes() {
        let mut tasks = Tasks::new()
            .with_blocking(IN_PROCESS, handler)
            .with_state(1);
        assert!(!tasks.has_isolated());
        tasks.isolate();
        assert!(tasks.has_isolated());
    }
}
