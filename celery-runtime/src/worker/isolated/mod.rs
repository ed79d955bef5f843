//! Tasks in child processes.
//!
//! A child is the program itself, started once more. Its standard input is one
//! end of a socket, and its environment has a mark; by both its
//! [`Worker`](crate::worker::Worker) knows that it is to serve the worker at the other
//! end instead of a broker. Broker and backend stay with the worker.
//!
//! ```text
//! worker: task -> children -> child -> process       word   frame   fault
//!                                 ||  (what is said, and how)
//! child:  part -> serve -> backend
//! ```
//!
//! A worker that ends, however it does, hangs up, which every child hears in a
//! thread of its own and ends at once; a child that ends has hung up, too.

mod backend;
mod child;
mod children;
mod exit_status;
mod frame;
mod memory;
mod process;
mod program;
mod protocol;
mod role;
mod serve;
mod task;
mod wire_error;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::app::inner::AppInner;
use crate::execution::{ErasedTask, Registry, Tasks};
use crate::worker::error::WorkerError;
use crate::worker::isolated::protocol::Welcome;
use crate::worker::isolated::role::ProcessRole;
use children::ChildLimits;
use program::Program;
use task::IsolatedTask;

pub use crate::worker::isolated::role::is_isolated_child;

pub(crate) use children::Children;
pub(crate) use program::ChildCommand;

/// A child that cannot be started.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("cannot start {program} as a child process for isolated tasks: {cause}")]
pub(crate) struct ChildError {
    program: String,
    cause: String,
}

impl ChildError {
    fn new(program: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            cause: cause.into(),
        }
    }
}

impl From<ChildError> for WorkerError {
    fn from(ChildError { program, cause }: ChildError) -> Self {
        Self::Child { program, cause }
    }
}

/// What a worker is to do here.
pub(crate) enum Mode {
    /// Its own work, with children where it needs them.
    Work(Option<Arc<Children>>),
    /// That of the worker at the other end.
    Serve(UnixStream),
    /// Nothing: this process is for another worker of the program.
    Wait,
}

/// The properties of a worker that decide about child processes.
pub(crate) struct WorkerProfile<'a> {
    pub(crate) app: &'a AppInner,
    pub(crate) tasks: &'a Tasks,
    pub(crate) queues: &'a [String],
    pub(crate) hostname: &'a str,
    pub(crate) concurrency: usize,
    pub(crate) child_command: Option<&'a ChildCommand>,
}

/// Finds out what the worker is to do in this process, and gets ready for it.
pub(crate) fn mode(worker: &WorkerProfile<'_>) -> Result<Mode, WorkerError> {
    let name = program::worker_name(worker.tasks.names(), worker.queues);
    match ProcessRole::of(&name) {
        ProcessRole::Child(socket) => return Ok(Mode::Serve(socket)),
        ProcessRole::Other => return Ok(Mode::Wait),
        ProcessRole::Worker if !worker.tasks.has_isolated() => return Ok(Mode::Work(None)),
        ProcessRole::Worker => {}
    }
    let config = &worker.app.config;
    let welcome = Welcome {
        hostname: worker.hostname.to_owned(),
        result_serializer: config.result_serializer.name().to_owned(),
        result_extended: config.result_extended,
        body_limit: config.body_limit,
    };
    let rules = ChildLimits {
        max_tasks: config.worker_max_tasks_per_child,
        max_memory: config.worker_max_memory_per_child,
        deadline: config.operation_timeout,
    };
    let program = Program::find(worker.child_command.cloned())?;
    let children = Children::new(program, name, welcome, rules, worker.concurrency);
    Ok(Mode::Work(Some(children)))
}

/// What runs a task in one of the children.
pub(crate) fn runner(children: &Arc<Children>) -> Arc<dyn ErasedTask> {
    Arc::new(IsolatedTask {
        children: Arc::clone(children),
    })
}

/// Serves the worker at the other end until it hangs up.
pub(crate) async fn serve(
    app: &AppInner,
    tasks: Tasks,
    socket: UnixStream,
) -> Result<(), WorkerError> {
    let registry = Arc::new(Registry::new(tasks, None)?);
    Ok(serve::serve(socket, registry, app).await?)
}
