//! Reading results: [`AsyncResult`].

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{DecodeError, Exception, ResultDocument, State, Value};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::backend::ResultBackend;
use crate::backoff::Backoff;
use crate::error::{ServiceError, ServiceErrorKind};

/// The result of a task that was sent: now, later, or never.
///
/// Dropping it changes nothing for the task.
pub struct AsyncResult<R> {
    id: String,
    reader: Arc<Reader>,
    result: PhantomData<fn() -> R>,
}

/// What reading results needs.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) backend: Option<Arc<dyn ResultBackend>>,
    pub(crate) deadline: Duration,
}

/// A task that did not succeed, in the words of the worker that ran it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TaskFailure {
    /// The task's id.
    pub id: String,
    /// FAILURE or REVOKED.
    pub state: State,
    /// The exception.
    pub exception: Exception,
    /// The traceback, as text.
    pub traceback: Option<String>,
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "task {} ended in {}: {}",
            self.id, self.state, self.exception
        )
    }
}

/// A result that could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    /// The task failed or was revoked.
    #[error("{0}")]
    Task(Box<TaskFailure>),
    /// The task is not done yet.
    #[error(
        "task {id} has no result after {waited:?}; is a worker consuming its queue, and does it \
         store results?"
    )]
    TimedOut {
        /// The task's id.
        id: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The app has no result backend.
    #[error("cannot read the result of task {id}: no result_backend is configured")]
    NoBackend {
        /// The task's id.
        id: String,
    },
    /// The value is not of the type that was asked for.
    #[error("cannot read the result of task {id}: {cause}")]
    Decode {
        /// The task's id.
        id: String,
        /// What does not fit.
        cause: DecodeError,
    },
    /// The result backend failed.
    #[error(transparent)]
    Backend(#[from] ServiceError),
}

impl<R> AsyncResult<R> {
    pub(crate) fn new(id: String, reader: Arc<Reader>) -> Self {
        Self {
            id,
            reader,
            result: PhantomData,
        }
    }

    /// The task's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The task's state. PENDING also means that nothing is known of it.
    ///
    /// # Errors
    ///
    /// When there is no backend, or it does not answer within the deadline.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn state(&self) -> Result<State, ResultError> {
        let document = self.document().await?;
        Ok(document.map_or(State::Pending, |document| document.status))
    }

    /// Whether the task has ended, in whatever way.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ready(&self) -> Result<bool, ResultError> {
        Ok(self.state().await?.is_ready())
    }

    /// What the task reported about its current state: the progress of a
    /// custom state, the return value, the exception.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state), and when it cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn info(&self) -> Result<Value, ResultError> {
        match self.document().await? {
            None => Ok(Value::Null),
            Some(document) => document
                .result
                .to_value()
                .map_err(|cause| self.decode(cause)),
        }
    }

    /// The ids of the tasks that the task has sent.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state), and when they cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn children(&self) -> Result<Vec<String>, ResultError> {
        let Some(document) = self.document().await? else {
            return Ok(Vec::new());
        };
        let children = document.children.as_ref().filter(|raw| !raw.is_null());
        let Some(children) = children else {
            return Ok(Vec::new());
        };
        // Each child is a tree [[id, parent], children].
        let value = children.to_value().map_err(|cause| self.decode(cause))?;
        let ids = value.as_array().unwrap_or_default().iter();
        Ok(ids
            .filter_map(|tree| {
                Some(
                    tree.as_array()?
                        .first()?
                        .as_array()?
                        .first()?
                        .as_str()?
                        .to_owned(),
                )
            })
            .collect())
    }

    /// The whole document that is stored, as Celery's backends keep it.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn document(&self) -> Result<Option<ResultDocument<'static>>, ResultError> {
        let backend = self.backend()?;
        let ids = [self.id.clone()];
        let mut documents = self.reader.ask("read", || backend.fetch(&ids)).await?;
        Ok(documents.pop().flatten())
    }

    /// Deletes what is stored of the task.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have deleted it.
    pub async fn forget(&self) -> Result<(), ResultError> {
        let backend = self.backend()?;
        let ids = [self.id.clone()];
        self.reader.ask("forget", || backend.forget(&ids)).await?;
        Ok(())
    }

    fn backend(&self) -> Result<&dyn ResultBackend, ResultError> {
        self.reader
            .backend
            .as_deref()
            .ok_or_else(|| ResultError::NoBackend {
                id: self.id.clone(),
            })
    }

    fn decode(&self, cause: DecodeError) -> ResultError {
        ResultError::Decode {
            id: self.id.clone(),
            cause,
        }
    }
}

impl<R: DeserializeOwned> AsyncResult<R> {
    /// Waits until the task has ended and returns its value, however long that
    /// takes; [`get_timeout`](Self::get_timeout) bounds it.
    ///
    /// # Errors
    ///
    /// When the task failed or was revoked, when its value is no `R`, when
    /// there is no backend, or when the backend stays away for longer than
    /// the configured deadline.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get(&self) -> Result<R, ResultError> {
        let backend = self.backend()?;
        let document = self.reader.insist(|| backend.wait(&self.id)).await?;
        self.value(&document)
    }

    /// The same, for at most this long.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and when the task has not ended by then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get_timeout(&self, timeout: Duration) -> Result<R, ResultError> {
        match tokio::time::timeout(timeout, self.get()).await {
            Ok(result) => result,
            Err(_) => Err(ResultError::TimedOut {
                id: self.id.clone(),
                waited: timeout,
            }),
        }
    }

    fn value(&self, document: &ResultDocument<'static>) -> Result<R, ResultError> {
        if document.status == State::Success {
            return document.result.decode().map_err(|cause| self.decode(cause));
        }
        let exception = document.exception().map_err(|cause| self.decode(cause))?;
        let exception = exception.unwrap_or_default();
        Err(ResultError::Task(Box::new(TaskFailure {
            id: self.id.clone(),
            state: document.status.clone(),
            exception,
            traceback: document.traceback.as_deref().map(str::to_owned),
        })))
    }
}

/// A server that accepts connections only to end them does not count as there.
const CONNECTED_FOR_A_WHILE: Duration = Duration::from_secs(1);

impl Reader {
    /// A call that answers at once when the backend is there: bounded by the
    /// deadline in all.
    pub(super) async fn ask<'a, T, F>(
        &self,
        operation: &'static str,
        call: impl FnMut() -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>> + 'a,
    {
        match tokio::time::timeout(self.deadline, self.insist(call)).await {
            Ok(answer) => answer,
            Err(_) => Err(ServiceError::no_answer(operation, "results", self.deadline)),
        }
    }

    /// Repeats what failed for a passing reason, until the backend has been
    /// away for the deadline. A wait that lost its connection after a while
    /// had one until then, and starts the time afresh.
    async fn insist<'a, T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>> + 'a,
    {
        let mut away_since: Option<Instant> = None;
        let mut attempt = 0;
        loop {
            let begun = Instant::now();
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => error,
            };
            let held = begun.elapsed() > CONNECTED_FOR_A_WHILE;
            if held && error.kind() == ServiceErrorKind::Disconnected {
                away_since = Some(Instant::now());
                attempt = 0;
            }
            let since = *away_since.get_or_insert(begun);
            let delay = Backoff::CONNECTION.delay(attempt, fastrand::f64());
            if since.elapsed() + delay >= self.deadline {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(delay).await;
        }
    }
}

impl<R> Clone for AsyncResult<R> {
    fn clone(&self) -> Self {
        Self::new(self.id.clone(), Arc::clone(&self.reader))
    }
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncResult").field(&self.id).finish()
    }
}
