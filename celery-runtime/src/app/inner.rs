//! The services and settings that everything made by one app shares.

use std::sync::Arc;

use crate::boundary::{Broker, ResultBackend, Store};
use crate::config::Config;
use crate::env::Clock;
use crate::logical_clock::LogicalClock;
use crate::queues::Queues;

/// The content of an [`App`](crate::App). Clients, workers, remote control and
/// event receivers hold it without knowing how an app is built.
#[derive(Clone, Debug)]
pub(crate) struct AppInner {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) backend: Option<Arc<dyn ResultBackend>>,
    pub(crate) store: Option<Arc<dyn Store>>,
    pub(crate) config: Arc<Config>,
    /// The queues, as the settings describe them.
    pub(crate) queues: Arc<Queues>,
    pub(crate) clock: Clock,
    /// Celery's logical clock, shared by clients, workers and control.
    pub(crate) logical_clock: LogicalClock,
}

impl AppInner {
    /// An app with the default settings, without result backend and store.
    pub(crate) fn new(broker: Arc<dyn Broker>) -> Self {
        let config = Config::new();
        Self {
            broker,
            backend: None,
            store: None,
            queues: Arc::new(Queues::new(&config.queues)),
            config: Arc::new(config),
            clock: Clock::system(),
            logical_clock: LogicalClock::default(),
        }
    }
}
