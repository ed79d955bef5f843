//! Isolated tasks: they run in child processes.
//!
//! A child process runs the same program. Its standard input is one end of a
//! socket pair, and an environment variable marks it as a child. From both, its
//! [`Worker`](crate::worker::Worker) detects that it runs tasks for the parent
//! worker instead of consuming from a broker. The connections to the broker and
//! the result backend stay in the parent.
//!
//! ```text
//! parent: task -> children -> child -> process
//!                               ||   protocol, frame, wire_error
//! child:  role -> serve -> backend
//! ```
//!
//! When the parent ends for whatever reason, its end of the socket is closed; a
//! separate thread in each child detects that and ends the process. When a child
//! ends, the parent detects it in the same way.

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
use crate::worker::isolated::protocol::ChildConfig;
use crate::worker::isolated::role::ProcessRole;
use children::ChildLimits;
use program::Program;
use task::IsolatedTask;

pub use crate::worker::isolated::role::is_isolated_child;

pub(crate) use children::Children;
pub(crate) use program::ChildCommand;

/// An error of starting a child process.
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

/// What a worker does in this process.
pub(crate) enum Mode {
    /// Consumes from the broker, with child processes if it has isolated tasks.
    Work(Option<Arc<Children>>),
    /// Runs tasks for the parent worker at the other end of the socket.
    Serve(UnixStream),
    /// Does nothing: this process is a child of another worker of the program.
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

/// Determines what the worker does in this process, and sets up the pool of
/// children if it needs one.
pub(crate) fn mode(worker: &WorkerProfile<'_>) -> Result<Mode, WorkerError> {
    let name = program::worker_name(worker.tasks.names(), worker.queues);
    match ProcessRole::of(&name) {
        ProcessRole::Child(socket) => return Ok(Mode::Serve(socket)),
        ProcessRole::Other => return Ok(Mode::Wait),
        ProcessRole::Worker if !worker.tasks.has_isolated() => return Ok(Mode::Work(None)),
        ProcessRole::Worker => {}
    }
    let config = &worker.app.config;
    let child_config = ChildConfig {
        hostname: worker.hostname.to_owned(),
        result_serializer: config.result_serializer.name().to_owned(),
        result_extended: config.result_extended,
        body_limit: config.body_limit,
    };
    let limits = ChildLimits {
        max_tasks: config.worker_max_tasks_per_child,
        max_memory: config.worker_max_memory_per_child,
        deadline: config.operation_timeout,
    };
    let program = Program::find(worker.child_command.cloned())?;
    let children = Children::new(program, name, child_config, limits, worker.concurrency);
    Ok(Mode::Work(Some(children)))
}

/// Returns the runner that passes tasks to the children.
pub(crate) fn runner(children: &Arc<Children>) -> Arc<dyn ErasedTask> {
    Arc::new(IsolatedTask {
        children: Arc::clone(children),
    })
}

/// Runs tasks for the parent worker until it closes the socket.
pub(crate) async fn serve(
    app: &AppInner,
    tasks: Tasks,
    socket: UnixStream,
) -> Result<(), WorkerError> {
    let registry = Arc::new(Registry::new(tasks, None)?);
    Ok(serve::serve(socket, registry, app).await?)
}
