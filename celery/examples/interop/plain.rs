//! Tasks that compute a value from their arguments.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use celery::{Context, Map, Task, TaskError, Tasks, Value};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::arithmetic::{add, is_true, multiply, sum};

const XY: [&str; 2] = ["x", "y"];

pub(crate) const IDENTITY: Task<(Value,), Value> =
    Task::new("t.integration.tasks.identity").params(&["x"]);
pub(crate) const ADD: Task<(Value, Value, Value), Value> =
    Task::new("t.integration.tasks.add").params(&["x", "y", "z=null"]);
const MUL: Task<(Value, Value), Value> = Task::new("t.integration.tasks.mul").params(&XY);
const ADD_NOT_TYPED: Task<(Value, Value), Value> =
    Task::new("t.integration.tasks.add_not_typed").params(&XY);
const ADD_IGNORE_RESULT: Task<(Value, Value), Value> =
    Task::new("t.integration.tasks.add_ignore_result")
        .params(&XY)
        .ignore_result();
const ADD_WITH_RESULT: Task<(Value, Value), Value> =
    Task::new("t.integration.tasks.add_with_result").params(&XY);
pub(crate) const TSUM: Task<(Vec<Value>,), Value> =
    Task::new("t.integration.tasks.tsum").params(&["nums"]);
const XSUM: Task<(Vec<Value>,), Value> = Task::new("t.integration.tasks.xsum").params(&["nums"]);
const DELAYED_SUM: Task<(Vec<Value>, f64), Value> =
    Task::new("t.integration.tasks.delayed_sum").params(&["numbers", "pause_time=1"]);
const DELAYED_SUM_WITH_SOFT_GUARD: Task<(Vec<Value>, f64), Value> =
    Task::new("t.integration.tasks.delayed_sum_with_soft_guard")
        .params(&["numbers", "pause_time=1"]);
const SLEEPING: Task<(f64, Map), ()> =
    Task::new("t.integration.tasks.sleeping").params(&["i", "**_"]);
const PRINT_UNICODE: Task<(String, String), ()> = Task::new("t.integration.tasks.print_unicode")
    .params(&[r#"log_message="grün""#, r#"print_message="über""#]);
const RETURN_EXCEPTION: Task<(Value,), (Value, bool)> =
    Task::new("t.integration.tasks.return_exception").params(&["e"]);
const WRITE_TO_FILE: Task<(String, i64), i64> =
    Task::new("t.integration.tasks.write_to_file_and_return_int").params(&["file_name", "i"]);
pub(crate) const REPLACED_WITH_ME: Task<(), bool> =
    Task::new("t.integration.tasks.replaced_with_me").params(&[]);
const REBUILD_SIGNATURE: Task<(Value,), ()> =
    Task::new("t.integration.tasks.rebuild_signature").params(&["sig_dict"]);
const ADD_PYDANTIC: Task<(Pair,), Sum> =
    Task::new("t.integration.tasks.add_pydantic").params(&["data"]);
const ADD_PYDANTIC_STRING_ANNOTATIONS: Task<(Pair,), Sum> =
    Task::new("t.integration.tasks.add_pydantic_string_annotations").params(&["data"]);

#[derive(Serialize, Deserialize)]
struct Pair {
    x: i64,
    y: i64,
}

#[derive(Serialize)]
struct Sum {
    result: i64,
}

pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .with(IDENTITY, async |x| Ok::<_, TaskError>(x))
        .with(ADD, async |x, y, z| {
            let sum = add(&x, &y)?;
            if is_true(&z) { add(&sum, &z) } else { Ok(sum) }
        })
        .with(MUL, async |x, y| multiply(&x, &y))
        .with(ADD_NOT_TYPED, async |x, y| add(&x, &y))
        .with(ADD_IGNORE_RESULT, async |x, y| add(&x, &y))
        .with(ADD_WITH_RESULT, async |x, y| add(&x, &y))
        .with(TSUM, async |numbers: Vec<Value>| sum(&numbers))
        .with(XSUM, xsum)
        .with(DELAYED_SUM, delayed_sum)
        .with(DELAYED_SUM_WITH_SOFT_GUARD, delayed_sum_with_soft_guard)
        .with(SLEEPING, async |seconds, _| sleep(seconds).await)
        .with(PRINT_UNICODE, print_unicode)
        .with(RETURN_EXCEPTION, async |e| Ok::<_, TaskError>((e, true)))
        .with_blocking(WRITE_TO_FILE, write_to_file)
        .with(REPLACED_WITH_ME, async || Ok::<_, TaskError>(true))
        .with(REBUILD_SIGNATURE, async |signature| {
            check_signature(&signature)
        })
        .with(ADD_PYDANTIC, add_pair)
        .with(ADD_PYDANTIC_STRING_ANNOTATIONS, add_pair)
}

async fn sleep(seconds: f64) -> Result<(), TaskError> {
    tokio::time::sleep(Duration::try_from_secs_f64(seconds)?).await;
    Ok(())
}

async fn xsum(numbers: Vec<Value>) -> Result<Value, TaskError> {
    let flat: Result<Vec<_>, _> = numbers
        .into_iter()
        .map(|number| match number.as_array() {
            Some(inner) => sum(inner),
            None => Ok(number),
        })
        .collect();
    sum(&flat?)
}

async fn delayed_sum(numbers: Vec<Value>, pause: f64) -> Result<Value, TaskError> {
    sleep(pause).await?;
    sum(&numbers)
}

async fn delayed_sum_with_soft_guard(
    ctx: Context<State>,
    numbers: Vec<Value>,
    pause: f64,
) -> Result<Value, TaskError> {
    tokio::select! {
        slept = sleep(pause) => slept?,
        () = ctx.soft_time_limit() => return Ok(Value::Int(0)),
    }
    sum(&numbers)
}

async fn print_unicode(log_message: String, print_message: String) -> Result<(), TaskError> {
    tracing::warn!("{log_message}");
    println!("{print_message}");
    Ok(())
}

fn write_to_file(name: String, number: i64) -> Result<i64, TaskError> {
    let mut file = File::options().append(true).create(true).open(name)?;
    writeln!(file, "{number}")?;
    Ok(number)
}

async fn add_pair(pair: Pair) -> Result<Sum, TaskError> {
    let result = pair.x.checked_add(pair.y);
    let result = result
        .ok_or_else(|| TaskError::exception("OverflowError", "the result exceeds 64 bits"))?;
    Ok(Sum { result })
}

/// Checks that the value and all signatures in it are signatures.
fn check_signature(value: &Value) -> Result<(), TaskError> {
    if value.get("task").and_then(Value::as_str).is_none() {
        let message = format!("{value:?} is not a signature object");
        return Err(TaskError::exception("TypeError", message));
    }
    let kwargs = value.get("kwargs");
    let part = |name: &str| kwargs.and_then(|kwargs| kwargs.get(name));
    if value.get("subtask_type").and_then(Value::as_str).is_none() {
        return Ok(());
    }
    for list in ["tasks", "header"] {
        let members = part(list).and_then(Value::as_array).unwrap_or_default();
        members.iter().try_for_each(check_signature)?;
    }
    part("body").map_or(Ok(()), check_signature)
}
