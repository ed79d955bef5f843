//! Running tasks: [`Worker`].

mod carrier;
mod conclusion;
mod delivery;
mod driver;
mod entries;
mod follow;
mod intake;
#[cfg_attr(not(unix), path = "isolated/absent.rs")]
mod isolated;
mod life;
mod pool;
mod report;
mod supervisor;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

pub(crate) use isolated::Children;
pub use isolated::is_isolated_child;
pub use supervisor::LinkEvent;

use crate::app::App;
use crate::broker::{BoxFuture, ConsumeOptions, Queue};
use crate::client::compose::Sender;
use crate::config::{ConfigError, OnUnknown};
use crate::error::ServiceError;
use crate::queues::{QueueNotFound, Queues};
use crate::task::{Registry, RegistryError, Services, Tasks};

use carrier::Carrier;
use delivery::Stop;
use driver::{Driver, Limits};
use follow::Desk;
use intake::Intake;
use isolated::Duty;
use supervisor::{LinkHook, Supervisor};

/// Takes messages from queues and runs their tasks. Made by
/// [`App::worker`](crate::App::worker).
///
/// What is not set here follows the app's [`Config`](crate::Config).
pub struct Worker {
    app: App,
    tasks: Tasks,
    queues: Vec<String>,
    concurrency: usize,
    prefetch_multiplier: usize,
    hostname: String,
    on_unknown: OnUnknown,
    grace: Duration,
    hook: Option<LinkHook>,
    teardown: Option<Teardown>,
    child_command: Option<isolated::Recipe>,
}

/// Run once when the worker has ended.
type Teardown = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// Why a worker could not start, or did not end cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The tasks cannot be served together.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A queue that it shall consume does not exist and must not be made.
    #[error(transparent)]
    Queue(#[from] QueueNotFound),
    /// A child process for isolated tasks cannot be started, at the start of
    /// the worker; later that is tried again, and told in the log.
    #[error("cannot start {program} as a child process for isolated tasks: {cause}")]
    Child {
        /// What was to be started.
        program: String,
        /// Why it was not, and what to do.
        cause: String,
    },
    /// The broker cannot be used, or was away for too long.
    #[error(transparent)]
    Broker(#[from] ServiceError),
    /// The worker had to stop before the results or acknowledgements of some
    /// tasks were taken. Their messages, where not acknowledged yet, will be
    /// delivered again.
    #[error(
        "the worker stopped with {count} deliveries unsettled, because broker or backend did not \
         answer in time"
    )]
    Unsettled {
        /// How many.
        count: usize,
    },
}

/// The future given to [`Worker::run_until`] may resolve to this: a way to
/// lose patience with a warm stop. `()` has endless patience; what
/// [`shutdown_signal`](crate::shutdown_signal) gives loses it at the second
/// signal.
pub trait Patience: Send + 'static {
    /// Resolves when running tasks shall be ended.
    fn lost(self) -> BoxFuture<'static, ()>;
}

impl Patience for () {
    fn lost(self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

impl Worker {
    pub(crate) fn new(app: App, tasks: Tasks) -> Self {
        let config = app.config();
        Self {
            queues: Vec::new(),
            concurrency: config.worker_concurrency,
            prefetch_multiplier: config.worker_prefetch_multiplier,
            hostname: config
                .worker_hostname
                .clone()
                .unwrap_or_else(|| format!("celery@{}", crate::app::host())),
            on_unknown: config.on_unknown,
            grace: config.shutdown_grace,
            hook: None,
            teardown: None,
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

    /// How many messages are held for each task that can run, those running
    /// included; 4 by default. With 1, nothing is held that could not start
    /// at once; 0 is without limit.
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
    pub fn on_link(self, hook: impl Fn(&LinkEvent) + Send + Sync + 'static) -> Self {
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
    /// the head of their queue. See [`Patience`] for how that is cut short.
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
        P: Patience,
    {
        let teardown = self.teardown.take();
        let ended = match isolated::duty(&self)? {
            Duty::Work(children) => {
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
            Duty::Serve(socket) => isolated::serve(self, socket).await,
            Duty::Wait => std::future::pending().await,
        };
        if let Some(teardown) = teardown {
            teardown().await;
        }
        ended
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
        let mut config = (**app.config()).clone();
        config.on_unknown = self.on_unknown;
        let config = Arc::new(config);
        let registry = Registry::new(self.tasks, children.map(isolated::runner).as_ref())?;
        let mut queues = queues(app.queues(), &self.queues, &registry)?;
        if config.worker_direct {
            queues.push(app.queues().direct(&self.hostname));
        }
        let names: Vec<_> = queues.iter().map(|queue| queue.name.as_str()).collect();
        tracing::info!("{} consumes {}", self.hostname, names.join(", "));

        let services = Arc::new(Services {
            backend: app.backend().cloned(),
            hostname: self.hostname.clone(),
            accept: config.accept_content,
            body_limit: config.body_limit,
            result_serializer: config.result_serializer,
            result_extended: config.result_extended,
            blocking: Arc::new(Semaphore::new(self.concurrency)),
            children: children.cloned(),
        });
        let window = window(self.concurrency, self.prefetch_multiplier);
        let supervisor = Supervisor {
            broker: Arc::clone(app.broker()),
            options: consume_options(&queues, window, self.prefetch_multiplier),
            max_retries: config.broker_connection_max_retries,
            hook: self.hook,
        };
        let desk = Desk {
            sender: Sender {
                config: Arc::clone(&config),
                queues: Arc::clone(app.queues()),
                origin: self.hostname.clone(),
                reply_to: uuid::Uuid::new_v4().to_string(),
            },
            hostname: self.hostname,
            queues,
        };
        let carrier = Carrier {
            broker: Arc::clone(app.broker()),
            services: Arc::clone(&services),
            desk,
            deadline: config.deadline,
        };
        let intake = Intake {
            registry,
            services,
            defaults: config.task,
        };
        let limits = Limits {
            concurrency: self.concurrency,
            window,
            grace: self.grace,
        };
        Ok(Driver::new(
            intake,
            carrier,
            app.clock().clone(),
            supervisor,
            limits,
        ))
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

/// What the worker consumes: as asked, as configured, or what its tasks need.
fn queues(
    known: &Queues,
    asked: &[String],
    registry: &Registry,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    let found = match asked {
        [] if known.has_default_only() => default_and_declared(known, registry)?,
        [] => known.configured().to_vec(),
        asked => find_all(known, asked.iter().map(String::as_str))?,
    };
    let own = |queue: &Arc<Queue>| match queue.is_broadcast() {
        true => Arc::new(queue.for_consumer()),
        false => Arc::clone(queue),
    };
    Ok(found.iter().map(own).collect())
}

fn default_and_declared(
    known: &Queues,
    registry: &Registry,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    let declared = registry
        .iter()
        .filter_map(|task| task.declaration.queue.as_deref());
    let mut names: Vec<_> = declared.collect();
    names.sort_unstable();
    names.dedup();
    let default = known.default_queue()?;
    names.retain(|name| *name != default.name);
    let mut found = vec![default];
    found.extend(find_all(known, names)?);
    Ok(found)
}

fn find_all<'a>(
    known: &Queues,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Arc<Queue>>, QueueNotFound> {
    names.into_iter().map(|name| known.find(name)).collect()
}

/// With one message for each task that can run, nothing is pushed ahead that
/// another worker could start at once.
fn consume_options(queues: &[Arc<Queue>], window: usize, multiplier: usize) -> ConsumeOptions {
    let prefetch = match multiplier {
        1 => 0,
        _ => u16::try_from(window).unwrap_or(u16::MAX),
    };
    let queues = queues.iter().map(|queue| (**queue).clone());
    ConsumeOptions::new(queues.collect(), prefetch)
}

/// AMQP counts in 16 bits, which also is more than enough to keep busy.
fn window(concurrency: usize, multiplier: usize) -> usize {
    match multiplier {
        0 => usize::from(u16::MAX),
        _ => concurrency
            .saturating_mul(multiplier)
            .min(usize::from(u16::MAX)),
    }
}

/// Gives the driver one stop after the other: warm when `shutdown` resolves,
/// cold when the patience that it resolved to is lost.
fn stops<F, P>(shutdown: F) -> impl FnMut() -> BoxFuture<'static, Stop>
where
    F: Future<Output = P> + Send + 'static,
    P: Patience,
{
    let patience: Arc<Mutex<Option<P>>> = Arc::default();
    let mut shutdown = Some(shutdown);
    move || match shutdown.take() {
        Some(shutdown) => {
            let patience = Arc::clone(&patience);
            Box::pin(async move {
                let given = shutdown.await;
                *patience.lock().unwrap_or_else(PoisonError::into_inner) = Some(given);
                Stop::Warm
            })
        }
        None => match patience
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            Some(patience) => Box::pin(async move {
                patience.lost().await;
                Stop::Cold
            }),
            None => Box::pin(std::future::pending()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_pushed_ahead_of_a_worker_that_holds_only_what_it_runs() {
        let queues = [Arc::new(Queue::new("q"))];
        let prefetch = |multiplier| {
            let window = window(10, multiplier);
            consume_options(&queues, window, multiplier).prefetch
        };
        assert_eq!([1, 2, 4].map(prefetch), [0, 20, 40]);
        assert_eq!(prefetch(0), u16::MAX);
    }
}
