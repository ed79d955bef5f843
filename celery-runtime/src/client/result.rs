//! Reading results: [`AsyncResult`].

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{DecodeError, Exception, Raw, ResultDocument, ResultTree, State, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::boundary::{BoxFuture, ResultBackend, ServiceError, ServiceErrorKind};
use crate::client::BATCH_SIZE;
use crate::client::group::GroupResult;
use crate::env;

/// The result of a task that was sent: now, later, or never.
///
/// Dropping it changes nothing for the task.
pub struct AsyncResult<R> {
    tree: ResultTree,
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
        Self::of(ResultTree::task(id), reader)
    }

    pub(super) fn of(tree: ResultTree, reader: Arc<Reader>) -> Self {
        Self {
            tree,
            reader,
            result: PhantomData,
        }
    }

    /// The task's id.
    pub fn id(&self) -> &str {
        &self.tree.id
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
        let children = self.child_results().await?;
        Ok(children.iter().map(|child| child.id().to_owned()).collect())
    }

    /// The results of the tasks and groups that the task has sent: callbacks,
    /// the next step of its chain, and what it sent itself.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state), and when they cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn child_results(&self) -> Result<Vec<AnyResult>, ResultError> {
        let Some(document) = self.document().await? else {
            return Ok(Vec::new());
        };
        let children = children_of(&document).map_err(|cause| self.decode(cause))?;
        let child = |tree| AnyResult::of(tree, Arc::clone(&self.reader));
        Ok(children.into_iter().map(child).collect())
    }

    /// What came before it: the step before in its chain, or the header of its
    /// chord. Known only where the workflow was sent from, not by a result that
    /// was looked up by its id.
    pub fn parent(&self) -> Option<AnyResult> {
        let parent = self.tree.parent()?;
        Some(AnyResult::of(parent, Arc::clone(&self.reader)))
    }

    /// The ids of the task and of everything that came before it, such as to
    /// [revoke](crate::Control::revoke) them all.
    pub fn task_ids(&self) -> Vec<String> {
        self.tree
            .task_ids()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// The values of the task and of everything that it has set off, the nearest
    /// first, each once its task has ended: Celery's `collect`.
    ///
    /// # Errors
    ///
    /// When one of them failed or was revoked, when there is no backend, or when
    /// it stays away for longer than the configured deadline.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn collect(&self) -> Result<Vec<(String, Value)>, ResultError> {
        let mut values = Vec::new();
        let mut seen = HashSet::new();
        let mut pending = VecDeque::from([self.tree.clone()]);
        while let Some(tree) = pending.pop_front() {
            if !seen.insert(tree.id.clone()) {
                continue;
            }
            match tree.members {
                Some(members) => pending.extend(members),
                None => {
                    let document = self.reader.wait(&tree.id).await?;
                    let value = ended(&tree.id, &document)?;
                    let value = value
                        .to_value()
                        .map_err(|cause| cannot_read(&tree.id, cause))?;
                    let children = children_of(&document);
                    pending.extend(children.map_err(|cause| cannot_read(&tree.id, cause))?);
                    values.push((tree.id, value));
                }
            }
        }
        Ok(values)
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
        let ids = [self.tree.id.clone()];
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
        let ids = [self.tree.id.clone()];
        self.reader.ask("forget", || backend.forget(&ids)).await?;
        Ok(())
    }

    fn backend(&self) -> Result<&dyn ResultBackend, ResultError> {
        self.reader.backend(&self.tree.id)
    }

    fn decode(&self, cause: DecodeError) -> ResultError {
        cannot_read(&self.tree.id, cause)
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
        let document = self.reader.wait(&self.tree.id).await?;
        decode(&self.tree.id, ended(&self.tree.id, &document)?)
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
                id: self.tree.id.clone(),
                waited: timeout,
            }),
        }
    }
}

/// The value of a task that has succeeded, undecoded.
pub(super) fn ended<'a>(
    id: &str,
    document: &'a ResultDocument<'static>,
) -> Result<&'a Raw<'static>, ResultError> {
    if document.status == State::Success {
        return Ok(&document.result);
    }
    let exception = document
        .exception()
        .map_err(|cause| cannot_read(id, cause))?;
    Err(ResultError::Task(Box::new(TaskFailure {
        id: id.to_owned(),
        state: document.status.clone(),
        exception: exception.unwrap_or_default(),
        traceback: document.traceback.as_deref().map(str::to_owned),
    })))
}

pub(super) fn decode<R: DeserializeOwned>(id: &str, value: &Raw<'_>) -> Result<R, ResultError> {
    let value = value.as_borrowed();
    value.decode().map_err(|cause| cannot_read(id, cause))
}

fn cannot_read(id: &str, cause: DecodeError) -> ResultError {
    ResultError::Decode {
        id: id.to_owned(),
        cause,
    }
}

fn children_of(document: &ResultDocument<'_>) -> Result<Vec<ResultTree>, DecodeError> {
    let children = document.children.as_ref().filter(|raw| !raw.is_null());
    let Some(children) = children else {
        return Ok(Vec::new());
    };
    children.elements()?.iter().map(ResultTree::read).collect()
}

/// The value of a task, or the list of all values of a group.
pub(super) fn value_of<'a>(
    reader: &'a Reader,
    tree: &'a ResultTree,
) -> BoxFuture<'a, Result<Raw<'static>, ResultError>> {
    Box::pin(async move {
        let Some(members) = &tree.members else {
            let document = reader.wait(&tree.id).await?;
            return ended(&tree.id, &document).cloned();
        };
        let mut values = Vec::with_capacity(members.len());
        for some in members.chunks(BATCH_SIZE) {
            let some = some.iter().map(|member| value_of(reader, member));
            values.extend(futures_util::future::try_join_all(some).await?);
        }
        let values = values
            .iter()
            .map(Raw::to_value)
            .collect::<Result<Vec<_>, _>>();
        let values = values.map_err(|cause| cannot_read(&tree.id, cause))?;
        Ok(Raw::from_value(Value::Array(values)))
    })
}

/// As Celery writes it in what a task returns: `[[id, parent], null]`.
impl<R> Serialize for AsyncResult<R> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.tree.to_value().serialize(serializer)
    }
}

/// The result of a task or of a group, where types do not say which.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AnyResult {
    /// Of one task.
    Task(AsyncResult<Value>),
    /// Of a group.
    Group(GroupResult<Vec<Value>>),
}

impl Serialize for AnyResult {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Task(task) => task.serialize(serializer),
            Self::Group(group) => group.serialize(serializer),
        }
    }
}

impl AnyResult {
    pub(super) fn of(tree: ResultTree, reader: Arc<Reader>) -> Self {
        match tree.members {
            None => Self::Task(AsyncResult::of(tree, reader)),
            Some(_) => Self::Group(GroupResult::of(tree, reader)),
        }
    }

    /// The id of the task or group.
    pub fn id(&self) -> &str {
        match self {
            Self::Task(task) => task.id(),
            Self::Group(group) => group.id(),
        }
    }

    /// What came before it.
    pub fn parent(&self) -> Option<Self> {
        match self {
            Self::Task(task) => task.parent(),
            Self::Group(group) => group.parent(),
        }
    }

    /// The ids of its tasks and of everything that came before them.
    pub fn task_ids(&self) -> Vec<String> {
        match self {
            Self::Task(task) => task.task_ids(),
            Self::Group(group) => group.task_ids(),
        }
    }

    /// Waits for the value of the task, or the list of the group's.
    ///
    /// # Errors
    ///
    /// As [`AsyncResult::get`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get(&self) -> Result<Value, ResultError> {
        match self {
            Self::Task(task) => task.get().await,
            Self::Group(group) => group.get().await.map(Value::Array),
        }
    }

    /// The same, for at most this long.
    ///
    /// # Errors
    ///
    /// As [`AsyncResult::get_timeout`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get_timeout(&self, timeout: Duration) -> Result<Value, ResultError> {
        match self {
            Self::Task(task) => task.get_timeout(timeout).await,
            Self::Group(group) => group.get_timeout(timeout).await.map(Value::Array),
        }
    }
}

/// A server that accepts connections only to end them does not count as there.
const CONNECTED_FOR_A_WHILE: Duration = Duration::from_secs(1);

impl Reader {
    pub(super) fn backend(&self, id: &str) -> Result<&dyn ResultBackend, ResultError> {
        self.backend
            .as_deref()
            .ok_or_else(|| ResultError::NoBackend { id: id.to_owned() })
    }

    /// Waits until a task has ended.
    pub(super) async fn wait(&self, id: &str) -> Result<ResultDocument<'static>, ResultError> {
        let backend = self.backend(id)?;
        Ok(self.retry_transient(|| backend.wait(id)).await?)
    }

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
        match tokio::time::timeout(self.deadline, self.retry_transient(call)).await {
            Ok(answer) => answer,
            Err(_) => Err(ServiceError::no_answer(operation, "results", self.deadline)),
        }
    }

    /// Repeats what failed for a passing reason, until the backend has been
    /// away for the deadline. A wait that lost its connection after a while
    /// had one until then, and starts the time afresh.
    async fn retry_transient<'a, T, F>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>> + 'a,
    {
        let mut away_since: Option<Instant> = None;
        let mut attempt = 0;
        loop {
            let begun = env::instant();
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => error,
            };
            let held = begun.elapsed() > CONNECTED_FOR_A_WHILE;
            if held && error.kind() == ServiceErrorKind::Disconnected {
                away_since = Some(env::instant());
                attempt = 0;
            }
            let since = *away_since.get_or_insert(begun);
            let delay = Backoff::CONNECTION.delay(attempt, env::random());
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
        Self::of(self.tree.clone(), Arc::clone(&self.reader))
    }
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncResult").field(&self.tree.id).finish()
    }
}
