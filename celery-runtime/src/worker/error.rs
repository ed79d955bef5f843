//! Errors of a whole worker: [`WorkerError`].

use crate::boundary::ServiceError;
use crate::config::ConfigError;
use crate::execution::RegistryError;
use crate::queues::QueueNotFound;

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
