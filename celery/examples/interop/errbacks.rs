//! Errbacks that receive the failed task: the worker calls them in-process.

use celery::{FailedTask, Task, TaskError, Tasks, Value};

use crate::State;
use crate::redis_writes::{RedisContext, count, push};

const ERRBACK_NEW_STYLE: Task<(), String> =
    Task::new("t.integration.tasks.errback_new_style").params(&[]);
const ERRBACK_NEW_STYLE_WITH_ARGS: Task<(Value,), ()> =
    Task::new("t.integration.tasks.errback_new_style_with_args").params(&["label"]);

pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .errback(ERRBACK_NEW_STYLE, errback)
        .errback(ERRBACK_NEW_STYLE_WITH_ARGS, errback_with_args)
}

async fn errback(failed: FailedTask<State>) -> Result<String, TaskError> {
    count(&failed, failed.id()).await?;
    Ok(failed.id().to_owned())
}

async fn errback_with_args(failed: FailedTask<State>, label: Value) -> Result<(), TaskError> {
    push(&failed, failed.id(), label).await
}

impl RedisContext for FailedTask<State> {
    fn redis(&self) -> &redis::Client {
        &self.state().redis
    }
}
