//! Registered tasks without their types: [`ErasedTask`].

use std::marker::PhantomData;
use std::sync::Arc;

use celery_protocol::{Arguments, DecodeError, Payload, Raw};
use serde::Serialize;

use crate::boundary::BoxFuture;
use crate::execution::context::Context;
use crate::execution::error::TaskError;
use crate::execution::failed::FailureContext;
use crate::execution::handler::{BlockingHandler, Handler};
use crate::execution::job::Job;
use crate::task::{Params, TaskArgs};

/// A task that decodes its arguments, runs its handler and encodes the value.
pub(crate) trait ErasedTask: Send + Sync {
    fn run(self: Arc<Self>, job: Arc<Job>) -> BoxFuture<'static, RunResult>;
}

/// The value that a task returned, encoded by the result serializer; `None` if nothing uses it.
pub(crate) type RunResult = Result<Option<Raw<'static>>, RunError>;

/// The reason why a task returned no value.
#[derive(Debug)]
pub(crate) enum RunError {
    Error(TaskError),
    /// A panic in a child process. A panic in this process unwinds instead.
    Panic(String),
    Lost(ProcessLost),
}

/// The loss of the child process that was to run a task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProcessLost {
    /// The message of Celery's `WorkerLostError`.
    pub(crate) message: String,
    /// Whether the task may have started.
    pub(crate) began: bool,
}

impl From<TaskError> for RunError {
    fn from(error: TaskError) -> Self {
        Self::Error(error)
    }
}

/// Decodes the arguments of a call and converts them to the types of the handler.
fn decode_args<A: TaskArgs>(job: &Job, params: &Params) -> Result<A, TaskError> {
    let type_error = |error: String| TaskError::exception("TypeError", error);
    let payload = payload(job)?;
    let call = params.bind(arguments(&payload)?);
    let call = call.map_err(|error| type_error(error.to_string()))?;
    A::from_call(call).map_err(|error| type_error(error.to_string()))
}

/// Adds to a retry with new arguments those of this call that it keeps. Other errors are returned
/// unchanged.
fn complete_retry(job: &Job, mut error: TaskError, params: &Params) -> TaskError {
    let changes = error.changes_mut();
    let Some(changes) = changes.filter(|changes| changes.is_incomplete()) else {
        return error;
    };
    let completed = payload(job).and_then(|payload| {
        let completed = changes.complete(params, &arguments(&payload)?);
        completed.map_err(|error| undecodable(&error))
    });
    completed.err().unwrap_or(error)
}

/// Encodes the value of the handler, if something uses it.
fn encode_value<R: Serialize>(job: &Job, value: &R) -> RunResult {
    if !job.wants_value {
        return Ok(None);
    }
    let encoded = Raw::encode(job.services.result_serializer, value);
    let encoded = encoded
        .map_err(|error| TaskError::named("kombu.exceptions", "EncodeError", error.to_string()))?;
    Ok(Some(encoded))
}

fn payload(job: &Job) -> Result<Payload<'_>, TaskError> {
    job.payload().map_err(|error| undecodable(&error))
}

fn arguments<'a>(payload: &'a Payload<'_>) -> Result<Arguments<'a>, TaskError> {
    let arguments = payload.body().and_then(|body| body.arguments());
    arguments.map_err(|error| undecodable(&error))
}

/// Converts a decoding error. The message decoder has checked the structure of the body, so only
/// the text of an argument can still be malformed.
fn undecodable(error: &DecodeError) -> TaskError {
    TaskError::named("kombu.exceptions", "DecodeError", error.to_string())
}

/// A task with an async handler.
pub(crate) struct AsyncTask<M, A, R, S, H> {
    params: Params,
    handler: H,
    state: Arc<S>,
    types: PhantomData<fn(M, A) -> R>,
}

impl<M, A, R, S, H> AsyncTask<M, A, R, S, H> {
    pub(crate) fn new(params: Params, handler: H, state: Arc<S>) -> Self {
        Self {
            params,
            handler,
            state,
            types: PhantomData,
        }
    }
}

impl<M, A, R, S, H> ErasedTask for AsyncTask<M, A, R, S, H>
where
    M: Send + Sync + 'static,
    A: TaskArgs,
    R: Serialize + Send + Sync + 'static,
    S: Send + Sync + 'static,
    H: Handler<M, A, R, S>,
{
    fn run(self: Arc<Self>, job: Arc<Job>) -> BoxFuture<'static, RunResult> {
        Box::pin(async move {
            let args = decode_args::<A>(&job, &self.params)?;
            let context = Context::new(Arc::clone(&job), Arc::clone(&self.state));
            match self.handler.call(context, args).await {
                Ok(value) => encode_value(&job, &value),
                Err(error) => Err(complete_retry(&job, error, &self.params).into()),
            }
        })
    }
}

/// A task with a blocking handler, which runs on a thread of the worker's
/// [`BlockingPool`](crate::execution::BlockingPool).
pub(crate) struct BlockingTask<M, A, R, S, H> {
    params: Params,
    handler: Arc<H>,
    state: Arc<S>,
    types: PhantomData<fn(M, A) -> R>,
}

impl<M, A, R, S, H> BlockingTask<M, A, R, S, H> {
    pub(crate) fn new(params: Params, handler: H, state: Arc<S>) -> Self {
        Self {
            params,
            handler: Arc::new(handler),
            state,
            types: PhantomData,
        }
    }
}

impl<M, A, R, S, H> ErasedTask for BlockingTask<M, A, R, S, H>
where
    M: Send + Sync + 'static,
    A: TaskArgs,
    R: Serialize + Send + Sync + 'static,
    S: Send + Sync + 'static,
    H: BlockingHandler<M, A, R, S>,
{
    fn run(self: Arc<Self>, job: Arc<Job>) -> BoxFuture<'static, RunResult> {
        Box::pin(async move {
            let args = decode_args::<A>(&job, &self.params)?;
            let context = Context::new(Arc::clone(&job), Arc::clone(&self.state));
            let handler = Arc::clone(&self.handler);
            let thread = job
                .services
                .blocking
                .run(&job.task, move || handler.call(context, args));
            match thread.await {
                Ok(Ok(value)) => encode_value(&job, &value),
                Ok(Err(error)) => Err(complete_retry(&job, error, &self.params).into()),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {
                    let cause = "the worker's threads were shut down";
                    Err(TaskError::exception("RuntimeError", cause).into())
                }
            }
        })
    }
}

/// An errback. In a message the id of the failed task comes before its own arguments.
pub(crate) struct Errback {
    /// The maximum number of positional arguments of its own, if there is one.
    max_positional: Option<usize>,
    run: Arc<dyn ErasedTask>,
}

impl Errback {
    pub(crate) fn new(max_positional: Option<usize>, run: Arc<dyn ErasedTask>) -> Self {
        Self {
            max_positional,
            run,
        }
    }

    /// Converts the job of a message to one with a [`FailureContext`]: removes the id of the
    /// failed task from the arguments. An immutable errback is sent without the id.
    fn with_failure(&self, job: &Job) -> Result<Job, TaskError> {
        let payload = payload(job)?;
        let body = payload.body().map_err(|error| undecodable(&error))?;
        let mut args = body.args.elements().map_err(|error| undecodable(&error))?;
        let mut failed_id = String::new();
        if self.max_positional.is_some_and(|max| args.len() > max) {
            failed_id = args.remove(0).decode().unwrap_or_default();
        }
        let args = Raw::encode(payload.serializer(), &args[..])?;
        let failure = Arc::new(FailureContext::of_id(failed_id));
        let services = Arc::clone(&job.services);
        let task = Arc::clone(&job.task);
        let call = Job::in_place(services, &job.id, task, &args, &body.kwargs, Some(failure))?;
        Ok(Job {
            wants_value: job.wants_value,
            ..call
        })
    }
}

impl ErasedTask for Errback {
    fn run(self: Arc<Self>, mut job: Arc<Job>) -> BoxFuture<'static, RunResult> {
        Box::pin(async move {
            if job.failure.is_none() {
                job = Arc::new(self.with_failure(&job)?);
            }
            Arc::clone(&self.run).run(job).await
        })
    }
}
