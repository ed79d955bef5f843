//! Running tasks: handlers, their context, and the registry of a worker's tasks.

mod blocking;
mod builtin;
mod context;
mod error;
mod failed;
mod handler;
mod in_place;
mod registry;
mod retry;
mod send;

pub use context::{Context, UpdateError};
pub use error::{Requeue, TaskError};
pub use failed::FailedTask;
pub use handler::{BlockingHandler, Handler};
pub use registry::{RegistryError, Tasks};

pub(crate) use blocking::BlockingPool;
pub(crate) use context::{Job, TaskControl, WorkerContext};
pub(crate) use error::{Failure, ReadyChord, RemoteFailure, TaskErrorKind};
pub(crate) use failed::FailureContext;
pub(crate) use registry::{
    ErasedTask, Invocation, ProcessLost, Registered, Registry, RunError, RunResult,
};
pub(crate) use retry::{Changes, Retry, When};
