//! Sending tasks: [`Client`].

pub(crate) mod compose;
mod event;
mod group;
mod reader;
mod result;
mod send;
mod sendable;
mod window;

use std::sync::Arc;

use celery_protocol::{Accept, EncodeError, ResultTree, Serializer, Value};
use serde::Serialize;
use tokio::time::Instant;

use crate::app::inner::AppInner;
use crate::backoff::Backoff;
use crate::boundary::{Broker, Publication, ResultBackend, ServiceError, ServiceErrorKind, Store};
use crate::canvas::{Canvas, CanvasError, PlanContext, Signature};
use crate::client::send::SentCanvas;
use crate::client::sendable::ResultSource;
use crate::env;
use crate::env::Clock;
use crate::logical_clock::LogicalClock;
use crate::queues::QueueNotFound;
use crate::task::{Conflict, Params, Task, TaskArgs, Unique, take_lock};
use compose::Sender;
use reader::ResultReader;
use window::SendWindow;

pub use crate::client::sendable::Sendable;
pub use group::{Completions, GroupResult};
pub use result::{AnyResult, AsyncResult, ResultError, TaskFailure};

pub(crate) use crate::client::send::no_backend;

/// A client, which sends tasks to workers in any language and reads their results.
///
/// Cloning is cheap; clones share their connections. Created by
/// [`App::client`](crate::App::client).
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<ClientInner>,
}

#[derive(Debug)]
struct ClientInner {
    broker: Arc<dyn Broker>,
    store: Option<Arc<dyn Store>>,
    reader: Arc<ResultReader>,
    clock: Clock,
    logical_clock: LogicalClock,
    sender: Sender,
    window: SendWindow,
}

/// An error in sending a task. It was not sent, unless the error is
/// [in doubt](Self::is_in_doubt).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The serializer cannot express the arguments.
    #[error("cannot encode the message of task {task}: {cause}")]
    Encode {
        /// The task's name.
        task: String,
        /// The error of the serializer.
        cause: EncodeError,
    },
    /// A canvas is invalid.
    #[error("cannot send {task}: {cause}")]
    Canvas {
        /// The task's name, or `celery.chain`, `celery.group` or `celery.chord`.
        task: String,
        /// The error and its path in the canvas.
        cause: CanvasError,
    },
    /// The result backend does not support chords, or could not register one.
    #[error("{task} was not sent: {cause}")]
    Chord {
        /// The task's name, or `celery.chain`, `celery.group` or `celery.chord`.
        task: String,
        /// The error of the backend.
        cause: ServiceError,
    },
    /// The queue of the task is not declared and must not be created
    /// (`task_create_missing_queues`).
    #[error("task {task} was not sent: {cause}")]
    Queue {
        /// The task's name.
        task: String,
        /// The error with the queue and the remedy.
        cause: QueueNotFound,
    },
    /// The result backend could not prepare for the result.
    #[error("task {task} was not sent, because its result could not be received: {cause}")]
    Backend {
        /// The task's name.
        task: String,
        /// The error of the backend.
        cause: ServiceError,
    },
    /// A unique instance of the task already exists; see [`Unique`](crate::Unique).
    #[error("task {task} was not sent: a unique instance ({holder}) already exists")]
    NotUnique {
        /// The task's name.
        task: String,
        /// The id of the existing instance.
        holder: String,
    },
    /// The store failed, so it is unknown whether a unique instance already exists.
    #[error("task {task} was not sent, because its unique lock could not be taken: {cause}")]
    Store {
        /// The task's name.
        task: String,
        /// The error of the store.
        cause: ServiceError,
    },
    /// The broker did not accept the message, or did not answer.
    #[error("task {task} {}: {cause}", outcome(cause))]
    Broker {
        /// The task's name.
        task: String,
        /// The error of the broker.
        cause: ServiceError,
    },
}

/// What an error of the broker means for the task.
fn outcome(cause: &ServiceError) -> &'static str {
    match cause.is_in_doubt() {
        true => "may not have been sent",
        false => "was not sent",
    }
}

impl SendError {
    /// Returns whether the task may have been sent, because the broker has not answered. Sending
    /// it again may then run it twice.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, Self::Broker { cause, .. } if cause.is_in_doubt())
    }

    /// Returns whether sending again later may succeed. After a lost connection or a timeout the
    /// broker may have accepted the message nevertheless.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Broker { cause, .. }
            | Self::Backend { cause, .. }
            | Self::Chord { cause, .. }
            | Self::Store { cause, .. } => cause.is_transient(),
            // The existing instance may have ended by then.
            Self::NotUnique { .. } => true,
            Self::Encode { .. } | Self::Canvas { .. } | Self::Queue { .. } => false,
        }
    }
}

impl Client {
    pub(crate) fn new(app: &AppInner) -> Self {
        let AppInner {
            broker,
            backend,
            store,
            config,
            queues,
            clock,
            logical_clock,
        } = app.clone();
        let reply_to = backend
            .as_deref()
            .and_then(ResultBackend::reply_to)
            .unwrap_or_else(env::uuid);
        let reader = Arc::new(ResultReader::new(backend, config.operation_timeout));
        let window = SendWindow::new(BATCH_SIZE, config.publish_wait);
        let sender = Sender {
            config,
            queues,
            origin: format!("gen{}@{}", std::process::id(), crate::hostname::hostname()),
            reply_to,
        };
        Self {
            inner: Arc::new(ClientInner {
                broker,
                store,
                reader,
                clock,
                logical_clock,
                sender,
                window,
            }),
        }
    }

    /// Sends a task with these arguments.
    ///
    /// # Errors
    ///
    /// Fails if an argument cannot be encoded, if the queue of the task must not be created, or if
    /// result backend and broker do not accept the task within the operation timeout (5 s by
    /// default). A client has 1000 messages for one queue in flight; further sends wait for at most
    /// [`Config::publish_wait`](crate::Config::publish_wait) before that timeout begins.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have sent the task.
    pub async fn send<A: TaskArgs, R>(
        &self,
        task: Task<A, R>,
        args: A,
    ) -> Result<AsyncResult<R>, SendError> {
        let canvas = task.s(args).into_canvas();
        let sent = self.send_one(self.plan(canvas, &PlanContext::default()));
        let result = sent.await?.result;
        Ok(AsyncResult::of(result, Arc::clone(&self.inner.reader)))
    }

    /// Sends a task by name, such as one that exists only in Python. `args` must serialize as an
    /// array and `kwargs` as a map; `()` is an empty one.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have sent the task.
    pub async fn send_by_name(
        &self,
        task: &str,
        args: impl Serialize + Send,
        kwargs: impl Serialize + Send,
    ) -> Result<AsyncResult<Value>, SendError> {
        let signature = Signature::named(task.to_owned(), args, kwargs);
        self.apply(signature).await
    }

    /// Sends a signature or the first tasks of a canvas: the first step of a chain, all members of
    /// a group, or the header of a chord. Workers send the other tasks.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`send`](Self::send). Also fails if a part of the canvas is invalid,
    /// and if it contains a chord and the result backend does not support chords. If one of several
    /// tasks fails, the others may have been sent.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent some of the tasks.
    pub async fn apply<C: Sendable>(&self, canvas: C) -> Result<C::Result, SendError> {
        let canvas = canvas.into_canvas();
        let sent = self.send_one(self.plan(canvas, &PlanContext::default()));
        let result = sent.await?.result;
        Ok(C::result(result, self.source()))
    }

    /// Sends several signatures or canvases, up to 1000 messages in one round trip if the broker
    /// supports it. Returns one result per canvas, in the same order.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent some of the tasks.
    pub async fn apply_all<C: Sendable>(
        &self,
        canvases: impl IntoIterator<Item = C>,
    ) -> Vec<Result<C::Result, SendError>> {
        let canvases = canvases.into_iter().map(C::into_canvas);
        let context = PlanContext::default();
        let planned = canvases.map(|canvas| self.plan(canvas, &context));
        let sent = self.send_all(planned.collect()).await;
        let result = |sent: SentCanvas| C::result(sent.result, self.source());
        sent.into_iter().map(|sent| sent.map(result)).collect()
    }

    /// Sends a canvas from a running task. Also returns the results of the tasks that are sent now.
    pub(crate) async fn apply_in_context<C: Sendable>(
        &self,
        canvas: Canvas,
        context: &PlanContext,
    ) -> Result<(C::Result, Vec<ResultTree>), SendError> {
        let sent = self.send_one(self.plan(canvas, context)).await?;
        Ok((C::result(sent.result, self.source()), sent.children))
    }

    /// Checks that the messages of a canvas can be composed, without sending them.
    pub(crate) fn check_sendable(&self, canvas: Canvas) -> Result<(), SendError> {
        let planned = self.plan(canvas, &PlanContext::default())?;
        self.compose(planned).map(drop)
    }

    fn source(&self) -> ResultSource {
        ResultSource(Arc::clone(&self.inner.reader))
    }

    /// Emits an event `task-sent` per message, if `task_send_sent_event` is set. A failure is only
    /// logged.
    pub(crate) async fn emit_sent_events(
        &self,
        sent: impl IntoIterator<Item = &Publication>,
        until: Instant,
    ) {
        let ClientInner {
            broker,
            clock,
            logical_clock,
            sender,
            ..
        } = &*self.inner;
        if !sender.config.task_send_sent_event {
            return;
        }
        let exchange = sender.config.events.exchange();
        for publication in sent {
            let Some(event) = event::event(publication, &sender.origin, logical_clock, clock.now())
            else {
                continue;
            };
            let sending = broker.broadcast(&exchange, "task.sent", &event);
            match tokio::time::timeout_at(until, sending).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    return tracing::warn!("client/events: cannot send event task-sent: {error}");
                }
                Err(_) => {
                    return tracing::warn!("client/events: sending event task-sent timed out");
                }
            }
        }
    }

    /// Takes the lock of a task whose uniqueness begins when it is sent.
    async fn lock(&self, composed: ComposedTask, until: Instant) -> Result<UniqueCheck, SendError> {
        let Some((unique, params)) = composed.unique.as_deref() else {
            return Ok(UniqueCheck::Free(Box::new(composed), None));
        };
        let task = &composed.task;
        let config = &self.inner.sender.config;
        let message = &composed.publication.message;
        let accept = Accept::of([config.task_serializer, Serializer::Json]);
        let store_error = |cause| SendError::Store {
            task: task.clone(),
            cause,
        };
        let Some(store) = self.inner.store.as_deref() else {
            return Err(store_error(ServiceError::new(
                ServiceErrorKind::Unsupported,
                "lock",
                format!("task {task}"),
                "no store that clients and workers share is configured",
            )));
        };
        let key = unique
            .key(task, params, || message.payload(&accept, config.body_limit))
            .map_err(|error| SendError::Encode {
                task: task.clone(),
                cause: EncodeError::new(error.to_string()),
            })?;
        let backend = self.inner.reader.backend.as_deref();
        let taking = take_lock(store, backend, &key, &composed.id, *unique);
        let holder = match tokio::time::timeout_at(until, taking).await {
            Ok(holder) => holder.map_err(store_error)?,
            Err(_) => {
                let object = format!("the lock of task {task}");
                return Err(store_error(ServiceError::no_answer(
                    "take",
                    object,
                    config.operation_timeout,
                )));
            }
        };
        match (holder, unique.conflict) {
            (None, _) => Ok(UniqueCheck::Free(Box::new(composed), Some(key))),
            (Some(_), Conflict::Wait) => Ok(UniqueCheck::Free(Box::new(composed), None)),
            (Some(holder), Conflict::Drop) => Ok(UniqueCheck::Taken {
                task: composed.task,
                holder,
            }),
            (Some(holder), Conflict::Fail) => Err(SendError::NotUnique {
                task: composed.task,
                holder,
            }),
        }
    }

    /// Releases the lock of a task that was not sent.
    async fn unlock(&self, lock: Option<String>, id: &str) {
        if let (Some(key), Some(store)) = (lock, self.inner.store.as_deref())
            && let Err(error) = store.compare_and_delete(&key, id.as_bytes()).await
        {
            tracing::warn!("{error}");
        }
    }

    /// Returns the result of a task that was sent before, by this or another process.
    pub fn result<R>(&self, id: impl Into<String>) -> AsyncResult<R> {
        AsyncResult::new(id.into(), Arc::clone(&self.inner.reader))
    }

    /// Returns the result of a group that was [saved](GroupResult::save) by this or another
    /// process, including a Python program; `None` if it was not saved.
    ///
    /// # Errors
    ///
    /// Fails if there is no result backend, if it does not support saved groups, or if it does not
    /// answer within the operation timeout.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn group_result<Out>(
        &self,
        id: &str,
    ) -> Result<Option<GroupResult<Out>>, ResultError> {
        let reader = &self.inner.reader;
        let backend = reader.backend(id)?;
        let saved = reader
            .with_deadline("read", || backend.fetch_group(id))
            .await?;
        Ok(saved.map(|tree| GroupResult::of(tree, Arc::clone(reader))))
    }

    /// Publishes messages in batches of [`BATCH_SIZE`]. If there are several batches, each has the
    /// operation timeout of its own. After a transient error the following batches are not tried.
    async fn publish(
        &self,
        batch: &[Publication],
        until: Instant,
    ) -> Vec<Result<(), ServiceError>> {
        if batch.len() <= BATCH_SIZE {
            return self.publish_batch(batch, until).await;
        }
        let deadline = self.inner.sender.config.operation_timeout;
        let mut answers = Vec::with_capacity(batch.len());
        for chunk in batch.chunks(BATCH_SIZE) {
            let targets = chunk.iter();
            let targets = targets.map(|one| (one.exchange.as_str(), one.routing_key.as_str()));
            let answered = match self.inner.window.enter(targets).await {
                Ok(_in_flight) => {
                    let until = env::instant() + deadline;
                    self.publish_batch(chunk, until).await
                }
                Err(error) => vec![Err(error); chunk.len()],
            };
            answers.extend(answered);
            if let Some(Err(error)) = answers.last()
                && error.is_transient()
            {
                let error = error.clone();
                answers.resize(batch.len(), Err(error));
                break;
            }
        }
        answers
    }

    /// Publishes one batch. Retries until the deadline while the broker is unreachable; other
    /// errors are not retried, because the broker may have received a message.
    async fn publish_batch(
        &self,
        batch: &[Publication],
        until: Instant,
    ) -> Vec<Result<(), ServiceError>> {
        let mut unreachable = None;
        let attempts = async {
            for attempt in 0.. {
                // Without an answer, this attempt is in doubt.
                unreachable = None;
                let answers = self.inner.broker.publish(batch).await;
                match answers.iter().find_map(|answer| answer.as_ref().err()) {
                    Some(error) if error.kind() == ServiceErrorKind::Unreachable => {
                        unreachable = Some(error.clone());
                    }
                    _ => return answers,
                }
                let delay = Backoff::CONNECTION.delay(attempt, env::random());
                tokio::time::sleep(delay).await;
            }
            Vec::new()
        };
        match tokio::time::timeout_at(until, attempts).await {
            Ok(answers) => answers,
            Err(_) => {
                let error = unreachable.unwrap_or_else(|| self.timed_out(batch));
                vec![Err(error); batch.len()]
            }
        }
    }

    fn timed_out(&self, batch: &[Publication]) -> ServiceError {
        let queue = batch.first().map_or("", |first| first.routing_key.as_str());
        let ClientInner { broker, sender, .. } = &*self.inner;
        let (deadline, blocked_reason) = (sender.config.operation_timeout, broker.blocked_reason());
        ServiceError::no_answer_for(
            "publish to",
            format!("queue {queue}"),
            deadline,
            blocked_reason,
        )
    }
}

/// The number of messages that are published, or results that are read, in one round trip: large
/// enough to make the latency negligible, small enough to be in memory several times.
const BATCH_SIZE: usize = 1_000;

/// A task whose message is ready to be published.
struct ComposedTask {
    task: String,
    id: String,
    wants_result: bool,
    unique: Option<Box<(Unique, Params)>>,
    publication: Publication,
}

/// The outcome of the uniqueness check of a task.
enum UniqueCheck {
    /// The task is to be sent. Contains the key of the lock, if one was taken.
    Free(Box<ComposedTask>, Option<String>),
    /// The task is not to be sent, because the unique instance `holder` exists.
    Taken { task: String, holder: String },
}

fn no_answer() -> ServiceError {
    ServiceError::new(
        ServiceErrorKind::Invalid,
        "publish to",
        "the broker",
        "the broker returned fewer results than messages",
    )
}
