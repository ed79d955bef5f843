//! Sending tasks: [`Client`].

pub(crate) mod compose;
mod event;
mod group;
mod result;
mod send;
mod sendable;

use std::sync::Arc;

use celery_protocol::{Accept, EncodeError, ResultTree, Serializer, Value};
use serde::Serialize;
use tokio::time::Instant;

use crate::app::inner::AppInner;
use crate::backoff::Backoff;
use crate::boundary::{Broker, Publication, ResultBackend, ServiceError, ServiceErrorKind, Store};
use crate::canvas::{Canvas, CanvasError, PlanContext, Signature};
use crate::client::send::Sent;
use crate::client::sendable::ResultSource;
use crate::env;
use crate::env::Clock;
use crate::logical_clock::LogicalClock;
use crate::queues::QueueNotFound;
use crate::task::{Conflict, Params, Task, TaskArgs, Unique};
use compose::Sender;
use result::Reader;

pub use crate::client::sendable::Sendable;
pub use group::{Completions, GroupResult};
pub use result::{AnyResult, AsyncResult, ResultError, TaskFailure};

pub(crate) use crate::client::send::no_backend;

/// Sends tasks to workers in any language, and reads their results.
///
/// Cloning is cheap; clones share their connections. Made by
/// [`App::client`](crate::App::client).
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<ClientInner>,
}

#[derive(Debug)]
struct ClientInner {
    broker: Arc<dyn Broker>,
    store: Option<Arc<dyn Store>>,
    reader: Arc<Reader>,
    clock: Clock,
    logical_clock: LogicalClock,
    sender: Sender,
}

/// A task that was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Its arguments have no form in the serializer.
    #[error("cannot write the message of task {task}: {cause}")]
    Encode {
        /// The task's name.
        task: String,
        /// What the serializer says.
        cause: EncodeError,
    },
    /// Something in a canvas cannot be sent.
    #[error("cannot send {task}: {cause}")]
    Canvas {
        /// The task's name, or `celery.chain` and the like.
        task: String,
        /// What, and where in it.
        cause: CanvasError,
    },
    /// The result backend cannot count the parts of a chord, or did not.
    #[error("{task} was not sent: {cause}")]
    Chord {
        /// The task's name, or `celery.chain` and the like.
        task: String,
        /// What the backend failed at.
        cause: ServiceError,
    },
    /// Its queue does not exist and must not be made.
    #[error("task {task} was not sent: {cause}")]
    Queue {
        /// The task's name.
        task: String,
        /// Which queue, and what to do.
        cause: QueueNotFound,
    },
    /// The result backend is not ready for its result.
    #[error("task {task} was not sent, since its result could not be received: {cause}")]
    Backend {
        /// The task's name.
        task: String,
        /// What the backend failed at.
        cause: ServiceError,
    },
    /// There must be one at a time, and there is one; see
    /// [`Unique`](crate::Unique).
    #[error("task {task} was not sent: task {holder} is there already")]
    NotUnique {
        /// The task's name.
        task: String,
        /// The id of the one that is there.
        holder: String,
    },
    /// It cannot be found out whether there is one already.
    #[error("task {task} was not sent, since it must be the only one: {cause}")]
    Store {
        /// The task's name.
        task: String,
        /// What the store failed at.
        cause: ServiceError,
    },
    /// The broker did not take it.
    #[error("task {task} was not sent: {cause}")]
    Broker {
        /// The task's name.
        task: String,
        /// What the broker failed at.
        cause: ServiceError,
    },
}

impl SendError {
    /// Whether sending again later may succeed. After a lost connection or a
    /// timeout the broker may have the task already.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Broker { cause, .. }
            | Self::Backend { cause, .. }
            | Self::Chord { cause, .. }
            | Self::Store { cause, .. } => cause.is_transient(),
            // When the other one has ended.
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
        let reader = Arc::new(Reader {
            backend,
            deadline: config.operation_timeout,
        });
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
            }),
        }
    }

    /// Sends a task with these arguments.
    ///
    /// # Errors
    ///
    /// When an argument cannot be written, when the task's queue must not be
    /// made, or when result backend and broker are not ready for the task
    /// within the configured deadline (5 s by default).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have sent the task.
    pub async fn send<A: TaskArgs, R>(
        &self,
        task: Task<A, R>,
        args: A,
    ) -> Result<AsyncResult<R>, SendError> {
        self.apply(task.s(args)).await
    }

    /// Sends a task by its name, such as one that exists in Python only.
    /// `args` must serialize as an array, `kwargs` as a map; `()` is none.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
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

    /// Sends a prepared call, or what a whole canvas begins with: the first step
    /// of a chain, all members of a group, the header of a chord. Workers send
    /// the rest.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); when something in a canvas cannot be sent, and
    /// when there is a chord in it and the result backend does not count its
    /// parts. Of several tasks the others may have been sent.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent some of the tasks.
    pub async fn apply<C: Sendable>(&self, canvas: C) -> Result<C::Result, SendError> {
        let mut results = self.apply_all([canvas]).await;
        results
            .pop()
            .expect("one answer for the one canvas that was sent")
    }

    /// Sends many calls, a thousand in one round trip where the broker can. The
    /// answer has one entry for each, in their order.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent some of the tasks.
    pub async fn apply_all<C: Sendable>(
        &self,
        canvases: impl IntoIterator<Item = C>,
    ) -> Vec<Result<C::Result, SendError>> {
        let until = env::instant() + self.inner.sender.config.operation_timeout;
        let canvases = canvases.into_iter().map(C::into_canvas);
        let alone = PlanContext::default();
        let planned = canvases.map(|canvas| self.plan(canvas, &alone)).collect();
        let sent = self.send_all(planned, until).await;
        let result = |sent: Sent| C::result(sent.result, self.source());
        sent.into_iter().map(|sent| sent.map(result)).collect()
    }

    /// Sends a canvas for a task, and says what of it is sent now.
    pub(crate) async fn apply_within<C: Sendable>(
        &self,
        canvas: Canvas,
        within: &PlanContext,
    ) -> Result<(C::Result, Vec<ResultTree>), SendError> {
        let until = env::instant() + self.inner.sender.config.operation_timeout;
        let planned = self.plan(canvas, within);
        let mut sent = self.send_all(vec![planned], until).await;
        let sent = sent.pop().expect("one answer for one canvas")?;
        Ok((C::result(sent.result, self.source()), sent.children))
    }

    /// Finds out what is wrong with a canvas without sending it.
    pub(crate) fn can_send(&self, canvas: Canvas) -> Result<(), SendError> {
        self.plan(canvas, &PlanContext::default()).map(drop)
    }

    fn source(&self) -> ResultSource {
        ResultSource(Arc::clone(&self.inner.reader))
    }

    /// Tells those who watch that these tasks were sent, if that is wanted; that
    /// they were does not depend on it.
    pub(crate) async fn tell_sent(
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
            let telling = broker.broadcast(&exchange, "task.sent", &event);
            match tokio::time::timeout_at(until, telling).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    return tracing::warn!("the event task-sent was not sent: {error}");
                }
                Err(_) => return tracing::warn!("the event task-sent was not sent in time"),
            }
        }
    }

    /// Takes the lock of a task that must be the only one from now on.
    async fn lock(&self, composed: Composed, until: Instant) -> Result<UniqueCheck, SendError> {
        let Some((unique, params)) = composed.unique.as_deref() else {
            return Ok(UniqueCheck::Free(Box::new(composed), None));
        };
        let task = &composed.task;
        let config = &self.inner.sender.config;
        let message = &composed.publication.message;
        let accept = Accept::of([config.task_serializer, Serializer::Json]);
        let failed = |cause| SendError::Store {
            task: task.clone(),
            cause,
        };
        let Some(store) = self.inner.store.as_deref() else {
            return Err(failed(ServiceError::new(
                ServiceErrorKind::Unsupported,
                "lock",
                format!("task {task}"),
                "there is no store that clients and workers share",
            )));
        };
        let key = unique
            .key(task, params, || message.payload(&accept, config.body_limit))
            .map_err(|error| SendError::Encode {
                task: task.clone(),
                cause: EncodeError::new(error.to_string()),
            })?;
        let taking = take_lock(store, &key, &composed.id, unique.first_ttl());
        let holder = match tokio::time::timeout_at(until, taking).await {
            Ok(holder) => holder.map_err(failed)?,
            Err(_) => {
                let object = format!("the lock of task {task}");
                return Err(failed(ServiceError::no_answer(
                    "take",
                    object,
                    config.operation_timeout,
                )));
            }
        };
        match (holder, unique.conflict) {
            (None, _) => Ok(UniqueCheck::Free(Box::new(composed), Some(key))),
            (Some(_), Conflict::Wait) => Ok(UniqueCheck::Free(Box::new(composed), None)),
            (Some(holder), Conflict::Drop) => Ok(UniqueCheck::Taken(holder)),
            (Some(holder), Conflict::Fail) => Err(SendError::NotUnique {
                task: composed.task,
                holder,
            }),
        }
    }

    async fn unlock(&self, lock: Option<String>, id: &str) {
        if let (Some(key), Some(store)) = (lock, self.inner.store.as_deref())
            && let Err(error) = store.compare_and_delete(&key, id.as_bytes()).await
        {
            tracing::warn!("{error}");
        }
    }

    /// The result of a task that was sent before, by this or another process.
    pub fn result<R>(&self, id: impl Into<String>) -> AsyncResult<R> {
        AsyncResult::new(id.into(), Arc::clone(&self.inner.reader))
    }

    /// The results of a group that was [saved](GroupResult::save), by this or
    /// another process, also by a Python program; `None` where there is none.
    ///
    /// # Errors
    ///
    /// When there is no backend, it keeps no groups, or it does not answer
    /// within the deadline.
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
        let saved = reader.ask("read", || backend.fetch_group(id)).await?;
        Ok(saved.map(|tree| GroupResult::of(tree, Arc::clone(reader))))
    }

    /// Publishes, some at a time; many have the deadline for each part. What
    /// comes after a part that got no answer is not tried.
    async fn publish(
        &self,
        batch: &[Publication],
        until: Instant,
    ) -> Vec<Result<(), ServiceError>> {
        if batch.len() <= BATCH_SIZE {
            return self.publish_part(batch, until).await;
        }
        let deadline = self.inner.sender.config.operation_timeout;
        let mut answers = Vec::with_capacity(batch.len());
        for part in batch.chunks(BATCH_SIZE) {
            answers.extend(self.publish_part(part, env::instant() + deadline).await);
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

    /// Tries again `until` the deadline while the broker cannot be reached. Once
    /// a message may have left, it is not sent twice.
    async fn publish_part(
        &self,
        batch: &[Publication],
        until: Instant,
    ) -> Vec<Result<(), ServiceError>> {
        let mut unreachable = None;
        let attempts = async {
            for attempt in 0.. {
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

/// How many messages are published, or results read, in one go: enough to make
/// little of a round trip, and little enough to have in memory several times.
const BATCH_SIZE: usize = 1_000;

/// A call that is ready to be sent.
struct Composed {
    task: String,
    id: String,
    wants_result: bool,
    unique: Option<Box<(Unique, Params)>>,
    publication: Publication,
}

/// A call that must be the only one, or one that need not.
enum UniqueCheck {
    /// To be sent; with the name of the lock that was taken for it.
    Free(Box<Composed>, Option<String>),
    /// Not to be sent, since the task with this id is there.
    Taken(String),
}

/// Takes the lock, or says who has it.
async fn take_lock(
    store: &dyn Store,
    key: &str,
    id: &str,
    ttl: std::time::Duration,
) -> Result<Option<String>, ServiceError> {
    loop {
        if store.put_if_absent(key, id.as_bytes(), ttl).await? {
            return Ok(None);
        }
        // Gone meanwhile where there is none.
        if let Some(holder) = store.get(key).await? {
            let holder = String::from_utf8_lossy(&holder).into_owned();
            return Ok((holder != id).then_some(holder));
        }
    }
}

fn no_answer() -> ServiceError {
    ServiceError::new(
        ServiceErrorKind::Invalid,
        "publish to",
        "the broker",
        "it gave fewer answers than it was sent messages",
    )
}
