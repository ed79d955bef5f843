//! Tasks that leave marks in Redis.

use celery::{Context, Task, TaskError, Tasks, Value};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::World;
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

pub(crate) fn add_to(tasks: Tasks<World>) -> Tasks<World> {
    tasks
        .with(
            REDIS_ECHO,
            async |ctx: Context<World>, message, key: String| push(&ctx, &key, message).await,
        )
        .with(REDIS_ECHO_GROUP_ID, echo_group_id)
        .with(REDIS_COUNT, async |ctx: Context<World>, key: String| {
            count(&ctx, &key).await
        })
        .with(SUM_AND_RECORD, sum_and_record)
        .with(ERRBACK_OLD_STYLE, errback)
        .with(
            ERRBACK_OLD_STYLE_WITH_ARGS,
            async |ctx: Context<World>, key: String, label| push(&ctx, &key, label).await,
        )
}

/// What knows the server in which marks are left.
pub(crate) trait Redis {
    fn redis(&self) -> &redis::Client;
}

impl Redis for Context<World> {
    fn redis(&self) -> &redis::Client {
        &self.state().redis
    }
}

async fn connection(place: &impl Redis) -> Result<MultiplexedConnection, TaskError> {
    Ok(place.redis().get_multiplexed_async_connection().await?)
}

/// Adds it to the list as Python's client would write it.
pub(crate) async fn push(place: &impl Redis, key: &str, value: Value) -> Result<(), TaskError> {
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
    let () = connection(place).await?.rpush(key, text).await?;
    Ok(())
}

pub(crate) async fn count(place: &impl Redis, key: &str) -> Result<(), TaskError> {
    let () = connection(place).await?.incr(key, 1).await?;
    Ok(())
}

async fn echo_group_id(ctx: Context<World>, _: Value, key: String) -> Result<(), TaskError> {
    push(&ctx, &key, ctx.group_id().into()).await
}

async fn sum_and_record(
    ctx: Context<World>,
    values: Vec<Value>,
    key: String,
) -> Result<Value, TaskError> {
    let result = sum(&values)?;
    push(&ctx, &key, ctx.id().into()).await?;
    Ok(result)
}

async fn errback(ctx: Context<World>, request_id: String) -> Result<String, TaskError> {
    count(&ctx, &request_id).await?;
    Ok(request_id)
}
