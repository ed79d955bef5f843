//! Tasks that run in children, as the pool sees them.

use std::sync::Arc;

use crate::boundary::BoxFuture;
use crate::execution::{ErasedTask, Job, RunError, RunResult};
use crate::worker::isolated::child;
use crate::worker::isolated::children::Children;

/// Any task: the child knows them by name.
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
                        "the child of task {}[{}] is lost: {}",
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
