//! Where there are no children: systems other than Unix.

use std::process::Command;
use std::sync::Arc;

use crate::app::inner::AppInner;
use crate::execution::{ErasedTask, Tasks};
use crate::worker::error::WorkerError;

/// Nothing: there are none.
#[derive(Debug)]
pub(crate) enum Children {}

/// Nothing of the command is needed.
#[derive(Clone, Debug)]
pub(crate) struct ChildCommand;

/// Where nothing passes.
#[derive(Debug)]
pub(crate) enum Socket {}

/// As on Unix.
pub(crate) enum Mode {
    Work(Option<Arc<Children>>),
    #[allow(dead_code, reason = "there are no children")]
    Serve(Socket),
    #[allow(dead_code, reason = "there are no children")]
    Wait,
}

/// Whether this process was started by a worker to run its isolated tasks;
/// never on this system.
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
#[allow(dead_code, reason = "there are no children")]
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
