//! The same interface for systems other than Unix, which have no isolated tasks.

use std::process::Command;
use std::sync::Arc;

use crate::app::inner::AppInner;
use crate::execution::{ErasedTask, Tasks};
use crate::worker::error::WorkerError;

/// Uninhabited: there are no child processes.
#[derive(Debug)]
pub(crate) enum Children {}

/// Empty: the command is not used.
#[derive(Clone, Debug)]
pub(crate) struct ChildCommand;

/// Uninhabited: there is no socket.
#[derive(Debug)]
pub(crate) enum Socket {}

/// What a worker does in this process; always [`Work`](Self::Work) without children.
pub(crate) enum Mode {
    Work(Option<Arc<Children>>),
    #[allow(dead_code, reason = "used on Unix only")]
    Serve(Socket),
    #[allow(dead_code, reason = "used on Unix only")]
    Wait,
}

/// Returns whether this process was started by a worker to run isolated tasks;
/// always false on this system.
pub fn is_isolated_child() -> bool {
    false
}

impl From<&Command> for ChildCommand {
    fn from(_: &Command) -> Self {
        Self
    }
}

impl Children {
    pub(crate) async fn check(self: &Arc<Self>) -> Result<(), WorkerError> {
        match **self {}
    }

    pub(crate) async fn close(&self) {
        match *self {}
    }
}

/// The properties of a worker that decide about child processes.
#[allow(dead_code, reason = "used on Unix only")]
pub(crate) struct WorkerProfile<'a> {
    pub(crate) app: &'a AppInner,
    pub(crate) tasks: &'a Tasks,
    pub(crate) queues: &'a [String],
    pub(crate) hostname: &'a str,
    pub(crate) concurrency: usize,
    pub(crate) child_command: Option<&'a ChildCommand>,
}

pub(crate) fn mode(worker: &WorkerProfile<'_>) -> Result<Mode, WorkerError> {
    if !worker.tasks.has_isolated() {
        return Ok(Mode::Work(None));
    }
    Err(WorkerError::Child {
        program: "this program".to_owned(),
        cause: "this system is not Unix; use with_blocking or with instead".to_owned(),
    })
}

pub(crate) fn runner(children: &Arc<Children>) -> Arc<dyn ErasedTask> {
    match **children {}
}

pub(crate) async fn serve(_: &AppInner, _: Tasks, socket: Socket) -> Result<(), WorkerError> {
    match socket {}
}
