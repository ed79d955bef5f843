//! The handlers of the examples' tasks, which a worker needs.

use std::time::Duration;

use celery::{Context, Map, TaskError, Tasks, Value};
use serde::Serialize;

use crate::tasks::{ADD, DIVIDE, ECHO, Echo, FAIL, MUL, Number, PROGRESS, RETRY, SLEEP, SUB, XSUM};

/// Returns all tasks with their handlers.
pub(crate) fn all() -> Tasks {
    Tasks::new()
        .with(ADD, async |x, y| {
            arithmetic(x, y, i64::checked_add, |x, y| x + y)
        })
        .with(SUB, async |x, y| {
            arithmetic(x, y, i64::checked_sub, |x, y| x - y)
        })
        .with(MUL, async |x, y| {
            arithmetic(x, y, i64::checked_mul, |x, y| x * y)
        })
        .with(DIVIDE, divide)
        .with(XSUM, xsum)
        .with(SLEEP, sleep)
        .with(FAIL, fail)
        .with(RETRY, retry)
        .with(ECHO, echo)
        .with(PROGRESS, progress)
}

#[derive(Serialize)]
struct Step {
    current: u32,
    total: u32,
}

fn arithmetic(
    x: Number,
    y: Number,
    ints: fn(i64, i64) -> Option<i64>,
    floats: fn(f64, f64) -> f64,
) -> Result<Number, TaskError> {
    match (x, y) {
        (Number::Int(x), Number::Int(y)) => ints(x, y)
            .map(Number::Int)
            .ok_or_else(|| TaskError::exception("OverflowError", "the result has over 64 bits")),
        (x, y) => Ok(Number::Float(floats(x.as_f64(), y.as_f64()))),
    }
}

async fn divide(x: Number, y: Number) -> Result<f64, TaskError> {
    if y.as_f64() == 0.0 {
        // Python's messages.
        let message = match (x, y) {
            (Number::Int(_), Number::Int(_)) => "division by zero",
            _ => "float division by zero",
        };
        return Err(TaskError::exception("ZeroDivisionError", message));
    }
    Ok(x.as_f64() / y.as_f64())
}

async fn xsum(numbers: Vec<Number>) -> Result<Number, TaskError> {
    numbers.into_iter().try_fold(Number::Int(0), |sum, number| {
        arithmetic(sum, number, i64::checked_add, |x, y| x + y)
    })
}

async fn sleep(seconds: f64) -> Result<f64, TaskError> {
    tokio::time::sleep(Duration::try_from_secs_f64(seconds)?).await;
    Ok(seconds)
}

async fn fail(message: String) -> Result<(), TaskError> {
    Err(TaskError::exception("ValueError", message))
}

async fn retry(ctx: Context, times: u32) -> Result<u32, TaskError> {
    if ctx.retries() < times {
        return Err(TaskError::retry().after(Duration::ZERO).at_most(times));
    }
    Ok(ctx.retries())
}

async fn echo(args: Vec<Value>, kwargs: Map) -> Result<Echo, TaskError> {
    Ok(Echo { args, kwargs })
}

async fn progress(ctx: Context, steps: u32) -> Result<u32, TaskError> {
    for current in 1..=steps {
        let step = Step {
            current,
            total: steps,
        };
        ctx.update_state("PROGRESS", step)
            .await
            .map_err(TaskError::from)?;
    }
    Ok(steps)
}
