//! Reading the results of groups: [`GroupResult`].

mod completions;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, ResultDocument, ResultTree, State, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::BATCH_SIZE;
use crate::client::reader::ResultReader;
use crate::client::result::{AnyResult, AsyncResult, ResultError, decode};

pub use crate::client::group::completions::Completions;

/// A handle to the results of a group that was sent, in the order of its members; `Out` is a `Vec`
/// or a tuple of their types.
///
/// Dropping it does not affect the tasks.
pub struct GroupResult<Out> {
    tree: ResultTree,
    reader: Arc<ResultReader>,
    result: PhantomData<fn() -> Out>,
}

/// Serializes in the form in which Celery encodes a group result that a task returns:
/// `[[id, parent], members]`.
impl<R> Serialize for GroupResult<R> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.tree.to_value().serialize(serializer)
    }
}

impl<Out> GroupResult<Out> {
    pub(crate) fn of(tree: ResultTree, reader: Arc<ResultReader>) -> Self {
        Self {
            tree,
            reader,
            result: PhantomData,
        }
    }

    /// Returns the id of the group.
    pub fn id(&self) -> &str {
        &self.tree.id
    }

    /// Returns the result of the step before in its chain, which all members have received.
    pub fn parent(&self) -> Option<AnyResult> {
        let parent = self.tree.parent()?;
        Some(AnyResult::of(parent, Arc::clone(&self.reader)))
    }

    /// Returns the ids of its members and of all steps before them, for example to
    /// [revoke](crate::Control::revoke) all of them.
    pub fn task_ids(&self) -> Vec<String> {
        self.tree
            .task_ids()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// Returns the results of its members in their order.
    pub fn members(&self) -> Vec<AnyResult> {
        let member = |tree: &ResultTree| AnyResult::of(tree.clone(), Arc::clone(&self.reader));
        self.trees().iter().map(member).collect()
    }

    /// Returns the result trees of the members. A group of one member may have been sent as the
    /// member alone.
    fn trees(&self) -> &[ResultTree] {
        match &self.tree.members {
            Some(members) => members,
            None => std::slice::from_ref(&self.tree),
        }
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.trees().len()
    }

    /// Returns whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the states of all tasks, including those of nested groups.
    ///
    /// # Errors
    ///
    /// Fails if there is no result backend, or if it does not answer within the operation timeout.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn states(&self) -> Result<Vec<State>, ResultError> {
        let ids: Vec<_> = leaves(self.trees()).map(|tree| tree.id.clone()).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let backend = self.reader.backend(&self.tree.id)?;
        let mut states = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(BATCH_SIZE) {
            let documents = self
                .reader
                .with_deadline("read", || backend.fetch(chunk))
                .await?;
            let state = |document: Option<ResultDocument<'_>>| {
                document.map_or(State::Pending, |document| document.status)
            };
            states.extend(documents.into_iter().map(state));
        }
        Ok(states)
    }

    /// Returns whether all tasks have succeeded, failed or been revoked.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`states`](Self::states).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ready(&self) -> Result<bool, ResultError> {
        Ok(self.states().await?.iter().all(State::is_ready))
    }

    /// Returns the number of tasks that have succeeded so far.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`states`](Self::states).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn completed_count(&self) -> Result<usize, ResultError> {
        let states = self.states().await?;
        Ok(states
            .iter()
            .filter(|state| **state == State::Success)
            .count())
    }

    /// Stores the ids of the group in the result backend. Afterwards
    /// [`Client::group_result`](crate::Client::group_result) in any process, or Python's
    /// `GroupResult.restore`, returns the group.
    ///
    /// # Errors
    ///
    /// Fails if there is no result backend, if it does not support saved groups, or if it does not
    /// answer within the operation timeout.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have saved it.
    pub async fn save(&self) -> Result<(), ResultError> {
        let backend = self.reader.backend(&self.tree.id)?;
        let saving = self
            .reader
            .with_deadline("store", || backend.store_group(&self.tree));
        Ok(saving.await?)
    }

    /// Deletes the ids stored by [`save`](Self::save). The results of the tasks are kept.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have deleted it.
    pub async fn delete(&self) -> Result<(), ResultError> {
        let backend = self.reader.backend(&self.tree.id)?;
        let deleting = || backend.forget_group(&self.tree.id);
        Ok(self.reader.with_deadline("forget", deleting).await?)
    }

    /// Deletes the stored results of all tasks.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`states`](Self::states).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have deleted some.
    pub async fn forget(&self) -> Result<(), ResultError> {
        let ids: Vec<_> = leaves(self.trees()).map(|tree| tree.id.clone()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let backend = self.reader.backend(&self.tree.id)?;
        for chunk in ids.chunks(BATCH_SIZE) {
            self.reader
                .with_deadline("forget", || backend.forget(chunk))
                .await?;
        }
        Ok(())
    }

    /// Waits until all members have ended, and returns the value or the failure of each, in their
    /// order.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn outcomes<T: DeserializeOwned>(&self) -> Vec<Result<T, ResultError>> {
        let mut outcomes: Vec<Option<_>> = self.trees().iter().map(|_| None).collect();
        let mut completed = self.as_completed::<T>();
        while let Some((index, outcome)) = completed.next().await {
            outcomes[index] = Some(outcome);
        }
        outcomes.into_iter().flatten().collect()
    }

    /// Returns the results of the members in the order in which they end, with their indexes.
    ///
    /// At most 1000 members are waited for at the same time; the others are polled.
    pub fn as_completed<T: DeserializeOwned>(&self) -> Completions<T> {
        let trees = self.trees().iter().cloned();
        Completions::of(trees.enumerate().collect(), Arc::clone(&self.reader))
    }
}

impl<Out: DeserializeOwned> GroupResult<Out> {
    /// Waits until all members have ended, without a limit, and returns their values in their
    /// order. Returns as soon as a member has failed. See [`get_timeout`](Self::get_timeout) for a
    /// limit.
    ///
    /// # Errors
    ///
    /// Fails if a member failed or was revoked, if a value has another type, if there is no result
    /// backend, or if it refuses a request permanently. While the backend is unavailable, the call
    /// waits.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get(&self) -> Result<Out, ResultError> {
        let mut values = vec![Value::Null; self.len()];
        let mut completed = self.as_completed::<Value>();
        while let Some((index, value)) = completed.next().await {
            values[index] = value?;
        }
        decode(&self.tree.id, &Raw::from_value(Value::Array(values)))
    }

    /// Waits at most `timeout` until all members have ended, and returns their values in their
    /// order.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`get`](Self::get), and [`ResultError::TimedOut`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get_timeout(&self, timeout: Duration) -> Result<Out, ResultError> {
        match tokio::time::timeout(timeout, self.get()).await {
            Ok(values) => values,
            Err(_) => Err(ResultError::TimedOut {
                id: self.tree.id.clone(),
                waited: timeout,
            }),
        }
    }
}

/// Returns all tasks in order, with nested groups replaced by their tasks.
fn leaves(trees: &[ResultTree]) -> impl Iterator<Item = &ResultTree> {
    let mut pending: Vec<_> = trees.iter().rev().collect();
    std::iter::from_fn(move || {
        loop {
            let tree = pending.pop()?;
            match &tree.members {
                Some(members) => pending.extend(members.iter().rev()),
                None => return Some(tree),
            }
        }
    })
}

impl<Out> GroupResult<Out> {
    /// Converts it to an [`AnyResult`], for example to store it together with other results.
    pub fn untyped(&self) -> AnyResult {
        AnyResult::of(self.tree.clone(), Arc::clone(&self.reader))
    }

    /// Returns the result of the member with this index.
    pub fn member<T>(&self, index: usize) -> Option<AsyncResult<T>> {
        let tree = self.trees().get(index)?.clone();
        Some(AsyncResult::of(tree, Arc::clone(&self.reader)))
    }
}

impl<Out> Clone for GroupResult<Out> {
    fn clone(&self) -> Self {
        Self::of(self.tree.clone(), Arc::clone(&self.reader))
    }
}

impl<Out> fmt::Debug for GroupResult<Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupResult")
            .field("id", &self.tree.id)
            .field("members", &self.len())
            .finish()
    }
}
