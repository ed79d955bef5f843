//! A broker and a result backend together: [`App`].

mod signals;

use std::sync::Arc;

use crate::boundary::{Broker, ResultBackend, Store};
use crate::client::Client;
use crate::config::Config;
use crate::control::{Control, Inspect};
use crate::env::Clock;
use crate::events::Events;
use crate::execution::Tasks;
use crate::logical_clock::LogicalClock;
use crate::memory::{MemoryBackend, MemoryBroker, MemoryStore};
use crate::queues::Queues;
use crate::worker::Worker;

pub use signals::{ForceSignal, shutdown_signal};

/// A broker, perhaps a result backend, and the configuration: makes clients
/// and workers. Cloning is cheap; clones share their connections.
///
/// ```
/// use celery_runtime::{App, Task, TaskError, Tasks};
///
/// const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
///
/// async fn add(x: i64, y: i64) -> Result<i64, TaskError> {
///     Ok(x + y)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let app = App::memory();
/// let worker = tokio::spawn(app.worker(Tasks::new().with(ADD, add)).run());
///
/// let sum = app.client().send(ADD, (2, 2)).await?;
/// assert_eq!(sum.get().await?, 4);
/// # worker.abort();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct App {
    broker: Arc<dyn Broker>,
    backend: Option<Arc<dyn ResultBackend>>,
    config: Arc<Config>,
    queues: Arc<Queues>,
    clock: Clock,
    lamport: LogicalClock,
    store: Option<Arc<dyn Store>>,
}

impl App {
    /// An app on this broker, without results and with the default settings.
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        let config = Config::new();
        Self {
            broker,
            backend: None,
            queues: Arc::new(Queues::new(&config.queues)),
            config: Arc::new(config),
            clock: Clock::system(),
            lamport: LogicalClock::default(),
            store: None,
        }
    }

    /// An app inside this process: nothing to install, nothing kept when the
    /// process ends.
    pub fn memory() -> Self {
        Self::new(Arc::new(MemoryBroker::new()))
            .with_backend(Arc::new(MemoryBackend::new()))
            .with_store(Arc::new(MemoryStore::new()))
    }

    /// The same with this store, in which workers and clients keep what they
    /// have to agree on: which task is the only one, what was revoked for good.
    #[must_use]
    pub fn with_store(self, store: Arc<dyn Store>) -> Self {
        Self {
            store: Some(store),
            ..self
        }
    }

    /// The same with this result backend.
    #[must_use]
    pub fn with_backend(self, backend: Arc<dyn ResultBackend>) -> Self {
        Self {
            backend: Some(backend),
            ..self
        }
    }

    /// The same with these settings. The URLs in them are not looked at here:
    /// the broker and the backend are there already.
    #[must_use]
    pub fn with_config(self, config: Config) -> Self {
        Self {
            queues: Arc::new(Queues::new(&config.queues)),
            config: Arc::new(config),
            ..self
        }
    }

    /// The same with another clock, for tests.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// A client, which sends tasks and reads results.
    pub fn client(&self) -> Client {
        Client::new(
            Arc::clone(&self.broker),
            self.backend.clone(),
            self.store.clone(),
            Arc::clone(&self.config),
            Arc::clone(&self.queues),
            self.clock.clone(),
            self.lamport.clone(),
        )
    }

    /// A worker for these tasks.
    pub fn worker(&self, tasks: Tasks) -> Worker {
        Worker::new(self.clone(), tasks)
    }

    /// Remote control of workers in any language. Replies come to a mailbox of
    /// its own, which clones share.
    pub fn control(&self) -> Control {
        Control::new(self)
    }

    /// Questions to workers in any language.
    pub fn inspect(&self) -> Inspect {
        self.control().inspect()
    }

    /// What workers and clients tell about themselves and their tasks.
    pub fn events(&self) -> Events {
        Events::new(self)
    }

    /// The broker.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// The result backend, if there is one.
    pub fn backend(&self) -> Option<&Arc<dyn ResultBackend>> {
        self.backend.as_ref()
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Arc<dyn Store>> {
        self.store.as_ref()
    }

    /// The settings.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The queues, as the settings describe them.
    pub(crate) fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    /// The logical clock that everything of this app shares.
    pub(crate) fn lamport(&self) -> &LogicalClock {
        &self.lamport
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Ends all connections. Workers and clients of this app fail from then on.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may leave connections open.
    pub async fn close(&self) {
        self.broker.close().await;
        if let Some(backend) = &self.backend {
            backend.close().await;
        }
    }
}
