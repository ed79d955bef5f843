//! Sending tasks: [`Client`].

pub(crate) mod compose;
pub(crate) mod options;
mod result;
mod signature;

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{EncodeError, Value};
use serde::Serialize;
use uuid::Uuid;

pub use result::{AsyncResult, ResultError, TaskFailure};
pub use signature::Signature;

use crate::backend::ResultBackend;
use crate::backoff::Backoff;
use crate::broker::{Broker, Publication};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::task::{Task, TaskArgs};

use compose::{Sender, compose};
use result::Reader;

/// Sends tasks to workers in any language, and reads their results.
///
/// Cloning is cheap; clones share their connections. Made by
/// [`App::client`](crate::App::client).
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    broker: Arc<dyn Broker>,
    reader: Arc<Reader>,
    config: Arc<Config>,
    clock: Clock,
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
        matches!(self, Self::Broker { cause, .. } if cause.is_transient())
    }
}

impl Client {
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        backend: Option<Arc<dyn ResultBackend>>,
        config: Arc<Config>,
        clock: Clock,
    ) -> Self {
        let reply_to = backend
            .as_deref()
            .and_then(ResultBackend::reply_to)
            .unwrap_or_else(|| Uuid::new_v4().to_string());
        let sender = Sender {
            origin: format!("gen{}@{}", std::process::id(), crate::app::host()),
            reply_to,
        };
        let reader = Arc::new(Reader {
            backend,
            deadline: config.deadline,
        });
        Self {
            inner: Arc::new(Inner {
                broker,
                reader,
                config,
                clock,
                sender,
            }),
        }
    }

    /// Sends a task with these arguments.
    ///
    /// # Errors
    ///
    /// When an argument cannot be written, or the broker does not take the
    /// message within the configured deadline (5 s by default).
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

    /// Sends a prepared call.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have sent the task.
    pub async fn apply<R>(&self, signature: Signature<R>) -> Result<AsyncResult<R>, SendError> {
        let mut results = self.apply_all([signature]).await;
        results
            .pop()
            .expect("one answer for the one signature that was sent")
    }

    /// Sends many calls in one round trip where the broker can. The answer has
    /// one entry for each, in their order.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent some of the tasks.
    pub async fn apply_all<R>(
        &self,
        signatures: impl IntoIterator<Item = Signature<R>>,
    ) -> Vec<Result<AsyncResult<R>, SendError>> {
        let mut batch = Vec::new();
        let mut results: Vec<Result<(String, String), SendError>> = Vec::new();
        for signature in signatures {
            let task = signature.task().to_owned();
            results.push(match self.compose(&signature) {
                Ok((id, publication)) => {
                    batch.push(publication);
                    Ok((id, task))
                }
                Err(cause) => Err(SendError::Encode { task, cause }),
            });
        }
        let mut answers = self.publish(&batch).await.into_iter();
        results
            .into_iter()
            .map(|composed| {
                let (id, task) = composed?;
                match answers.next() {
                    Some(Ok(())) => Ok(self.result(id)),
                    Some(Err(cause)) => Err(SendError::Broker { task, cause }),
                    None => Err(SendError::Broker {
                        task,
                        cause: no_answer(),
                    }),
                }
            })
            .collect()
    }

    /// The result of a task that was sent before, by this or another process.
    pub fn result<R>(&self, id: impl Into<String>) -> AsyncResult<R> {
        AsyncResult::new(id.into(), Arc::clone(&self.inner.reader))
    }

    fn compose<R>(&self, signature: &Signature<R>) -> Result<(String, Publication), EncodeError> {
        let Inner {
            config,
            clock,
            sender,
            ..
        } = &*self.inner;
        signature.outgoing(|outgoing| {
            let id = outgoing.options.task_id.clone();
            let id = id.unwrap_or_else(|| Uuid::new_v4().to_string());
            let publication = compose(config, sender, outgoing, id.clone(), clock.now())?;
            Ok((id, publication))
        })
    }

    /// Publishes, and tries again until the deadline while the broker cannot
    /// be reached. Once a message may have left, it is not sent twice.
    async fn publish(&self, batch: &[Publication]) -> Vec<Result<(), ServiceError>> {
        let deadline = self.inner.config.deadline;
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
                let delay = Backoff::CONNECTION.delay(attempt, fastrand::f64());
                tokio::time::sleep(delay).await;
            }
            Vec::new()
        };
        match tokio::time::timeout(deadline, attempts).await {
            Ok(answers) => answers,
            Err(_) => {
                let error = unreachable.unwrap_or_else(|| timed_out(batch, deadline));
                vec![Err(error); batch.len()]
            }
        }
    }
}

fn timed_out(batch: &[Publication], deadline: Duration) -> ServiceError {
    let queue = batch.first().map_or("", |first| first.routing_key.as_str());
    ServiceError::no_answer("publish to", format!("queue {queue}"), deadline)
}

fn no_answer() -> ServiceError {
    ServiceError::new(
        ServiceErrorKind::Invalid,
        "publish to",
        "the broker",
        "it gave fewer answers than it was sent messages",
    )
}
