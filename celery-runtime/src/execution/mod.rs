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

pub(crate) use blocking::Threads;
pub(crate) use context::{Job, Services, TaskControl};
pub(crate) use error::{Account, Failure, Joint, Kind as TaskErrorKind};
pub(crate) use failed::FailureNote;
pub(crate) use registry::{Invocation, Loss, Registered, Registry, Returned, Run, Unreturned};
pub(crate) use retry::{Changes, Retry, When};
