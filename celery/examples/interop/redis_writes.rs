//! Tasks that write to Redis.

use celery::{Context, Task, TaskError, Tasks, Value};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::State;
use crate::arithmetic::sum;

const REDIS_ECHO: Task<(Value, String), ()> =
    Task::new("t.integration.tasks.redis_echo").params(&["message", r#"redis_key="redis-echo""#]);
const REDIS_ECHO_GROUP_ID: Task<(Value, String), ()> =
    Task::new("t.integration.tasks.redis_echo_group_id")
        .params(&["_", r#"redis_key="redis-group-ids""#]);
const REDIS_COUNT: Task<(String,), ()> =
    Task::new("t.integration.tasks.redis_count").params(&[r#"redis_key="redis-count""#]);
const SUM_AND_RECORD: Task<(Vec<Value>, String), Value> =
    Task::new("t.integration.tasks.sum_and_record").params(&["values", "redis_key"]);
const ERRBACK_OLD_STYLE: Task<(String,), String> =
    Task::new("t.integration.tasks.errback_old_style").params(&["request_id"]);
const ERRBACK_OLD_STYLE_WITH_ARGS: Task<(String, Value), ()> =
    Task::new("t.integration.tasks.errback_old_style_with_args").params(&["request_id", "label"]);

pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .with(
            REDIS_ECHO,
            async |ctx: Context<State>, message, key: String| push(&ctx, &key, message).await,
        )
        .with(REDIS_ECHO_GROUP_ID, echo_group_id)
        .with(REDIS_COUNT, async |ctx: Context<State>, key: String| {
            count(&ctx, &key).await
        })
        .with(SUM_AND_RECORD, sum_and_record)
        .with(ERRBACK_OLD_STYLE, errback)
        .with(
            ERRBACK_OLD_STYLE_WITH_ARGS,
            async |ctx: Context<State>, key: String, label| push(&ctx, &key, label).await,
        )
}

/// A context with the Redis server to which tasks write.
pub(crate) trait RedisContext {
    fn redis(&self) -> &redis::Client;
}

impl RedisContext for Context<State> {
    fn redis(&self) -> &redis::Client {
        &self.state().redis
    }
}

async fn connection(context: &impl RedisContext) -> Result<MultiplexedConnection, TaskError> {
    Ok(context.redis().get_multiplexed_async_connection().await?)
}

/// Appends the value to the list in the format of Python's client.
pub(crate) async fn push(
    context: &impl RedisContext,
    key: &str,
    value: Value,
) -> Result<(), TaskError> {
    let text = match value {
        Value::Str(text) => text.into_bytes(),
        Value::Bytes(bytes) => bytes,
        Value::Int(number) => number.to_string().into_bytes(),
        Value::Float(number) => format!("{number:?}").into_bytes(),
        _ => {
            return Err(TaskError::exception(
                "TypeError",
                "neither a text nor a number",
            ));
        }
    };
    let () = connection(context).await?.rpush(key, text).await?;
    Ok(())
}

pub(crate) async fn count(context: &impl RedisContext, key: &str) -> Result<(), TaskError> {
    let () = connection(context).await?.incr(key, 1).await?;
    Ok(())
}

async fn echo_group_id(ctx: Context<State>, _: Value, key: String) -> Result<(), TaskError> {
    push(&ctx, &key, ctx.group_id().into()).await
}

async fn sum_and_record(
    ctx: Context<State>,
    values: Vec<Value>,
    key: String,
) -> Result<Value, TaskError> {
    let result = sum(&values)?;
    push(&ctx, &key, ctx.id().into()).await?;
    Ok(result)
}

async fn errback(ctx: Context<State>, request_id: String) -> Result<String, TaskError> {
    count(&ctx, &request_id).await?;
    Ok(request_id)
}
