//! Declarations of tasks: [`Task`] and [`DynTask`].

mod args;
mod options;
mod params;
mod rate_limit;
mod unique;
mod unique_lock;

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use celery_protocol::{Map, Value};

pub use args::{ArgumentEncoder, EncodedArguments, Kwargs, TaskArgs};
pub use options::{AutoRetry, TaskOptions};
pub use params::{ArgumentError, BoundArguments, CallError, Params, ParamsError};
pub use unique::Unique;

pub(crate) use args::arguments_of;
pub(crate) use rate_limit::RateLimit;
pub(crate) use unique::{Conflict, LockPeriod};
pub(crate) use unique_lock::take_lock;

/// The declaration of a task: its name, parameters, result type and options, shared by workers and
/// clients.
///
/// Usually a constant, which a client can use without linking the code of the task.
///
/// ```
/// use celery_runtime::Task;
///
/// pub const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
/// ```
///
/// Parameters have the syntax of Python's `def`. A wrong number of parameters does not compile:
///
/// ```compile_fail
/// use celery_runtime::Task;
///
/// pub const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x"]);
/// ```
pub struct Task<A, R> {
    name: &'static str,
    params: Option<&'static [&'static str]>,
    queue: Option<&'static str>,
    bound: bool,
    options: TaskOptions,
    types: PhantomData<fn(A) -> R>,
}

impl<A: TaskArgs, R> Task<A, R> {
    /// Creates the declaration of the task `name`, by convention `module.function`. Its parameters
    /// are positional and have no names until [`params`](Self::params) sets them.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            params: None,
            queue: None,
            bound: false,
            options: TaskOptions::NONE,
            types: PhantomData,
        }
    }

    /// Sets the parameters in the syntax of Python's `def`: `"x"`, `"times=1"` (the default is
    /// JSON),
    /// `"*args"`, `"**kwargs"`. Parameters after `"*args"` are keyword-only.
    ///
    /// # Panics
    ///
    /// Panics if the number of parameters differs from the number of argument types; in a constant
    /// this is a compile error.
    #[must_use]
    pub const fn params(self, params: &'static [&'static str]) -> Self {
        if let Some(arity) = A::ARITY {
            assert!(
                arity == params.len(),
                "the number of parameters differs from the number of argument types"
            );
        }
        Self {
            params: Some(params),
            ..self
        }
    }

    /// Sets the default queue, which a route or a call overrides. A worker that serves the task
    /// consumes the queue, unless the worker's queues are configured.
    #[must_use]
    pub const fn queue(self, queue: &'static str) -> Self {
        Self {
            queue: Some(queue),
            ..self
        }
    }

    /// Sets all options; see [`TaskOptions`].
    #[must_use]
    pub const fn options(self, options: TaskOptions) -> Self {
        Self { options, ..self }
    }

    /// Acknowledges the message after the task has run (`acks_late`). The message is redelivered if
    /// the worker dies, so the task must be idempotent.
    #[must_use]
    pub const fn acks_late(self) -> Self {
        self.with(TaskOptions {
            acks_late: Some(true),
            ..self.options
        })
    }

    /// Acknowledges the message before the task runs, so that the task runs at most once.
    #[must_use]
    pub const fn acks_early(self) -> Self {
        self.with(TaskOptions {
            acks_late: Some(false),
            ..self.options
        })
    }

    /// Requeues a late-acknowledged task when its child process is lost. By default such a task
    /// fails, because it may be the cause of the loss. See [`TaskOptions::reject_on_worker_lost`].
    #[must_use]
    pub const fn reject_on_worker_lost(self) -> Self {
        self.with(TaskOptions {
            reject_on_worker_lost: Some(true),
            ..self.options
        })
    }

    /// Does not store the result.
    #[must_use]
    pub const fn ignore_result(self) -> Self {
        self.with(TaskOptions {
            ignore_result: Some(true),
            ..self.options
        })
    }

    /// Stores the state STARTED when the task starts.
    #[must_use]
    pub const fn track_started(self) -> Self {
        self.with(TaskOptions {
            track_started: Some(true),
            ..self.options
        })
    }

    /// Sets the maximum number of retries; 3 by default.
    #[must_use]
    pub const fn max_retries(self, retries: u32) -> Self {
        self.with(TaskOptions {
            max_retries: Some(Some(retries)),
            ..self.options
        })
    }

    /// Sets the delay of a retry that does not set its own; 180 s by default.
    #[must_use]
    pub const fn retry_delay(self, delay: Duration) -> Self {
        self.with(TaskOptions {
            retry_delay: Some(delay),
            ..self.options
        })
    }

    /// Retries the failures selected by `autoretry` automatically.
    #[must_use]
    pub const fn autoretry(self, autoretry: AutoRetry) -> Self {
        self.with(TaskOptions {
            autoretry: Some(autoretry),
            ..self.options
        })
    }

    /// Sets the time limits: after `soft` the task is asked to finish, after `hard` it is aborted.
    /// See [`Context::soft_time_limit`](crate::Context::soft_time_limit).
    #[must_use]
    pub const fn time_limits(self, soft: Option<Duration>, hard: Option<Duration>) -> Self {
        self.with(TaskOptions {
            soft_time_limit: soft,
            time_limit: hard,
            ..self.options
        })
    }

    /// Sets the rate limit per worker: `10/s`, `5/m`, `2.5/h`. Tasks above the limit take no slot
    /// of the worker: it holds them for at most 1 s and otherwise defers them to the broker.
    #[must_use]
    pub const fn rate_limit(self, limit: &'static str) -> Self {
        self.with(TaskOptions {
            rate_limit: Some(limit),
            ..self.options
        })
    }

    /// Prevents concurrent executions; see [`Unique`].
    #[must_use]
    pub const fn unique(self, unique: Unique) -> Self {
        self.with(TaskOptions {
            unique: Some(unique),
            ..self.options
        })
    }

    /// Sets the default priority of its messages, 0 to 9, which a route or a call overrides.
    #[must_use]
    pub const fn priority(self, priority: u8) -> Self {
        self.with(TaskOptions {
            priority: Some(priority),
            ..self.options
        })
    }

    /// Declares the task as bound, as Python's `@app.task(bind=True)` does. The texts of
    /// `TypeError`s then count `self`, and as an errback the task is sent as a message whatever its
    /// parameters.
    #[must_use]
    pub const fn bound(self) -> Self {
        Self {
            bound: true,
            ..self
        }
    }

    /// Returns the name of the task.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    const fn with(self, options: TaskOptions) -> Self {
        Self { options, ..self }
    }

    pub(crate) fn param_names(&self) -> &'static [&'static str] {
        self.params.unwrap_or_default()
    }

    pub(crate) fn default_queue(&self) -> Option<&'static str> {
        self.queue
    }

    pub(crate) fn task_options(&self) -> TaskOptions {
        self.options
    }

    /// Returns the uniqueness and the parameters, if the client takes the lock; `None` if the
    /// worker does.
    pub(crate) fn uniqueness(&self) -> Option<Box<(Unique, Params)>> {
        let unique = self.options.unique.filter(Unique::begins_when_sent)?;
        let declaration = self.declaration().ok()?;
        Some(Box::new((unique, declaration.params)))
    }

    /// Converts the declaration to the form without types that registries store.
    ///
    /// # Errors
    ///
    /// Fails if a parameter is malformed.
    pub(crate) fn declaration(&self) -> Result<Declaration, ParamsError> {
        let params = match (self.params, A::ARITY) {
            (Some(names), _) => Params::parse(self.name, names)?,
            (None, Some(count)) => Params::positional(self.name, count),
            (None, None) => Params::parse(self.name, ["**kwargs"])?,
        };
        Ok(Declaration {
            name: self.name.to_owned(),
            params: if self.bound { params.bound() } else { params },
            queue: self.queue.map(str::to_owned),
            options: self.options,
        })
    }
}

impl<A, R> Clone for Task<A, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A, R> Copy for Task<A, R> {}

impl<A, R> fmt::Debug for Task<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("params", &self.params)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// The declaration of a task that is known only at run time. Its arguments are `(Vec<Value>, Map)`,
/// its result is a [`Value`].
#[derive(Clone, Debug)]
pub struct DynTask {
    pub(crate) declaration: Declaration,
}

/// The positional and keyword arguments of a [`DynTask`].
pub type DynArgs = (Vec<Value>, Map);

impl DynTask {
    /// Creates the declaration of the task `name`, which takes any arguments.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            declaration: Declaration {
                params: Params::parse(&name, ["*args", "**kwargs"])
                    .expect("the parameters are valid"),
                name,
                queue: None,
                options: TaskOptions::default(),
            },
        }
    }

    /// Sets the default queue; see [`Task::queue`].
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.declaration.queue = Some(queue.into());
        self
    }

    /// Sets all options; see [`TaskOptions`].
    #[must_use]
    pub fn options(mut self, options: TaskOptions) -> Self {
        self.declaration.options = options;
        self
    }
}

/// The declaration of a task without its types.
#[derive(Clone, Debug)]
pub(crate) struct Declaration {
    pub(crate) name: String,
    pub(crate) params: Params,
    pub(crate) queue: Option<String>,
    pub(crate) options: TaskOptions,
}
