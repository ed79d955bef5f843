//! Reading results: [`AsyncResult`].

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{DecodeError, Exception, Raw, ResultDocument, ResultTree, State, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::boundary::{BoxFuture, ResultBackend, ServiceError};
use crate::client::BATCH_SIZE;
use crate::client::group::GroupResult;
use crate::client::reader::ResultReader;

/// A handle to the result of a task that was sent, which may not be available yet.
///
/// Dropping it does not affect the task.
pub struct AsyncResult<R> {
    tree: ResultTree,
    reader: Arc<ResultReader>,
    result: PhantomData<fn() -> R>,
}

/// The failure of a task, as stored by the worker that ran it.
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

/// An error in reading a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    /// The task failed or was revoked.
    #[error("{0}")]
    Task(Box<TaskFailure>),
    /// The task did not end within the timeout.
    #[error(
        "task {id} has no result after {waited:?}; is a worker consuming its queue, does it store \
         results, and is the result backend available?"
    )]
    TimedOut {
        /// The task's id.
        id: String,
        /// The timeout.
        waited: Duration,
    },
    /// The app has no result backend.
    #[error("cannot read the result of task {id}: no result_backend is configured")]
    NoBackend {
        /// The task's id.
        id: String,
    },
    /// The value has another type.
    #[error("cannot decode the result of task {id}: {cause}")]
    Decode {
        /// The task's id.
        id: String,
        /// The error of the decoder.
        cause: DecodeError,
    },
    /// The result backend failed.
    #[error(transparent)]
    Backend(#[from] ServiceError),
}

impl<R> AsyncResult<R> {
    pub(crate) fn new(id: String, reader: Arc<ResultReader>) -> Self {
        Self::of(ResultTree::task(id), reader)
    }

    pub(super) fn of(tree: ResultTree, reader: Arc<ResultReader>) -> Self {
        Self {
            tree,
            reader,
            result: PhantomData,
        }
    }

    /// Returns the id of the task.
    pub fn id(&self) -> &str {
        &self.tree.id
    }

    /// Returns the state of the task. PENDING is also returned for an unknown task.
    ///
    /// # Errors
    ///
    /// Fails if there is no result backend, or if it does not answer within the operation timeout.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn state(&self) -> Result<State, ResultError> {
        let document = self.document().await?;
        Ok(document.map_or(State::Pending, |document| document.status))
    }

    /// Returns whether the task has succeeded, failed or been revoked.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`state`](Self::state).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ready(&self) -> Result<bool, ResultError> {
        Ok(self.state().await?.is_ready())
    }

    /// Returns the value stored with the current state: the progress of a custom state, the
    /// returned value, or the exception.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`state`](Self::state), and fails if the value cannot be decoded.
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

    /// Returns the ids of the tasks that the task has sent.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`state`](Self::state), and fails if the ids cannot be decoded.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn children(&self) -> Result<Vec<String>, ResultError> {
        let children = self.child_results().await?;
        Ok(children.iter().map(|child| child.id().to_owned()).collect())
    }

    /// Returns the results of the tasks and groups that the task has sent: its callbacks, the next
    /// step of its chain, and those sent by its handler.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`state`](Self::state), and fails if the results cannot be decoded.
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

    /// Returns the result of the step before in its chain, or of the header of its chord. It is
    /// known only for a result that was returned by sending the workflow, not for one that was
    /// looked up by id.
    pub fn parent(&self) -> Option<AnyResult> {
        let parent = self.tree.parent()?;
        Some(AnyResult::of(parent, Arc::clone(&self.reader)))
    }

    /// Returns the ids of the task and of all steps before it, for example to
    /// [revoke](crate::Control::revoke) all of them.
    pub fn task_ids(&self) -> Vec<String> {
        self.tree
            .task_ids()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// Waits for the task and for all tasks that it has sent, directly or indirectly, and returns
    /// their ids and values in breadth-first order (Celery's `collect`).
    ///
    /// # Errors
    ///
    /// Fails if one of the tasks failed or was revoked, if there is no result backend, or if it
    /// refuses a request permanently.
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
                    let value = value_or_failure(&tree.id, &document)?;
                    let value = value
                        .to_value()
                        .map_err(|cause| decode_error(&tree.id, cause))?;
                    let children = children_of(&document);
                    pending.extend(children.map_err(|cause| decode_error(&tree.id, cause))?);
                    values.push((tree.id, value));
                }
            }
        }
        Ok(values)
    }

    /// Returns the stored result document in the format of Celery; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`state`](Self::state).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn document(&self) -> Result<Option<ResultDocument<'static>>, ResultError> {
        let backend = self.backend()?;
        let ids = [self.tree.id.clone()];
        let mut documents = self
            .reader
            .with_deadline("read", || backend.fetch(&ids))
            .await?;
        Ok(documents.pop().flatten())
    }

    /// Deletes the stored result of the task.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`state`](Self::state).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have deleted it.
    pub async fn forget(&self) -> Result<(), ResultError> {
        let backend = self.backend()?;
        let ids = [self.tree.id.clone()];
        self.reader
            .with_deadline("forget", || backend.forget(&ids))
            .await?;
        Ok(())
    }

    fn backend(&self) -> Result<&dyn ResultBackend, ResultError> {
        self.reader.backend(&self.tree.id)
    }

    fn decode(&self, cause: DecodeError) -> ResultError {
        decode_error(&self.tree.id, cause)
    }
}

impl<R: DeserializeOwned> AsyncResult<R> {
    /// Waits until the task has ended, without a limit, and returns its value. See
    /// [`get_timeout`](Self::get_timeout) for a limit.
    ///
    /// It reconnects with a back-off while the result backend is unavailable, however long that is.
    ///
    /// # Errors
    ///
    /// Fails if the task failed or was revoked, if its value is not an `R`, if there is no result
    /// backend, or if it refuses the request permanently, as after a wrong password.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get(&self) -> Result<R, ResultError> {
        let document = self.reader.wait(&self.tree.id).await?;
        decode(&self.tree.id, value_or_failure(&self.tree.id, &document)?)
    }

    /// Waits at most `timeout` until the task has ended, and returns its value.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`get`](Self::get), and [`ResultError::TimedOut`].
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

/// Returns the encoded value of a task that has succeeded.
///
/// # Errors
///
/// Fails if the task has failed or was revoked.
pub(super) fn value_or_failure<'a>(
    id: &str,
    document: &'a ResultDocument<'static>,
) -> Result<&'a Raw<'static>, ResultError> {
    if document.status == State::Success {
        return Ok(&document.result);
    }
    let exception = document
        .exception()
        .map_err(|cause| decode_error(id, cause))?;
    Err(ResultError::Task(Box::new(TaskFailure {
        id: id.to_owned(),
        state: document.status.clone(),
        exception: exception.unwrap_or_default(),
        traceback: document.traceback.as_deref().map(str::to_owned),
    })))
}

pub(super) fn decode<R: DeserializeOwned>(id: &str, value: &Raw<'_>) -> Result<R, ResultError> {
    let value = value.as_borrowed();
    value.decode().map_err(|cause| decode_error(id, cause))
}

fn decode_error(id: &str, cause: DecodeError) -> ResultError {
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

/// Waits for the value of a task, or for the list of all values of a group.
pub(super) fn wait_for_value<'a>(
    reader: &'a ResultReader,
    tree: &'a ResultTree,
) -> BoxFuture<'a, Result<Raw<'static>, ResultError>> {
    Box::pin(async move {
        let Some(members) = &tree.members else {
            let document = reader.wait(&tree.id).await?;
            return value_or_failure(&tree.id, &document).cloned();
        };
        let mut values = Vec::with_capacity(members.len());
        for chunk in members.chunks(BATCH_SIZE) {
            let chunk = chunk.iter().map(|member| wait_for_value(reader, member));
            values.extend(futures_util::future::try_join_all(chunk).await?);
        }
        let values = values
            .iter()
            .map(Raw::to_value)
            .collect::<Result<Vec<_>, _>>();
        let values = values.map_err(|cause| decode_error(&tree.id, cause))?;
        Ok(Raw::from_value(Value::Array(values)))
    })
}

/// Serializes in the form in which Celery encodes a result that a task returns:
/// `[[id, parent], null]`.
impl<R> Serialize for AsyncResult<R> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.tree.to_value().serialize(serializer)
    }
}

/// The result of a task or of a group, for a canvas without types.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AnyResult {
    /// The result of a task.
    Task(AsyncResult<Value>),
    /// The result of a group.
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
    pub(super) fn of(tree: ResultTree, reader: Arc<ResultReader>) -> Self {
        match tree.members {
            None => Self::Task(AsyncResult::of(tree, reader)),
            Some(_) => Self::Group(GroupResult::of(tree, reader)),
        }
    }

    /// Returns the id of the task or group.
    pub fn id(&self) -> &str {
        match self {
            Self::Task(task) => task.id(),
            Self::Group(group) => group.id(),
        }
    }

    /// Returns the result of the step before; see [`AsyncResult::parent`].
    pub fn parent(&self) -> Option<Self> {
        match self {
            Self::Task(task) => task.parent(),
            Self::Group(group) => group.parent(),
        }
    }

    /// Returns the ids of its tasks and of all steps before them.
    pub fn task_ids(&self) -> Vec<String> {
        match self {
            Self::Task(task) => task.task_ids(),
            Self::Group(group) => group.task_ids(),
        }
    }

    /// Waits for the value of the task, or for the list of values of the group.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`AsyncResult::get`].
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

    /// Waits at most `timeout` for the value of the task, or for the list of values of the group.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`AsyncResult::get_timeout`].
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
