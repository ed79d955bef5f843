//! Running tasks: [`Worker`].

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
use tokio::sync::oneshot;

use crate::app::inner::AppInner;
use crate::boundary::{BoxFuture, ConsumeOptions, Mailbox};
use crate::client::Client;
use crate::client::compose::Sender;
use crate::config::{Config, ConfigError, OnUnknown, WorkerSettings};
use crate::env;
use crate::execution::{BlockingPool, Registry, Tasks, WorkerContext};
use crate::worker::core::queue_selection::queues;
use crate::worker::delivery::decode::MessageDecoder;
use crate::worker::driver::command::Command;
use crate::worker::effects::executor::EffectExecutor;
use crate::worker::effects::messages::MessageFactory;
use crate::worker::io::control_receiver::{ControlReceiver, read_events, read_request};
use crate::worker::io::event_dispatcher::EventDispatcher;
use crate::worker::io::event_publisher::EventPublisher;
use crate::worker::io::shutdown::stops;
use crate::worker::io::supervisor::{ConnectionHook, Supervisor};
use crate::worker::io::sweeper::Sweeper;
use crate::worker::io::watchdog::Watchdog;
use crate::worker::isolated::{Children, WorkerProfile};
use driver::{Driver, DriverParts, WorkerLimits, prefetch, window};
use isolated::Mode;

pub use crate::worker::io::shutdown::ForceShutdown;
pub use crate::worker::io::supervisor::ConnectionEvent;
pub use error::WorkerError;
pub use isolated::is_isolated_child;

/// Takes messages from queues and runs their tasks. Made by
/// [`App::worker`](crate::App::worker).
///
/// What is not set here follows the app's [`Config`](crate::Config).
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

/// Run once when the worker has ended.
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

    /// Consumes this queue; may be called again for more. Without any, the
    /// worker consumes `task_queues` if configured, else the default queue
    /// and those of its tasks' declarations.
    #[must_use]
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.queues.push(name.into());
        self
    }

    /// How many tasks run at the same time; the number of cores by default.
    #[must_use]
    pub fn concurrency(self, tasks: usize) -> Self {
        Self {
            concurrency: tasks.max(1),
            ..self
        }
    }

    /// How many messages are held for each task that can run; 4 by default.
    /// As in Celery, those of running tasks count while they are not
    /// acknowledged, which is for late tasks only. With 1, nothing is held that
    /// could not start at once; 0 is without limit.
    #[must_use]
    pub fn prefetch_multiplier(self, messages: usize) -> Self {
        Self {
            prefetch_multiplier: messages,
            ..self
        }
    }

    /// The worker's name, `celery@<host>` by default.
    #[must_use]
    pub fn hostname(self, name: impl Into<String>) -> Self {
        Self {
            hostname: name.into(),
            ..self
        }
    }

    /// Whether it tells those who watch (Flower, `celery events`) what happens
    /// to tasks; not by default. Remote control can change it while it runs.
    #[must_use]
    pub fn task_events(mut self, events: bool) -> Self {
        self.settings.task_events = events;
        self
    }

    /// Whether it obeys and answers remote control (`celery inspect`, `celery
    /// control`); it does by default.
    #[must_use]
    pub fn remote_control(mut self, obeys: bool) -> Self {
        self.settings.remote_control = obeys;
        self
    }

    /// Whether it asks its peers, before it takes the first message, which tasks
    /// were revoked; it does by default. On RabbitMQ, which does not say how many
    /// peers there are, this takes a second where there is one at least. Without
    /// remote control nobody is asked.
    #[must_use]
    pub fn mingle(mut self, asks: bool) -> Self {
        self.settings.mingle = asks;
        self
    }

    /// Time between two signs of life that monitors see; 2 s by default. With
    /// `None` there are none, and monitors do not see the worker.
    #[must_use]
    pub fn heartbeat(mut self, interval: Option<Duration>) -> Self {
        self.settings.heartbeat = interval.map(|interval| interval.max(Duration::from_millis(1)));
        self
    }

    /// Keeps what was revoked in this file, so that it is known after a
    /// restart. Written every 10 s while there is something new, and at the
    /// end.
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

    /// Adds a command of remote control. It gets the arguments of the request
    /// and is called between two deliveries, so it must not take long; an error
    /// is what those who asked see as `{"error": …}`. Built-in commands cannot
    /// be replaced.
    #[must_use]
    pub fn command(
        mut self,
        name: impl Into<String>,
        command: impl Fn(&Map) -> Result<Value, String> + Send + 'static,
    ) -> Self {
        self.commands.insert(name.into(), Box::new(command));
        self
    }

    /// What becomes of messages that cannot be run.
    #[must_use]
    pub fn on_unknown(self, on_unknown: OnUnknown) -> Self {
        Self { on_unknown, ..self }
    }

    /// How long a stop waits for broker and backend after the last task has
    /// ended; 10 s by default.
    #[must_use]
    pub fn shutdown_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Calls `hook` whenever the connection to the broker is made or lost.
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

    /// Runs `teardown` when the last task has ended and before
    /// [`run_until`](Self::run_until) returns, to close what the application's
    /// state holds. It does not run when the future is dropped.
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

    /// Starts children for isolated tasks by this command instead of starting
    /// this program again. Its `main` has to run a worker that knows the same
    /// tasks. This is for tests, whose own program is the test runner.
    ///
    /// Program, arguments, environment and working directory are taken from
    /// it, nothing else.
    #[must_use]
    pub fn child_command(self, command: &std::process::Command) -> Self {
        Self {
            child_command: Some(command.into()),
            ..self
        }
    }

    /// Works until `shutdown` resolves, then stops warmly: running tasks
    /// finish and are acknowledged, messages that were only held go back to
    /// the head of their queue. See [`ForceShutdown`] for how that is cut short.
    ///
    /// The future is `Send`, so that it can be spawned.
    ///
    /// # Errors
    ///
    /// See [`WorkerError`]. A broker that is away at the start or later is
    /// waited for, `broker_connection_max_retries` times.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends running tasks at their next await; messages
    /// not acknowledged are delivered again by the broker's rules.
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
                let driver = self.driver(children.as_ref())?;
                let ended = driver.run(stops(shutdown)).await;
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

    /// Works for ever, unless it fails.
    ///
    /// # Errors
    ///
    /// As [`run_until`](Self::run_until).
    ///
    /// # Cancel safety
    ///
    /// As [`run_until`](Self::run_until).
    pub async fn run(self) -> Result<(), WorkerError> {
        self.run_until(std::future::pending::<()>()).await
    }

    fn driver(self, children: Option<&Arc<Children>>) -> Result<Driver, WorkerError> {
        let app = &self.app;
        let mut config = (*app.config).clone();
        config.on_unknown = self.on_unknown;
        let config = Arc::new(config);
        let registry = Registry::new(self.tasks, children.map(isolated::runner).as_ref())?;
        let registry = Arc::new(registry);
        let mut queues = queues(&app.queues, &self.queues, &registry)?;
        if config.worker_direct {
            queues.push(app.queues.direct(&self.hostname));
        }
        let names: Vec<_> = queues.iter().map(|queue| queue.name.as_str()).collect();
        tracing::info!("{} consumes {}", self.hostname, names.join(", "));

        let durable = self.settings.durable_revokes.is_some();
        let needs_store = durable
            || registry
                .iter()
                .any(|task| task.declaration.options.unique.is_some());
        if needs_store && app.store.is_none() {
            return Err(ConfigError::NoStore.into());
        }
        let services = Arc::new(WorkerContext {
            store: app.store.clone(),
            backend: app.backend.clone(),
            hostname: self.hostname.clone(),
            accept: config.accept_content,
            body_limit: config.body_limit,
            result_serializer: config.result_serializer,
            result_extended: config.result_extended,
            blocking: BlockingPool::new(self.concurrency),
            client: Client::new(app),
            registry: Arc::clone(&registry),
            chord_retry_interval: config.result_chord_retry_interval,
        });
        let multiplier = match self.settings.disable_prefetch {
            true => 1,
            false => self.prefetch_multiplier,
        };
        let window = window(self.concurrency, multiplier);
        let names = queues.iter().map(|queue| (**queue).clone());
        let supervisor = Supervisor {
            broker: Arc::clone(&app.broker),
            options: ConsumeOptions::new(names.collect(), prefetch(window, multiplier)),
            max_retries: config.broker_connection_max_retries,
            hook: self.hook,
        };
        let logical_clock = app.logical_clock.clone();
        let publisher = EventPublisher::start(Arc::clone(&app.broker), config.operation_timeout);
        let events = config.events.exchange();
        let events = EventDispatcher::new(publisher, logical_clock.clone(), &self.hostname, events);
        let is_steered = self.settings.remote_control;
        let mailboxes = match is_steered {
            true => mailboxes(&config, &self.hostname),
            false => Vec::new(),
        };
        let (asking, begin) = oneshot::channel();
        let control = ControlReceiver::start(&app.broker, mailboxes, begin);
        let mingle = (is_steered && self.settings.mingle).then(|| {
            io::mingle::ask(
                &app.broker,
                &logical_clock,
                &config.control,
                &self.hostname,
                asking,
            )
        });
        let messages = MessageFactory {
            sender: Sender {
                config: Arc::clone(&config),
                queues: Arc::clone(&app.queues),
                origin: self.hostname.clone(),
                reply_to: env::uuid(),
            },
            hostname: self.hostname,
            queues,
        };
        let executor = Arc::new(EffectExecutor {
            broker: Arc::clone(&app.broker),
            services: Arc::clone(&services),
            messages,
            deadline: config.operation_timeout,
            join_timeout: config.result_chord_join_timeout,
            clock: app.clock.clone(),
        });
        let mut defaults = config.task;
        let both = defaults.acks_on_failure;
        defaults.acks_on_timeout = defaults.acks_on_timeout.or(both);
        defaults.acks_on_failure = config.task_acks_on_failure.or(both);
        let decoder = MessageDecoder {
            registry,
            services,
            defaults,
            tells: self.settings.task_events,
            deduplicates: self.settings.deduplicate,
            durable_revokes: durable,
            time_limits: HashMap::new(),
        };
        let limits = WorkerLimits {
            concurrency: self.concurrency,
            multiplier,
            grace: self.grace,
        };
        Ok(Driver::new(DriverParts {
            children: children.cloned(),
            decoder,
            sweeper: Sweeper::start(&executor),
            executor,
            clock: app.clock.clone(),
            supervisor,
            limits,
            watchdog: Watchdog::start(self.settings.blocked_after),
            settings: Arc::new(self.settings),
            logical_clock,
            events,
            control,
            mingle,
            commands: self.commands,
            autoscale: self.autoscale,
        }))
    }
}

/// What a worker listens to. Signs of life of its peers are not among it, so
/// that the traffic of a fleet grows with its size, and not with its square.
fn mailboxes(
    config: &Config,
    hostname: &str,
) -> Vec<(Mailbox, io::control_receiver::MessageReader)> {
    vec![
        (config.control.node_mailbox(hostname), read_request),
        (config.events.mailbox("worker.elect"), read_events),
    ]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_pushed_ahead_of_a_worker_that_holds_only_what_it_runs() {
        let prefetch = |multiplier| prefetch(window(10, multiplier), multiplier);
        assert_eq!([1, 2, 4].map(prefetch), [0, 20, 40]);
        assert_eq!(prefetch(0), u16::MAX);
    }
}
