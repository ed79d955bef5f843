//! The built-in tasks of Celery, which every worker serves.

use std::time::Duration;

use celery_protocol::{Map, Raw, ResultDocument, ResultTree, Serializer, Value, WireSignature};
use serde::{Deserialize, Serialize};

use crate::boundary::{ChordResults, MemberResult};
use crate::canvas::Canvas;
use crate::execution::context::Context;
use crate::execution::error::{ReadyChord, TaskError};
use crate::execution::registry::Tasks;
use crate::task::{Kwargs, Task, TaskOptions};

/// Returns `pong`; a test of the path from a client to a worker.
const PING: Task<(), String> = Task::new("celery.ping").params(&[]);

/// Deletes expired results; sent once a day by Celery's scheduler.
const BACKEND_CLEANUP: Task<(), ()> = Task::new("celery.backend_cleanup").params(&[]);

/// Calls a task with each item as its argument.
const MAP: Task<(Value, Vec<Value>), Vec<Raw<'static>>> =
    Task::new("celery.map").params(&["task", "it"]);

/// Calls a task with each item as its list of arguments.
const STARMAP: Task<(Value, Vec<Vec<Value>>), Vec<Raw<'static>>> =
    Task::new("celery.starmap").params(&["task", "it"]);

/// Sends one starmap per `n` items.
const CHUNKS: Task<(Value, Vec<Value>, usize), Value> =
    Task::new("celery.chunks").params(&["task", "it", "n"]);

/// Returns the results of a group that replaced a task: all, or the one at `index`.
const ACCUMULATE: Task<(Vec<Value>, Option<usize>), Value> =
    Task::new("celery.accumulate").params(&["*args", "index=null"]);

/// Always fails, as in Celery: a chain is not a task.
const CHAIN: Task<(Vec<Value>, Map), ()> = Task::new("celery.chain").params(&["*args", "**kwargs"]);

/// Sends the tasks of a group. Only old clients send this task.
const GROUP: Task<Kwargs<OldGroup>, Value> = Task::new("celery.group").params(&[
    "tasks",
    "result",
    "group_id",
    "partial_args",
    "add_to_parent=true",
]);

#[derive(Serialize, Deserialize)]
struct OldGroup {
    tasks: Vec<Value>,
    result: Value,
    group_id: String,
    partial_args: Vec<Value>,
}

/// Sends the header of a chord. Only old clients send this task.
const CHORD: Task<Kwargs<OldChord>, Value> = Task::new("celery.chord").params(&[
    "header",
    "body",
    "partial_args=[]",
    "interval=null",
    "countdown=1",
    "max_retries=null",
    "eager=false",
    "**kwargs",
]);

#[derive(Serialize, Deserialize)]
struct OldChord {
    header: Value,
    body: Value,
    partial_args: Vec<Value>,
}

/// Polls the members of a chord until all have ended, for result backends that do not count them.
const CHORD_UNLOCK: Task<Kwargs<ChordToUnlock>, ()> = Task::new("celery.chord_unlock")
    .params(&[
        "group_id",
        "callback",
        "interval=null",
        "max_retries=null",
        "result=[]",
        "**kwargs",
    ])
    .options(TaskOptions {
        ignore_result: Some(true),
        max_retries: Some(None),
        ..TaskOptions::NONE
    });

#[derive(Serialize, Deserialize)]
struct ChordToUnlock {
    group_id: String,
    callback: Value,
    interval: Option<f64>,
    max_retries: Option<u32>,
    result: Vec<Value>,
}

/// Returns the built-in tasks. A task of the worker with the same name replaces one of them.
pub(crate) fn tasks() -> Tasks {
    Tasks::new()
        .with(PING, async || Ok::<_, TaskError>("pong".to_owned()))
        // All backends expire results automatically.
        .with(BACKEND_CLEANUP, async || Ok::<_, TaskError>(()))
        .with(MAP, map)
        .with(STARMAP, starmap)
        .with(CHUNKS, chunks)
        .with(ACCUMULATE, accumulate)
        .with(CHAIN, async |_, _| {
            let cause = "chain is not a real task";
            Err::<(), _>(TaskError::exception("NotImplementedError", cause))
        })
        .with(GROUP, group)
        .with(CHORD, chord)
        .with(CHORD_UNLOCK, unlock_chord)
}

async fn map(ctx: Context, task: Value, it: Vec<Value>) -> Result<Vec<Raw<'static>>, TaskError> {
    let items = it.into_iter().map(|item| vec![item]).collect();
    starmap(ctx, task, items).await
}

/// Calls the task with each item, one after the other, until a call fails.
async fn starmap(
    ctx: Context,
    task: Value,
    it: Vec<Vec<Value>>,
) -> Result<Vec<Raw<'static>>, TaskError> {
    let task = ctx.encode(&task)?;
    let task = WireSignature::read(&task).map_err(|error| invalid_argument("task", &error))?;
    let mut values = Vec::with_capacity(it.len());
    for item in it {
        let args = Raw::encode(Serializer::Json, &item)?;
        values.push(ctx.call(&task.task, args, Raw::json("{}")).await?);
    }
    Ok(values)
}

async fn chunks(ctx: Context, task: Value, it: Vec<Value>, n: usize) -> Result<Value, TaskError> {
    let task = Canvas::read(&ctx.encode(&task)?)?;
    let chunks = Canvas::chunks(&task, it, n);
    send(&ctx, chunks).await
}

async fn accumulate(args: Vec<Value>, index: Option<usize>) -> Result<Value, TaskError> {
    let Some(index) = index else {
        return Ok(args.into());
    };
    let out_of_range = || TaskError::exception("IndexError", "tuple index out of range");
    args.into_iter().nth(index).ok_or_else(out_of_range)
}

async fn group(ctx: Context, Kwargs(call): Kwargs<OldGroup>) -> Result<Value, TaskError> {
    let group = Canvas::group(read_canvases(&ctx, &call.tasks)?).given(call.partial_args);
    send(&ctx, group.set("task_id", call.group_id)).await?;
    Ok(call.result)
}

async fn chord(ctx: Context, Kwargs(call): Kwargs<OldChord>) -> Result<Value, TaskError> {
    let header = match call.header {
        Value::Array(tasks) => Canvas::group(read_canvases(&ctx, &tasks)?),
        group => Canvas::read(&ctx.encode(&group)?)?,
    };
    let body = Canvas::read(&ctx.encode(&call.body)?)?;
    send(&ctx, header.given(call.partial_args).then(body)).await
}

async fn unlock_chord(ctx: Context, Kwargs(call): Kwargs<ChordToUnlock>) -> Result<(), TaskError> {
    let ChordToUnlock {
        group_id,
        callback,
        interval,
        max_retries,
        result,
    } = call;
    let services = &ctx.job().services;
    let backend = services.backend.as_deref().ok_or_else(|| {
        let cause = "cannot poll a chord: the worker has no result backend";
        TaskError::exception("NotImplementedError", cause)
    })?;
    let members = result.iter().map(ResultTree::from_value);
    let members = members.collect::<Result<Vec<_>, _>>();
    let members = members.map_err(|error| invalid_argument("result", &error))?;
    let tree = ResultTree::group(group_id.as_str(), members);
    let ids: Vec<_> = tree.leaf_ids().into_iter().map(str::to_owned).collect();
    let ready = |results| {
        Ok::<_, TaskError>(TaskError::join(ReadyChord {
            body: ctx.encode(&callback)?,
            group_id: group_id.clone(),
            results,
        }))
    };
    let documents = backend.fetch(&ids).await;
    let ended_member = |(id, document): (String, Option<ResultDocument<'static>>)| {
        let document = document.filter(|document| document.status.is_ready())?;
        Some(MemberResult::new(id, document.status, document.result))
    };
    let members = documents.map(|found| ids.into_iter().zip(found).map(ended_member).collect());
    if let Ok(Some(members)) = members {
        return Err(ready(Ok(ChordResults::new(members, Some(tree))))?);
    }
    if max_retries.is_some_and(|max| ctx.retries() >= max) {
        let mut cause = "MaxRetriesExceededError('no retries are left')".to_owned();
        if let Err(error) = members {
            cause = format!("{cause} (after {error})");
        }
        return Err(ready(Err(cause))?);
    }
    let interval = interval.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let retry = TaskError::retry().after(interval.unwrap_or(services.chord_retry_interval));
    Err(match max_retries {
        Some(max) => retry.at_most(max),
        None => retry,
    })
}

fn read_canvases(ctx: &Context, tasks: &[Value]) -> Result<Vec<Canvas>, TaskError> {
    let read = |task| Ok(Canvas::read(&ctx.encode(task)?)?);
    tasks.iter().map(read).collect()
}

/// Sends a canvas and returns its result tree in the form of Celery.
async fn send(ctx: &Context, canvas: Canvas) -> Result<Value, TaskError> {
    Ok(Value::from_serialize(&ctx.apply(canvas).await?)?)
}

fn invalid_argument(what: &str, error: &celery_protocol::DecodeError) -> TaskError {
    TaskError::exception("TypeError", format!("cannot read {what}: {error}"))
}
