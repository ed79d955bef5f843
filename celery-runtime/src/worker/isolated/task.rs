//! Runs tasks in child processes: [`IsolatedTask`].

use std::sync::Arc;

use crate::boundary::BoxFuture;
use crate::execution::{ErasedTask, Job, RunError, RunResult};
use crate::worker::isolated::child;
use crate::worker::isolated::children::Children;

/// The runner of all isolated tasks; a child finds the task by its name.
#[derive(Debug)]
pub(super) struct IsolatedTask {
    pub(super) children: Arc<Children>,
}

impl ErasedTask for IsolatedTask {
    fn run(self: Arc<Self>, job: Arc<Job>) -> BoxFuture<'static, RunResult> {
        Box::pin(async move {
            match self.children.run(&job).await {
                child::ChildRun::Ended(returned) => returned,
                child::ChildRun::Lost(loss) => {
                    tracing::error!(
                        "task {}[{}]: child process lost: {}",
                        job.task,
                        job.id,
                        loss.message
                    );
                    Err(RunError::Lost(loss))
                }
            }
        })
    }
}
