//! Running tasks: handlers, their context, and the registry of a worker's tasks.

mod blocking;
mod builtin;
mod context;
mod control;
mod erased;
mod error;
mod failed;
mod failure;
mod handler;
mod in_place;
mod job;
mod registry;
mod retry;
mod send;
mod worker_context;

pub use context::{Context, UpdateError};
pub use error::{Requeue, TaskError};
pub use failed::FailedTask;
pub use handler::{BlockingHandler, Handler};
pub use registry::{RegistryError, Tasks};

pub(crate) use blocking::BlockingPool;
pub(crate) use control::TaskControl;
pub(crate) use erased::{ErasedTask, ProcessLost, RunError, RunResult};
pub(crate) use error::{Failure, ReadyChord, RemoteFailure, TaskErrorKind};
pub(crate) use failed::FailureContext;
pub(crate) use failure::FailureInfo;
pub(crate) use job::Job;
pub(crate) use registry::{Registry, RegistryEntry};
pub(crate) use retry::{Changes, Retry, When};
pub(crate) use worker_context::WorkerContext;
