//! Declarations of tasks: [`Task`] and [`DynTask`].

mod args;
mod options;
mod params;
mod rate_limit;
mod unique;

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
pub(crate) use unique::{Conflict, Span};

/// The declaration of a task: what worker, client and Python agree on.
///
/// It is a constant, so that a client uses it without linking the task's code.
///
/// ```
/// use celery_runtime::Task;
///
/// pub const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
/// ```
///
/// Parameters are written as in Python's `def` line. A wrong number of them
/// does not compile:
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
    /// The task registered as `name` everywhere, usually `module.function`.
    /// Its arguments are positional until [`params`](Self::params) names them.
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

    /// Names the parameters as in Python's `def` line: `"x"`, `"times=1"`
    /// (the default is JSON), `"*args"`, `"**kwargs"`. Those behind `"*args"`
    /// are given by keyword only.
    ///
    /// # Panics
    ///
    /// When their number is not that of the argument types; in a constant this
    /// is a compile error.
    #[must_use]
    pub const fn params(self, params: &'static [&'static str]) -> Self {
        if let Some(arity) = A::ARITY {
            assert!(
                arity == params.len(),
                "the declaration names another number of parameters than its argument types"
            );
        }
        Self {
            params: Some(params),
            ..self
        }
    }

    /// Sends it to this queue unless a route or a call says otherwise. A
    /// worker that serves the task consumes the queue, unless it names its own.
    #[must_use]
    pub const fn queue(self, queue: &'static str) -> Self {
        Self {
            queue: Some(queue),
            ..self
        }
    }

    /// Changes settings; see [`TaskOptions`] for each.
    #[must_use]
    pub const fn options(self, options: TaskOptions) -> Self {
        Self { options, ..self }
    }

    /// Acknowledges after the task ran, so that it runs again when its worker
    /// dies. It must bear running twice.
    #[must_use]
    pub const fn acks_late(self) -> Self {
        self.with(TaskOptions {
            acks_late: Some(true),
            ..self.options
        })
    }

    /// Acknowledges before the task runs, so that it runs at most once.
    #[must_use]
    pub const fn acks_early(self) -> Self {
        self.with(TaskOptions {
            acks_late: Some(false),
            ..self.options
        })
    }

    /// Runs again when its process is lost, which a late task in a child process
    /// does not do by itself: it may be what kills the process. See
    /// [`TaskOptions::reject_on_worker_lost`].
    #[must_use]
    pub const fn reject_on_worker_lost(self) -> Self {
        self.with(TaskOptions {
            reject_on_worker_lost: Some(true),
            ..self.options
        })
    }

    /// Stores no result.
    #[must_use]
    pub const fn ignore_result(self) -> Self {
        self.with(TaskOptions {
            ignore_result: Some(true),
            ..self.options
        })
    }

    /// Stores the state STARTED when it begins.
    #[must_use]
    pub const fn track_started(self) -> Self {
        self.with(TaskOptions {
            track_started: Some(true),
            ..self.options
        })
    }

    /// Fails after this many retries; 3 by default.
    #[must_use]
    pub const fn max_retries(self, retries: u32) -> Self {
        self.with(TaskOptions {
            max_retries: Some(Some(retries)),
            ..self.options
        })
    }

    /// Waits this long before a retry that names no delay; 180 s by default.
    #[must_use]
    pub const fn retry_delay(self, delay: Duration) -> Self {
        self.with(TaskOptions {
            retry_delay: Some(delay),
            ..self.options
        })
    }

    /// Retries these failures by itself.
    #[must_use]
    pub const fn autoretry(self, autoretry: AutoRetry) -> Self {
        self.with(TaskOptions {
            autoretry: Some(autoretry),
            ..self.options
        })
    }

    /// Tells the task to finish after `soft`, and ends it after `hard`.
    #[must_use]
    pub const fn time_limits(self, soft: Option<Duration>, hard: Option<Duration>) -> Self {
        self.with(TaskOptions {
            soft_time_limit: soft,
            time_limit: hard,
            ..self.options
        })
    }

    /// Lets it start so often on each worker: `10/s`, `5/m`, `2.5/h`. Those
    /// beyond wait with the broker and keep nobody else from running.
    #[must_use]
    pub const fn rate_limit(self, limit: &'static str) -> Self {
        self.with(TaskOptions {
            rate_limit: Some(limit),
            ..self.options
        })
    }

    /// Lets there be one at a time; see [`Unique`].
    #[must_use]
    pub const fn unique(self, unique: Unique) -> Self {
        self.with(TaskOptions {
            unique: Some(unique),
            ..self.options
        })
    }

    /// Gives its messages this priority, 0 to 9, unless a call says otherwise.
    #[must_use]
    pub const fn priority(self, priority: u8) -> Self {
        self.with(TaskOptions {
            priority: Some(priority),
            ..self.options
        })
    }

    /// The task as Python's `@app.task(bind=True)` declares it, for those who see
    /// the difference: `TypeError`s about arguments count `self`, and as an
    /// errback it is sent as a message, whatever its parameters.
    #[must_use]
    pub const fn bound(self) -> Self {
        Self {
            bound: true,
            ..self
        }
    }

    /// The registered name.
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

    /// What a sender has to know about it; nothing where the worker sees to it
    /// alone.
    pub(crate) fn uniqueness(&self) -> Option<Box<(Unique, Params)>> {
        let unique = self.options.unique.filter(Unique::begins_with_sending)?;
        let declaration = self.declaration().ok()?;
        Some(Box::new((unique, declaration.params)))
    }

    /// The owned form in which registries keep it.
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

/// A task whose name or parameters are known only at run time; its arguments
/// are `(Vec<Value>, Map)`, its result a [`Value`].
#[derive(Clone, Debug)]
pub struct DynTask {
    pub(crate) declaration: Declaration,
}

/// The arguments of a [`DynTask`].
pub type DynArgs = (Vec<Value>, Map);

impl DynTask {
    /// The task `name`, taking any arguments.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            declaration: Declaration {
                params: Params::parse(&name, ["*args", "**kwargs"])
                    .expect("the parameters are written here"),
                name,
                queue: None,
                options: TaskOptions::default(),
            },
        }
    }

    /// Consumed from and sent to this queue by default.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.declaration.queue = Some(queue.into());
        self
    }

    /// Changes settings.
    #[must_use]
    pub fn options(mut self, options: TaskOptions) -> Self {
        self.declaration.options = options;
        self
    }
}

/// A declaration without its types.
#[derive(Clone, Debug)]
pub(crate) struct Declaration {
    pub(crate) name: String,
    pub(crate) params: Params,
    pub(crate) queue: Option<String>,
    pub(crate) options: TaskOptions,
}
