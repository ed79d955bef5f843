//! Running tasks: [`Worker`].

mod assemble;
pub(crate) mod core;
pub(crate) mod delivery;
pub(crate) mod driver;
pub(crate) mod effects;
pub(crate) mod error;
pub(crate) mod io;
#[cfg_attr(not(unix), path = "isolated/unsupported.rs")]
mod isolated;
pub(crate) mod workflow;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Map, Value};

use crate::app::inner::AppInner;
use crate::boundary::BoxFuture;
use crate::config::{OnUnknown, WorkerSettings};
use crate::execution::Tasks;
use crate::worker::io::remote::Command;
use crate::worker::io::shutdown::shutdown_stages;
use crate::worker::io::supervisor::ConnectionHook;
use crate::worker::isolated::WorkerProfile;
use isolated::Mode;

pub use crate::worker::io::shutdown::ForceShutdown;
pub use crate::worker::io::supervisor::ConnectionEvent;
pub use error::WorkerError;
pub use isolated::is_isolated_child;

/// Receives messages from queues and runs their tasks. Made by
/// [`App::worker`](crate::App::worker).
///
/// Options that are not set here come from the app's [`Config`](crate::Config).
pub struct Worker {
    app: Arc<AppInner>,
    tasks: Tasks,
    queues: Vec<String>,
    concurrency: usize,
    prefetch_multiplier: usize,
    hostname: String,
    on_unknown: OnUnknown,
    grace: Duration,
    hook: Option<ConnectionHook>,
    teardown: Option<Teardown>,
    settings: WorkerSettings,
    commands: HashMap<String, Command>,
    autoscale: Option<(usize, usize)>,
    child_command: Option<isolated::ChildCommand>,
}

/// Runs once after the worker has ended.
type Teardown = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

impl Worker {
    pub(crate) fn new(app: Arc<AppInner>, tasks: Tasks) -> Self {
        let config = &app.config;
        Self {
            queues: Vec::new(),
            concurrency: config.worker_concurrency,
            prefetch_multiplier: config.worker_prefetch_multiplier,
            hostname: config
                .worker_hostname
                .clone()
                .unwrap_or_else(|| format!("celery@{}", crate::hostname::hostname())),
            on_unknown: config.on_unknown,
            grace: config.shutdown_grace,
            hook: None,
            teardown: None,
            settings: config.worker.clone(),
            commands: HashMap::new(),
            autoscale: None,
            child_command: None,
            app,
            tasks,
        }
    }

    /// Adds a queue to consume. Without any, the worker consumes `task_queues` if
    /// configured, otherwise the default queue and those of its tasks'
    /// declarations.
    #[must_use]
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.queues.push(name.into());
        self
    }

    /// Sets how many tasks run at the same time; the number of cores by default,
    /// at least 1.
    ///
    /// With 1, the result of a task is stored before the next one starts, as in Celery.
    /// With more, tasks may start while the results of earlier ones are being stored.
    #[must_use]
    pub fn concurrency(self, tasks: usize) -> Self {
        Self {
            concurrency: tasks.max(1),
            ..self
        }
    }

    /// Sets how many messages are prefetched for each concurrent task; 4 by
    /// default. As in Celery, messages of running tasks count until they are
    /// acknowledged, which matters for late acknowledgement only. With 1, the
    /// worker holds only messages that can start at once; 0 is without limit.
    #[must_use]
    pub fn prefetch_multiplier(self, messages: usize) -> Self {
        Self {
            prefetch_multiplier: messages,
            ..self
        }
    }

    /// Sets the worker's name, `celery@<host>` by default. Two workers need
    /// different names for remote control.
    #[must_use]
    pub fn hostname(self, name: impl Into<String>) -> Self {
        Self {
            hostname: name.into(),
            ..self
        }
    }

    /// Enables task events, which Flower and `celery events` consume; off by
    /// default. Remote control can change it at run time.
    #[must_use]
    pub fn task_events(mut self, events: bool) -> Self {
        self.settings.task_events = events;
        self
    }

    /// Enables remote control (`celery inspect`, `celery control`); on by default.
    #[must_use]
    pub fn remote_control(mut self, enabled: bool) -> Self {
        self.settings.remote_control = enabled;
        self
    }

    /// Enables mingle: before its first message the worker asks its peers for
    /// revoked tasks; on by default, and off without remote control. RabbitMQ does
    /// not return the number of peers, so there it takes 1 s, as in Celery.
    #[must_use]
    pub fn mingle(mut self, enabled: bool) -> Self {
        self.settings.mingle = enabled;
        self
    }

    /// Sets the interval of heartbeat events; 2 s by default. With `None` there
    /// are none, and monitors do not list the worker.
    #[must_use]
    pub fn heartbeat(mut self, interval: Option<Duration>) -> Self {
        self.settings.heartbeat = interval.map(|interval| interval.max(Duration::from_millis(1)));
        self
    }

    /// Sets a file in which revocations survive a restart (Celery's `--statedb`).
    /// It is written every 10 s if something changed, and at the end.
    #[must_use]
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.settings.state_file = Some(path.into());
        self
    }

    /// Scales the number of concurrent tasks with the load, within this range
    /// (Celery's `--autoscale`). The minimum is at least 1; an empty range is
    /// the minimum alone.
    #[must_use]
    pub fn autoscale(self, tasks: RangeInclusive<usize>) -> Self {
        let (min, max) = tasks.into_inner();
        let min = min.max(1);
        Self {
            autoscale: Some((max.max(min), min)),
            concurrency: min,
            ..self
        }
    }

    /// Adds a command of remote control, called with the arguments of the request.
    /// It runs between two deliveries, so it must not take long; an error becomes
    /// the reply `{"error": …}`. Built-in commands cannot be replaced.
    #[must_use]
    pub fn command(
        mut self,
        name: impl Into<String>,
        command: impl Fn(&Map) -> Result<Value, String> + Send + 'static,
    ) -> Self {
        self.commands.insert(name.into(), Box::new(command));
        self
    }

    /// Sets the policy for messages that cannot be run.
    #[must_use]
    pub fn on_unknown(self, on_unknown: OnUnknown) -> Self {
        Self { on_unknown, ..self }
    }

    /// Sets how long a shutdown waits for broker and backend after the last task
    /// has ended; 10 s by default.
    #[must_use]
    pub fn shutdown_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Calls `hook` when the connection to the broker is opened or lost.
    #[must_use]
    pub fn on_connection_event(
        self,
        hook: impl Fn(&ConnectionEvent) + Send + Sync + 'static,
    ) -> Self {
        Self {
            hook: Some(Arc::new(hook)),
            ..self
        }
    }

    /// Runs `teardown` after the last task has ended and before
    /// [`run_until`](Self::run_until) returns, to close resources of the
    /// application's state. It does not run when the future is dropped.
    #[must_use]
    pub fn on_stop<F, T>(self, teardown: F) -> Self
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        Self {
            teardown: Some(Box::new(|| Box::pin(teardown()))),
            ..self
        }
    }

    /// Runs all tasks in child processes, however they were added; see
    /// [`Tasks::with_isolated`].
    #[must_use]
    pub fn isolated(mut self) -> Self {
        self.tasks.isolate();
        self
    }

    /// Sets the command that starts child processes for isolated tasks, instead
    /// of this program. Its `main` has to run a worker with the same tasks. It is
    /// for tests, whose own program is the test runner.
    ///
    /// Only program, arguments, environment and working directory are used.
    #[must_use]
    pub fn child_command(self, command: &std::process::Command) -> Self {
        Self {
            child_command: Some(command.into()),
            ..self
        }
    }

    /// Runs until `shutdown` resolves, then shuts down warmly: running tasks
    /// finish and are acknowledged, prefetched messages return to the head of their
    /// queue. [`ForceShutdown`] makes it a cold shutdown.
    ///
    /// The future is `Send`, so that it can be spawned.
    ///
    /// # Errors
    ///
    /// See [`WorkerError`]. While the broker is unreachable, at the start or
    /// later, the worker retries `broker_connection_max_retries` times.
    ///
    /// [`WorkerError::exit_code`] is the exit code for a program: 2 for a
    /// configuration that cannot be used, 3 if deliveries are in doubt or not settled,
    /// 1 for other errors; 0 stands for a clean end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends running tasks at their next await; the broker
    /// redelivers messages that were not acknowledged.
    pub async fn run_until<F, P>(mut self, shutdown: F) -> Result<(), WorkerError>
    where
        F: Future<Output = P> + Send + 'static,
        P: ForceShutdown,
    {
        let teardown = self.teardown.take();
        let mode = isolated::mode(&self.profile())?;
        let ended = match mode {
            Mode::Work(children) => {
                if let Some(children) = &children {
                    children.check().await?;
                }
                let driver = self.start(children.as_ref())?;
                let ended = driver.run(shutdown_stages(shutdown)).await;
                if let Some(children) = children {
                    children.close().await;
                }
                ended
            }
            Mode::Serve(socket) => isolated::serve(&self.app, self.tasks, socket).await,
            Mode::Wait => std::future::pending().await,
        };
        if let Some(teardown) = teardown {
            teardown().await;
        }
        ended
    }

    fn profile(&self) -> WorkerProfile<'_> {
        WorkerProfile {
            app: &self.app,
            tasks: &self.tasks,
            queues: &self.queues,
            hostname: &self.hostname,
            concurrency: self.concurrency,
            child_command: self.child_command.as_ref(),
        }
    }

    /// Runs until an unrecoverable error.
    ///
    /// # Errors
    ///
    /// See [`run_until`](Self::run_until).
    ///
    /// # Cancel safety
    ///
    /// See [`run_until`](Self::run_until).
    pub async fn run(self) -> Result<(), WorkerError> {
        self.run_until(std::future::pending::<()>()).await
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("hostname", &self.hostname)
            .field("tasks", &self.tasks)
            .field("queues", &self.queues)
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}
