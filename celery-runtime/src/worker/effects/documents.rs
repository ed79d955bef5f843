//! Builds result documents from [`StateUpdate`]s and failures. Pure.

use std::borrow::Cow;
use std::time::SystemTime;

use celery_protocol::{Exception, Raw, ResultDocument, ResultTree, Serializer, State, time};

use crate::execution::{FailureInfo, Job, WorkerContext};
use crate::worker::delivery::event::StateUpdate;
use crate::worker::workflow::effect::SkippedTask;

/// Returns the document of a state of the job's task.
pub(crate) fn document<'a>(
    job: &'a Job,
    update: &'a StateUpdate,
    children: &[ResultTree],
    now: SystemTime,
) -> ResultDocument<'a> {
    let serializer = job.services.result_serializer;
    let (state, result, traceback) = match update {
        StateUpdate::Started => (State::Started, started(job), None),
        StateUpdate::Success(value) => (State::Success, value.as_borrowed(), None),
        StateUpdate::Failure(failure_info) => failed(State::Failure, failure_info, serializer),
        StateUpdate::Retry(failure_info) => failed(State::Retry, failure_info, serializer),
        StateUpdate::Revoked(reason) => (State::Revoked, revoked(reason, serializer), None),
    };
    let mut document = job.document(state, result);
    document.traceback = traceback.map(Cow::Borrowed);
    document.children = Some(match update {
        // In Celery, the retry counts as a child, with the id of this task.
        StateUpdate::Retry(_) => trees(&[ResultTree::task(&*job.id)], serializer),
        _ => trees(children, serializer),
    });
    describe(&mut document, job, now);
    document
}

/// Returns the document of a task that this worker cannot run.
pub(crate) fn rejected<'a>(
    id: &'a str,
    failure_info: &'a FailureInfo,
    serializer: Serializer,
    now: SystemTime,
) -> ResultDocument<'a> {
    let (state, result, traceback) = failed(State::Failure, failure_info, serializer);
    let mut document = ResultDocument::new(Cow::Borrowed(id), state, result);
    document.traceback = traceback.map(Cow::Borrowed);
    document.children = Some(Raw::json("[]"));
    document.date_done = Some(Cow::Owned(time::format(now)));
    document
}

/// Returns the document of a task that never runs, because a task before it failed.
pub(crate) fn skipped<'a>(
    task: &'a SkippedTask,
    context: &WorkerContext,
    now: SystemTime,
) -> ResultDocument<'a> {
    let serializer = context.result_serializer;
    let (state, result, traceback) = failed(State::Failure, &task.failure_info, serializer);
    let mut document = ResultDocument::new(Cow::Borrowed(&*task.id), state, result);
    document.traceback = traceback.map(Cow::Borrowed);
    document.children = Some(trees(&task.children, serializer));
    document.date_done = Some(Cow::Owned(time::format(now)));
    document.group_id = task.group_id.as_deref().map(Cow::Borrowed);
    document.parent_id = task.parent_id.as_deref().map(Cow::Borrowed);
    if context.result_extended
        && let Some(signature) = &task.signature
    {
        document.name = Some(signature.task.clone());
        document.args = Some(signature.args.as_borrowed());
        document.kwargs = Some(signature.kwargs.as_borrowed());
    }
    document
}

/// Returns the document of a task that was revoked before it started.
pub(crate) fn revoked_unstarted(
    id: &str,
    serializer: Serializer,
    now: SystemTime,
) -> ResultDocument<'_> {
    let result = revoked("revoked", serializer);
    let mut document = ResultDocument::new(Cow::Borrowed(id), State::Revoked, result);
    document.date_done = Some(Cow::Owned(time::format(now)));
    document
}

/// Adds the fields from the message of the task.
fn describe<'a>(document: &mut ResultDocument<'a>, job: &'a Job, now: SystemTime) {
    if document.status.is_ready() {
        document.date_done = Some(Cow::Owned(time::format(now)));
    }
    let Ok(headers) = job.headers() else { return };
    document.group_id = headers.group;
    document.parent_id = headers.parent_id;
    if !job.services.result_extended {
        return;
    }
    document.name = Some(Cow::Borrowed(&*job.task));
    document.worker = Some(Cow::Borrowed(&job.services.hostname));
    document.retries = Some(job.retries);
    let queue = &job.message.properties.delivery_info.routing_key;
    document.queue = Some(Cow::Borrowed(queue));
    document.stamped_headers = headers.stamped_headers;
    if let Ok(payload) = job.payload()
        && let Ok(body) = payload.body()
    {
        document.args = Some(body.args.into_owned());
        document.kwargs = Some(body.kwargs.into_owned());
    }
}

/// Encodes each child in Celery's form of a result: `[[id, parent], children]`.
fn trees(children: &[ResultTree], serializer: Serializer) -> Raw<'static> {
    if children.is_empty() {
        return Raw::json("[]");
    }
    let trees: Vec<_> = children.iter().map(ResultTree::to_value).collect();
    encode(&trees, serializer)
}

fn started(job: &Job) -> Raw<'static> {
    let mut info = celery_protocol::Map::new();
    info.insert("pid", i64::from(std::process::id()));
    info.insert("hostname", job.services.hostname.as_str());
    encode(&info, job.services.result_serializer)
}

fn failed(
    state: State,
    failure_info: &FailureInfo,
    serializer: Serializer,
) -> (State, Raw<'static>, Option<&str>) {
    let result = encode(&failure_info.exception, serializer);
    (state, result, failure_info.traceback.as_deref())
}

fn revoked(reason: &str, serializer: Serializer) -> Raw<'static> {
    let exception = Exception::new("celery.exceptions", "TaskRevokedError", reason);
    encode(&exception, serializer)
}

/// Encodes text, numbers or maps of them, which every serializer supports.
fn encode<T: serde::Serialize>(value: &T, serializer: Serializer) -> Raw<'static> {
    Raw::encode(serializer, value).unwrap_or(Raw::NULL)
}
