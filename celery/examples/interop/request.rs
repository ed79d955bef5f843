//! Tasks that return parts of their request.

use std::time::Duration;

use celery::{Context, Map, Task, TaskError, Tasks, Value};

use crate::State;

type Ids = (Option<String>, Option<String>, Value);

const IDS: Task<(Value,), Ids> = Task::new("t.integration.tasks.ids").params(&["i"]);
const COLLECT_IDS: Task<(Value, Value), (Value, Ids)> =
    Task::new("t.integration.tasks.collect_ids").params(&["res", "i"]);
const RETURN_PRIORITY: Task<(Vec<Value>,), String> =
    Task::new("t.integration.tasks.return_priority").params(&["*args"]);
const RETURN_REQUEST_ETA: Task<(), Option<String>> =
    Task::new("t.integration.tasks.return_request_eta").params(&[]);
const RETURN_PROPERTIES: Task<(), Map> =
    Task::new("t.integration.tasks.return_properties").params(&[]);
const RETURN_REQUEST_TIME_LIMITS: Task<(), Map> =
    Task::new("t.integration.tasks.return_request_time_limits").params(&[]);
const TASK_WITH_DECLARED_TIME_LIMITS: Task<(), Map> =
    Task::new("t.integration.tasks.task_with_declared_time_limits")
        .params(&[])
        .time_limits(Some(Duration::from_secs(45)), Some(Duration::from_secs(60)));
pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .with(IDS, async |ctx, i| Ok::<_, TaskError>(ids(&ctx, i)))
        .with(COLLECT_IDS, async |ctx, res, i| {
            Ok::<_, TaskError>((res, ids(&ctx, i)))
        })
        .with(RETURN_PRIORITY, return_priority)
        .with(RETURN_REQUEST_ETA, return_request_eta)
        .with(RETURN_PROPERTIES, return_properties)
        .with(RETURN_REQUEST_TIME_LIMITS, time_limits)
        .with(TASK_WITH_DECLARED_TIME_LIMITS, time_limits)
}

fn ids(ctx: &Context<State>, i: Value) -> Ids {
    (ctx.root_id(), ctx.parent_id(), i)
}

async fn return_priority(ctx: Context<State>, _: Vec<Value>) -> Result<String, TaskError> {
    let priority = ctx.priority().map(|priority| priority.to_string());
    Ok(format!(
        "Priority: {}",
        priority.as_deref().unwrap_or("None")
    ))
}

async fn return_request_eta(ctx: Context<State>) -> Result<Option<String>, TaskError> {
    Ok(ctx.headers()?.eta.map(|eta| eta.into_owned()))
}

async fn return_properties(ctx: Context<State>) -> Result<Map, TaskError> {
    let properties = ctx.properties();
    let mut map = properties.extra.clone();
    map.insert("content_type", &*properties.content_type);
    map.insert("content_encoding", &*properties.content_encoding);
    map.insert("correlation_id", properties.correlation_id.as_deref());
    map.insert("reply_to", properties.reply_to.as_deref());
    map.insert("delivery_mode", properties.delivery_mode.map(i64::from));
    map.insert("priority", ctx.priority().map(i64::from));
    Ok(map)
}

async fn time_limits(ctx: Context<State>) -> Result<Map, TaskError> {
    let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
    let (soft, hard) = ctx.time_limits();
    Ok(Map::from([
        ("time_limit", seconds(hard)),
        ("soft_time_limit", seconds(soft)),
    ]))
}
