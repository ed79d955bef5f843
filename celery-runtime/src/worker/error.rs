//! Errors of a whole worker: [`WorkerError`].

use crate::boundary::ServiceError;
use crate::config::ConfigError;
use crate::execution::RegistryError;
use crate::queues::QueueNotFound;

/// An error with which a worker ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The tasks cannot be served together.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A queue to consume does not exist and must not be created.
    #[error(transparent)]
    Queue(#[from] QueueNotFound),
    /// The first child process for isolated tasks cannot be started. Later
    /// failures are logged and retried.
    #[error("cannot start {program} as a child process for isolated tasks: {cause}")]
    Child {
        /// The program.
        program: String,
        /// The cause and the remedy.
        cause: String,
    },
    /// The broker cannot be used, or stayed unreachable for too long.
    #[error(transparent)]
    Broker(#[from] ServiceError),
    /// The worker stopped before results or acknowledgements of some tasks were
    /// confirmed. The broker redelivers messages that were not acknowledged.
    #[error(
        "the worker stopped with {count} deliveries unsettled, because broker or backend did not \
         answer in time"
    )]
    Unsettled {
        /// The number of such deliveries.
        count: usize,
    },
}
