//! Errbacks that get what failed: the worker calls them itself.

use celery::{FailedTask, Task, TaskError, Tasks, Value};

use crate::World;
use crate::marks::{Redis, count, push};

const ERRBACK_NEW_STYLE: Task<(), String> =
    Task::new("t.integration.tasks.errback_new_style").params(&[]);
const ERRBACK_NEW_STYLE_WITH_ARGS: Task<(Value,), ()> =
    Task::new("t.integration.tasks.errback_new_style_with_args").params(&["label"]);

pub(crate) fn add_to(tasks: Tasks<World>) -> Tasks<World> {
    tasks
        .errback(ERRBACK_NEW_STYLE, errback)
        .errback(ERRBACK_NEW_STYLE_WITH_ARGS, errback_with_args)
}

async fn errback(failed: FailedTask<World>) -> Result<String, TaskError> {
    count(&failed, failed.id()).await?;
    Ok(failed.id().to_owned())
}

async fn errback_with_args(failed: FailedTask<World>, label: Value) -> Result<(), TaskError> {
    push(&failed, failed.id(), label).await
}

/// An errback leaves marks where tasks do.
impl Redis for FailedTask<World> {
    fn redis(&self) -> &redis::Client {
        &self.state().redis
    }
}
