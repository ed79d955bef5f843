//! Declarations and handlers together: [`Tasks`].

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, LazyLock};

use celery_protocol::{Arguments, DecodeError, Payload, Raw, Value, WireSignature};
use serde::Serialize;

use crate::boundary::BoxFuture;
use crate::execution::builtin;
use crate::execution::context::{Context, Job};
use crate::execution::error::TaskError;
use crate::execution::failed::FailureContext;
use crate::execution::handler::{BlockingHandler, Handler, OfFailure};
use crate::task::{Declaration, DynArgs, DynTask, Params, ParamsError, Task, TaskArgs};

/// The tasks that a worker serves.
///
/// `S` is the application's state, chosen by the handlers that take a
/// [`Context<S>`](Context). A worker takes `Tasks<()>` only, so that a state
/// that was forgotten is an error of the compiler:
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
    entries: Vec<RegisteredEntry<S>>,
}

struct RegisteredEntry<S> {
    declaration: Result<Declaration, ParamsError>,
    place: Placement,
    errback: bool,
    bind: Box<dyn FnOnce(Arc<S>) -> Arc<dyn ErasedTask> + Send>,
}

/// Where a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// In the worker's own process.
    InProcess,
    /// In a child process.
    ChildProcess,
}

impl<S: Send + Sync + 'static> Tasks<S> {
    /// No tasks yet.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// Adds a task and the async function that runs it.
    #[must_use]
    pub fn with<M, A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: Handler<M, A, R, S>,
    {
        self.add(task.declaration(), Placement::InProcess, |params, state| {
            Arc::new(AsyncTask {
                params,
                handler,
                state,
                types: PhantomData,
            })
        })
    }

    /// Adds a task and the blocking function that runs it, on one of as many
    /// threads as the worker's concurrency. Its time limits end what is
    /// waited for, not the thread.
    #[must_use]
    pub fn with_blocking<M, A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: BlockingHandler<M, A, R, S>,
    {
        self.add(task.declaration(), Placement::InProcess, |params, state| {
            Arc::new(BlockingTask {
                params,
                handler: Arc::new(handler),
                state,
                types: PhantomData,
            })
        })
    }

    /// Adds a task and the blocking function that runs it in a child process,
    /// so that a crash, a lack of memory or a time limit ends the child and not
    /// the worker. A task whose child is lost fails with `WorkerLostError`; see
    /// also [`TaskOptions::reject_on_worker_lost`](crate::TaskOptions).
    ///
    /// A child is this program, started once more with the same arguments: its
    /// `main` runs again, and its [`Worker::run_until`](crate::Worker::run_until)
    /// serves the worker instead of a broker. So the state is made there, too,
    /// by whatever is given to [`with_state`](Self::with_state); what `main`
    /// does besides, it does in each child, unless it asks
    /// [`is_isolated_child`](crate::is_isolated_child). The standard input of a
    /// child is not for the program. Children are kept for the next task; each
    /// runs one at a time. They need Unix, and a tokio runtime with I/O.
    ///
    /// At its hard limit a task is ended with everything it started. At its
    /// soft limit one that asks for it
    /// ([`Context::is_soft_time_limit_reached`]) goes on until the hard limit,
    /// any other is ended.
    #[must_use]
    pub fn with_isolated<M, A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: BlockingHandler<M, A, R, S>,
    {
        self.with_blocking(task, handler).last_isolated()
    }

    /// Like [`with_isolated`](Self::with_isolated) with an async function,
    /// which runs on the runtime of the child's `main`.
    #[must_use]
    pub fn with_isolated_async<M, A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: Handler<M, A, R, S>,
    {
        self.with(task, handler).last_isolated()
    }

    /// Adds an errback: what a worker calls, without a message, when a task fails
    /// whose `link_error` names it. The handler takes the
    /// [`FailedTask`](crate::FailedTask) and then the arguments that were stored
    /// with the link, those of the declaration:
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
    /// What it returns is thrown away, and an error of it only logged. It runs
    /// beside the tasks of the worker, for as long as its hard limit
    /// ([`Task::time_limits`]) or a minute. Workers
    /// that do not know it send it on as a message with the id of the failed
    /// task, as Celery does; so it is served, too.
    ///
    /// An ordinary task can be an errback as well, by Celery's rule: one that
    /// takes a single positional argument, or is [bound](Task::bound), is sent with
    /// the failed task's id; any
    /// other is called in place with three arguments before the stored ones: a map
    /// with the failed task's `id`, `task` and `root_id`, its exception as results
    /// have it, and the traceback. Nothing is put before them if the link is
    /// immutable.
    #[must_use]
    pub fn errback<A, R, H>(self, task: Task<A, R>, handler: H) -> Self
    where
        A: TaskArgs,
        R: Serialize + Send + Sync + 'static,
        H: Handler<OfFailure, A, R, S>,
    {
        let mut tasks = self.add(task.declaration(), Placement::InProcess, |params, state| {
            let positional = params.open_positions(0, &[]);
            let run = Arc::new(AsyncTask {
                params,
                handler,
                state,
                types: PhantomData,
            });
            Arc::new(Errback { positional, run })
        });
        if let Some(entry) = tasks.entries.last_mut() {
            entry.errback = true;
        }
        tasks
    }

    /// Adds a task known only at run time, with a handler of untyped values.
    #[must_use]
    pub fn with_dyn<M, H>(self, task: DynTask, handler: H) -> Self
    where
        M: Send + Sync + 'static,
        H: Handler<M, DynArgs, Value, S>,
    {
        self.add(
            Ok(task.declaration),
            Placement::InProcess,
            |params, state| {
                Arc::new(AsyncTask {
                    params,
                    handler,
                    state,
                    types: PhantomData,
                })
            },
        )
    }

    /// Gives all handlers the application's state.
    pub fn with_state(self, state: S) -> Tasks {
        let state = Arc::new(state);
        self.with_shared(move || Arc::clone(&state))
    }

    /// Gives all handlers the application's state, which is made when a worker
    /// starts and only where it is used: not in a worker whose tasks all run in
    /// child processes, but in each of these.
    pub fn with_state_factory(self, make: impl FnOnce() -> S + Send + 'static) -> Tasks {
        let state = LazyLock::new(Box::new(|| Arc::new(make())) as Box<dyn FnOnce() -> _ + Send>);
        self.with_shared(move || Arc::clone(&*state))
    }

    fn with_shared(self, state: impl Fn() -> Arc<S> + Send + Sync + 'static) -> Tasks {
        let state = Arc::new(state);
        let entries = self.entries.into_iter().map(|entry| {
            let state = Arc::clone(&state);
            RegisteredEntry {
                declaration: entry.declaration,
                place: entry.place,
                errback: entry.errback,
                bind: Box::new(move |_| (entry.bind)(state())),
            }
        });
        Tasks {
            entries: entries.collect(),
        }
    }

    fn last_isolated(mut self) -> Self {
        if let Some(entry) = self.entries.last_mut() {
            entry.place = Placement::ChildProcess;
        }
        self
    }

    fn add(
        mut self,
        declaration: Result<Declaration, ParamsError>,
        place: Placement,
        make: impl FnOnce(Params, Arc<S>) -> Arc<dyn ErasedTask> + Send + 'static,
    ) -> Self {
        let params = declaration.as_ref().ok().map(|valid| valid.params.clone());
        self.entries.push(RegisteredEntry {
            declaration,
            place,
            errback: false,
            bind: Box::new(move |state| {
                make(params.expect("only bound for a valid declaration"), state)
            }),
        });
        self
    }
}

impl Tasks {
    /// Moves all tasks into child processes.
    pub(crate) fn isolate(&mut self) {
        for entry in &mut self.entries {
            entry.place = Placement::ChildProcess;
        }
    }

    /// Whether one of them runs in child processes.
    pub(crate) fn has_isolated(&self) -> bool {
        let mut places = self.entries.iter().map(|entry| entry.place);
        places.any(|place| place == Placement::ChildProcess)
    }

    /// The names of all tasks, in the order in which they were added.
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

/// Tasks that cannot be served together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A declaration's parameters cannot be read.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// Two declarations share a name.
    #[error("cannot register task {0:?} twice")]
    Duplicate(String),
}

/// Tasks by name, ready to run.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    tasks: HashMap<String, Registered>,
}

pub(crate) struct Registered {
    pub(crate) name: Arc<str>,
    pub(crate) declaration: Declaration,
    pub(crate) run: Arc<dyn ErasedTask>,
    errback: bool,
}

impl Registry {
    /// These tasks and those of every worker. `child_runner` runs those that belong
    /// into child processes; without it all run here.
    pub(crate) fn new(
        tasks: Tasks,
        child_runner: Option<&Arc<dyn ErasedTask>>,
    ) -> Result<Self, RegistryError> {
        let mut registry = Self::default();
        for entry in tasks.entries {
            let registered = Registered::new(entry, child_runner)?;
            let name = registered.name.to_string();
            if registry.tasks.contains_key(&name) {
                return Err(RegistryError::Duplicate(name));
            }
            registry.tasks.insert(name, registered);
        }
        for entry in builtin::all().entries {
            let registered = Registered::new(entry, None)?;
            let name = registered.name.to_string();
            registry.tasks.entry(name).or_insert(registered);
        }
        Ok(registry)
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Registered> {
        self.tasks.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Registered> {
        self.tasks.values()
    }
}

impl Registered {
    fn new(
        entry: RegisteredEntry<()>,
        child_runner: Option<&Arc<dyn ErasedTask>>,
    ) -> Result<Self, RegistryError> {
        let declaration = entry.declaration?;
        Ok(Self {
            name: declaration.name.as_str().into(),
            declaration,
            errback: entry.errback,
            run: match child_runner {
                Some(child_runner) if entry.place == Placement::ChildProcess => {
                    Arc::clone(child_runner)
                }
                _ => (entry.bind)(Arc::new(())),
            },
        })
    }

    /// Whether it takes the failure by itself, and not as arguments.
    pub(crate) fn is_errback(&self) -> bool {
        self.errback
    }

    /// Whether it is called in place when it is the errback with these stored
    /// arguments. Celery asks whether it takes more than the failed task's id.
    pub(crate) fn is_called_in_place(&self, errback: &WireSignature<'_>) -> bool {
        let params = &self.declaration.params;
        if self.errback {
            return true;
        }
        if params.is_bound() {
            return false;
        }
        let left = match errback.immutable {
            true => params.open_positions(0, &[]),
            false => {
                let stored = errback.args.elements().map_or(0, |args| args.len());
                let names = errback.kwargs.entries().unwrap_or_default();
                let names: Vec<_> = names.iter().map(|(name, _)| &**name).collect();
                params.open_positions(stored, &names)
            }
        };
        left.is_none_or(|left| left > 1)
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registered").field(&self.name).finish()
    }
}

/// What a task returned, written by the result serializer; `None` where nobody
/// wants it.
pub(crate) type RunResult = Result<Option<Raw<'static>>, RunError>;

/// Why a task returned nothing.
#[derive(Debug)]
pub(crate) enum RunError {
    Error(TaskError),
    /// In another process; in this one the panic itself comes.
    Panic(String),
    Lost(ProcessLost),
}

/// What became of a child process that was to run a task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProcessLost {
    /// In Celery's words.
    pub(crate) message: String,
    /// Whether the task may have begun.
    pub(crate) began: bool,
}

impl From<TaskError> for RunError {
    fn from(error: TaskError) -> Self {
        Self::Error(error)
    }
}

/// A task that can be run, without its types.
pub(crate) trait ErasedTask: Send + Sync {
    fn run(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, RunResult>;
}

/// One call of a task.
pub(crate) struct Invocation {
    pub(crate) job: Arc<Job>,
}

impl Invocation {
    fn arguments<A: TaskArgs>(&self, params: &Params) -> Result<A, TaskError> {
        let type_error = |error: String| TaskError::exception("TypeError", error);
        let payload = self.payload()?;
        let call = params.bind(arguments(&payload)?);
        let call = call.map_err(|error| type_error(error.to_string()))?;
        A::from_call(call).map_err(|error| type_error(error.to_string()))
    }

    /// The error as it is, but a retry with new arguments also gets those of
    /// this call that stay.
    fn completed(&self, mut error: TaskError, params: &Params) -> TaskError {
        let changes = error.changes_mut();
        let Some(changes) = changes.filter(|changes| changes.is_incomplete()) else {
            return error;
        };
        let completed = self.payload().and_then(|payload| {
            let completed = changes.complete(params, &arguments(&payload)?);
            completed.map_err(|error| undecodable(&error))
        });
        completed.err().unwrap_or(error)
    }

    fn payload(&self) -> Result<Payload<'_>, TaskError> {
        self.job.payload().map_err(|error| undecodable(&error))
    }

    fn returned<R: Serialize>(&self, value: &R) -> RunResult {
        if !self.job.wants_value {
            return Ok(None);
        }
        let written = Raw::encode(self.job.services.result_serializer, value);
        let written = written.map_err(|error| {
            TaskError::named("kombu.exceptions", "EncodeError", error.to_string())
        })?;
        Ok(Some(written))
    }
}

fn arguments<'a>(payload: &'a Payload<'_>) -> Result<Arguments<'a>, TaskError> {
    let arguments = payload.body().and_then(|body| body.arguments());
    arguments.map_err(|error| undecodable(&error))
}

/// The outer form was read when the message arrived; only an argument's text
/// can still turn out to be broken.
fn undecodable(error: &DecodeError) -> TaskError {
    TaskError::named("kombu.exceptions", "DecodeError", error.to_string())
}

struct AsyncTask<M, A, R, S, H> {
    params: Params,
    handler: H,
    state: Arc<S>,
    types: PhantomData<fn(M, A) -> R>,
}

impl<M, A, R, S, H> ErasedTask for AsyncTask<M, A, R, S, H>
where
    M: Send + Sync + 'static,
    A: TaskArgs,
    R: Serialize + Send + Sync + 'static,
    S: Send + Sync + 'static,
    H: Handler<M, A, R, S>,
{
    fn run(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, RunResult> {
        Box::pin(async move {
            let args = invocation.arguments::<A>(&self.params)?;
            let context = Context::new(Arc::clone(&invocation.job), Arc::clone(&self.state));
            match self.handler.call(context, args).await {
                Ok(value) => invocation.returned(&value),
                Err(error) => Err(invocation.completed(error, &self.params).into()),
            }
        })
    }
}

/// An errback, which a message gives the failed task's id before its arguments.
struct Errback {
    /// How many arguments of its own it takes at most.
    positional: Option<usize>,
    run: Arc<dyn ErasedTask>,
}

impl ErasedTask for Errback {
    fn run(self: Arc<Self>, mut invocation: Invocation) -> BoxFuture<'static, RunResult> {
        Box::pin(async move {
            if invocation.job.failure.is_none() {
                invocation = self.told(&invocation)?;
            }
            Arc::clone(&self.run).run(invocation).await
        })
    }
}

impl Errback {
    /// The call without the id, if that is there: to an immutable one it is not
    /// given.
    fn told(&self, invocation: &Invocation) -> Result<Invocation, TaskError> {
        let job = &invocation.job;
        let payload = invocation.payload()?;
        let body = payload.body().map_err(|error| undecodable(&error))?;
        let mut args = body.args.elements().map_err(|error| undecodable(&error))?;
        let mut failed = String::new();
        if self.positional.is_some_and(|most| args.len() > most) {
            failed = args.remove(0).decode().unwrap_or_default();
        }
        let args = Raw::encode(payload.serializer(), &args[..])?;
        let note = Arc::new(FailureContext::of_id(failed));
        let services = Arc::clone(&job.services);
        let task = Arc::clone(&job.task);
        let mut told = Job::in_place(services, &job.id, task, &args, &body.kwargs, Some(note))?;
        told.wants_value = job.wants_value;
        Ok(Invocation {
            job: Arc::new(told),
        })
    }
}

struct BlockingTask<M, A, R, S, H> {
    params: Params,
    handler: Arc<H>,
    state: Arc<S>,
    types: PhantomData<fn(M, A) -> R>,
}

impl<M, A, R, S, H> ErasedTask for BlockingTask<M, A, R, S, H>
where
    M: Send + Sync + 'static,
    A: TaskArgs,
    R: Serialize + Send + Sync + 'static,
    S: Send + Sync + 'static,
    H: BlockingHandler<M, A, R, S>,
{
    fn run(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, RunResult> {
        Box::pin(async move {
            let args = invocation.arguments::<A>(&self.params)?;
            let context = Context::new(Arc::clone(&invocation.job), Arc::clone(&self.state));
            let handler = Arc::clone(&self.handler);
            let job = &invocation.job;
            let thread = job
                .services
                .blocking
                .run(&job.task, move || handler.call(context, args));
            match thread.await {
                Ok(Ok(value)) => invocation.returned(&value),
                Ok(Err(error)) => Err(invocation.completed(error, &self.params).into()),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {
                    let cause = "the worker's threads were shut down";
                    Err(TaskError::exception("RuntimeError", cause).into())
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const HERE: Task<(), ()> = Task::new("here");
    const THERE: Task<(), ()> = Task::new("there");

    #[derive(Debug)]
    struct ChildRunner;

    impl ErasedTask for ChildRunner {
        fn run(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, RunResult> {
            Box::pin(std::future::ready(Ok(None)))
        }
    }

    fn nothing(_: Context<u8>) -> Result<(), TaskError> {
        Ok(())
    }

    #[test]
    fn state_is_made_once_and_only_where_tasks_run() {
        let child_runner: Arc<dyn ErasedTask> = Arc::new(ChildRunner);
        let made = Arc::new(AtomicUsize::new(0));
        let tasks = |there: Tasks<u8>| {
            let made = Arc::clone(&made);
            there.with_state_factory(move || made.fetch_add(1, Ordering::SeqCst) as u8)
        };
        let isolated = || tasks(Tasks::new().with_isolated(THERE, nothing));
        let mixed = || {
            let there = Tasks::new().with_isolated(THERE, nothing);
            tasks(there.with_blocking(HERE, nothing))
        };
        assert!(mixed().has_isolated());
        Registry::new(isolated(), Some(&child_runner)).unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 0);
        Registry::new(mixed(), Some(&child_runner)).unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 1);
        Registry::new(mixed(), None).unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn every_worker_has_the_built_in_tasks_unless_it_has_its_own() {
        let registry = Registry::new(Tasks::new(), None).unwrap();
        assert!(registry.find("celery.ping").is_some());
        let own: Task<(), ()> = Task::new("celery.ping").queue("own");
        let tasks = Tasks::new().with(own, async || Ok::<_, TaskError>(()));
        let registry = Registry::new(tasks, None).unwrap();
        let found = registry.find("celery.ping").unwrap();
        assert_eq!(found.declaration.queue.as_deref(), Some("own"));
    }

    #[test]
    fn a_whole_worker_is_isolated_at_once() {
        let mut tasks = Tasks::new().with_blocking(HERE, nothing).with_state(1);
        assert!(!tasks.has_isolated());
        tasks.isolate();
        assert!(tasks.has_isolated());
    }
}
