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
    /// confirmed, because broker or backend did not answer in time. The log names the
    /// tasks.
    #[error(
        "the worker stopped with {count} deliveries not settled and {in_doubt} in doubt, because \
         broker or backend did not answer in time{}",
        cause(error.as_ref())
    )]
    Unsettled {
        /// The number of deliveries that are not settled: the broker delivers their
        /// messages again, or the results of their tasks may be missing.
        count: usize,
        /// The number of deliveries of which it is unknown whether their message is
        /// still on the broker. Their tasks may be lost or may run again.
        in_doubt: usize,
        /// The error of the broker that stopped the worker, if one did.
        #[source]
        error: Option<ServiceError>,
    },
}

impl WorkerError {
    /// Returns the exit code for a program that runs one worker: 2 for a configuration
    /// that cannot be used, 3 if deliveries are left [unsettled](Self::Unsettled) or in
    /// doubt, 1 for any other error. A worker that stopped cleanly exits with 0.
    ///
    /// ```
    /// use std::process::ExitCode;
    ///
    /// use celery_runtime::WorkerError;
    ///
    /// fn exit(ended: Result<(), WorkerError>) -> ExitCode {
    ///     match ended {
    ///         Ok(()) => ExitCode::SUCCESS,
    ///         Err(error) => {
    ///             eprintln!("{error}");
    ///             error.exit_code().into()
    ///         }
    ///     }
    /// }
    /// # exit(Ok(()));
    /// ```
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Registry(_) | Self::Config(_) | Self::Queue(_) | Self::Child { .. } => 2,
            Self::Unsettled { .. } => 3,
            Self::Broker(_) => 1,
        }
    }
}

fn cause(error: Option<&ServiceError>) -> String {
    error.map_or_else(String::new, |error| format!(": {error}"))
}
