//! A broker and a result backend together: [`App`].

pub(crate) mod inner;
mod signals;

use std::sync::Arc;

use crate::boundary::{Broker, ResultBackend, Store};
use crate::client::Client;
use crate::config::Config;
use crate::control::{Control, Inspect};
use crate::env::Clock;
use crate::events::Events;
use crate::execution::Tasks;
use crate::memory::{MemoryBackend, MemoryBroker, MemoryStore};
use crate::queues::Queues;
use crate::worker::Worker;
use inner::AppInner;

pub use signals::{ForceSignal, shutdown_signal};

/// A broker, an optional result backend and store, and the configuration, from
/// which clients and workers are made. Cloning is cheap; clones share their
/// connections.
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
    inner: Arc<AppInner>,
}

impl App {
    /// Returns an app on this broker, without results and with the default
    /// settings.
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Self {
            inner: Arc::new(AppInner::new(broker)),
        }
    }

    /// Returns an app with broker, result backend and store inside this process.
    /// It needs no server and keeps nothing when the process ends.
    pub fn memory() -> Self {
        Self::new(Arc::new(MemoryBroker::new()))
            .with_backend(Arc::new(MemoryBackend::new()))
            .with_store(Arc::new(MemoryStore::new()))
    }

    /// Sets the store for the state that workers and clients share: locks of
    /// unique tasks, durable revocations.
    #[must_use]
    pub fn with_store(self, store: Arc<dyn Store>) -> Self {
        self.with(|inner| inner.store = Some(store))
    }

    /// Sets the result backend.
    #[must_use]
    pub fn with_backend(self, backend: Arc<dyn ResultBackend>) -> Self {
        self.with(|inner| inner.backend = Some(backend))
    }

    /// Sets the configuration. Its URLs are not used: broker and backend exist
    /// already.
    #[must_use]
    pub fn with_config(self, config: Config) -> Self {
        self.with(|inner| {
            inner.queues = Arc::new(Queues::new(&config.queues));
            inner.config = Arc::new(config);
        })
    }

    /// Sets another clock, for tests.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        self.with(|inner| inner.clock = clock)
    }

    fn with(self, change: impl FnOnce(&mut AppInner)) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.inner);
        change(&mut inner);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Returns a client, which sends tasks and reads results.
    pub fn client(&self) -> Client {
        Client::new(&self.inner)
    }

    /// Returns a worker for these tasks.
    pub fn worker(&self, tasks: Tasks) -> Worker {
        Worker::new(Arc::clone(&self.inner), tasks)
    }

    /// Returns the remote control of workers in any language. Its clones share
    /// one mailbox for replies.
    pub fn control(&self) -> Control {
        Control::new(&self.inner)
    }

    /// Returns the queries of remote control, for workers in any language.
    pub fn inspect(&self) -> Inspect {
        self.control().inspect()
    }

    /// Returns a receiver for the events of workers and clients.
    pub fn events(&self) -> Events {
        Events::new(&self.inner)
    }

    /// Returns the broker.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.inner.broker
    }

    /// Returns the result backend, if there is one.
    pub fn backend(&self) -> Option<&Arc<dyn ResultBackend>> {
        self.inner.backend.as_ref()
    }

    /// Returns the store, if there is one.
    pub fn store(&self) -> Option<&Arc<dyn Store>> {
        self.inner.store.as_ref()
    }

    /// Returns the settings.
    pub fn config(&self) -> &Arc<Config> {
        &self.inner.config
    }

    /// Returns the clock.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Closes all connections. Clients and workers of this app fail afterwards.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may leave connections open.
    pub async fn close(&self) {
        self.inner.broker.close().await;
        if let Some(backend) = &self.inner.backend {
            backend.close().await;
        }
    }

    #[cfg(test)]
    pub(crate) fn inner(&self) -> &AppInner {
        &self.inner
    }
}
