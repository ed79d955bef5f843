//! Tasks that retry.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use celery::{AutoRetry, Context, Exception, Map, RetryBackoff, Task, TaskError, Tasks, Value};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::arithmetic::add;
use crate::failing::{expected, unpickleable};

const RETRY: Task<(Option<Value>,), Value> = Task::new("t.integration.tasks.retry")
    .params(&["return_value=null"])
    .bound()
    .retry_delay(Duration::from_secs(1));
const RETRY_UNPICKLEABLE: Task<(Value, Value, RetryKwargs), ()> =
    Task::new("t.integration.tasks.retry_unpickleable")
        .params(&["foo", "bar", "retry_kwargs"])
        .bound()
        .retry_delay(Duration::from_secs(1));
const RETRY_ONCE: Task<Once, u32> = Task::new("t.integration.tasks.retry_once")
    .params(&["*args", "expires=null", "max_retries=1", "countdown=0.1"])
    .bound()
    .max_retries(1);
const RETRY_ONCE_PRIORITY: Task<Once, Option<u8>> =
    Task::new("t.integration.tasks.retry_once_priority")
        .params(&["*args", "expires=60.0", "max_retries=1", "countdown=0.1"])
        .bound()
        .max_retries(1);
const RETRY_ONCE_HEADERS: Task<OnceWithHeaders, Map> =
    Task::new("t.integration.tasks.retry_once_headers")
        .params(&["*args", "max_retries=1", "countdown=0.1"])
        .bound()
        .max_retries(1);
const RETRY_ONCE_IGNORE_RESULT: Task<(), u32> =
    Task::new("t.integration.tasks.retry_once_ignore_result")
        .params(&[])
        .bound()
        .ignore_result();
const RETRY_ONCE_WITH_RESULT: Task<(), u32> =
    Task::new("t.integration.tasks.retry_once_with_result")
        .params(&[])
        .bound();
const RETRY_WITH_ARGS_AFTER_KWARGS: Task<(Value, Value, Value), Map> =
    Task::new("t.integration.tasks.retry_with_args_after_kwargs")
        .params(&["foo", "bar", "label=null"])
        .bound()
        .max_retries(1);
const RETRY_WITH_KWARGS_AFTER_ARGS: Task<(Value, Value), Map> =
    Task::new("t.integration.tasks.retry_with_kwargs_after_args")
        .params(&["foo", "bar"])
        .bound()
        .max_retries(1);
const AUTO_RETRY: Task<(), u32> = Task::new("auto_retry_class_task")
    .params(&[])
    .max_retries(1)
    .autoretry(AutoRetry::on::<Empty>().backoff(RetryBackoff::new(1)));

/// The parameters `*args`, `max_retries` and `countdown`.
type OnceWithHeaders = (Vec<Value>, Option<u32>, Option<f64>);

/// The parameters `*args`, `expires`, `max_retries` and `countdown`.
type Once = (Vec<Value>, Option<f64>, Option<u32>, Option<f64>);

/// The options of the retry that the task requests.
#[derive(Serialize, Deserialize)]
struct RetryKwargs {
    countdown: Option<f64>,
    max_retries: Option<u32>,
}

/// An error that is retried automatically.
#[derive(Debug, thiserror::Error)]
#[error("no data yet")]
struct Empty;

pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .with(RETRY, retry)
        .with(RETRY_UNPICKLEABLE, retry_unpickleable)
        .with(RETRY_ONCE, retry_once)
        .with(RETRY_ONCE_PRIORITY, retry_once_priority)
        .with(RETRY_ONCE_HEADERS, retry_once_headers)
        .with(RETRY_ONCE_IGNORE_RESULT, retry_immediately)
        .with(RETRY_ONCE_WITH_RESULT, retry_immediately)
        .with(RETRY_WITH_ARGS_AFTER_KWARGS, retry_with_args)
        .with(RETRY_WITH_KWARGS_AFTER_ARGS, retry_with_kwargs)
        .with(AUTO_RETRY, auto_retry)
}

/// Returns a retry after `countdown` seconds, or after the default delay of the task.
fn retry_after(countdown: Option<f64>, max_retries: Option<u32>) -> Result<TaskError, TaskError> {
    let mut error = TaskError::retry();
    if let Some(seconds) = countdown {
        error = error.after(Duration::try_from_secs_f64(seconds)?);
    }
    if let Some(retries) = max_retries {
        error = error.at_most(retries);
    }
    Ok(error)
}

async fn retry(ctx: Context<State>, value: Option<Value>) -> Result<Value, TaskError> {
    if let Some(value) = value {
        let attempts = &ctx.state().attempts;
        if attempts.fetch_add(1, Ordering::Relaxed) >= 3 {
            attempts.store(0, Ordering::Relaxed);
            return Ok(value);
        }
    }
    let because = TaskError::failed(expected([]));
    Err(TaskError::retry()
        .after(Duration::from_secs(5))
        .because(because))
}

async fn retry_unpickleable(first: Value, _: Value, options: RetryKwargs) -> Result<(), TaskError> {
    let because = TaskError::failed(unpickleable(first));
    Err(retry_after(options.countdown, options.max_retries)?.because(because))
}

async fn retry_once(
    ctx: Context<State>,
    _: Vec<Value>,
    expires: Option<f64>,
    max_retries: Option<u32>,
    countdown: Option<f64>,
) -> Result<u32, TaskError> {
    if ctx.retries() > 0 {
        return Ok(ctx.retries());
    }
    let mut error = retry_after(countdown, max_retries)?;
    if let Some(seconds) = expires {
        error = error.expires_at(SystemTime::now() + Duration::try_from_secs_f64(seconds)?);
    }
    Err(error)
}

async fn retry_once_priority(
    ctx: Context<State>,
    _: Vec<Value>,
    _: Option<f64>,
    max_retries: Option<u32>,
    countdown: Option<f64>,
) -> Result<Option<u8>, TaskError> {
    match ctx.retries() {
        0 => Err(retry_after(countdown, max_retries)?),
        _ => Ok(ctx.priority()),
    }
}

async fn retry_once_headers(
    ctx: Context<State>,
    _: Vec<Value>,
    max_retries: Option<u32>,
    countdown: Option<f64>,
) -> Result<Map, TaskError> {
    match ctx.retries() {
        0 => Err(retry_after(countdown, max_retries)?),
        _ => Ok(ctx.custom_headers()),
    }
}

async fn retry_immediately(ctx: Context<State>) -> Result<u32, TaskError> {
    match ctx.retries() {
        0 => Err(TaskError::retry().after(Duration::ZERO)),
        retries => Ok(retries),
    }
}

async fn retry_with_args(
    ctx: Context<State>,
    first: Value,
    second: Value,
    label: Value,
) -> Result<Map, TaskError> {
    if ctx.retries() == 0 {
        let args = [add(&first, &1.into())?, add(&second, &1.into())?];
        return Err(TaskError::retry().after(Duration::ZERO).args(args));
    }
    let mut map = arguments(&ctx, first, second);
    map.insert("label", label);
    Ok(map)
}

async fn retry_with_kwargs(
    ctx: Context<State>,
    first: Value,
    second: Value,
) -> Result<Map, TaskError> {
    if ctx.retries() == 0 {
        let kwargs = [("foo", add(&first, &1.into())?)];
        return Err(TaskError::retry().after(Duration::ZERO).kwargs(kwargs));
    }
    Ok(arguments(&ctx, first, second))
}

fn arguments(ctx: &Context<State>, first: Value, second: Value) -> Map {
    Map::from([
        ("foo", first),
        ("bar", second),
        ("retries", i64::from(ctx.retries()).into()),
        ("is_eager", false.into()),
    ])
}

async fn auto_retry(ctx: Context<State>) -> Result<u32, TaskError> {
    match ctx.retries() {
        0 => {
            let shown = Exception::new("builtins", "ValueError", "").with_args([]);
            Err(TaskError::from(Empty).shown_as(shown))
        }
        retries => Ok(retries),
    }
}
