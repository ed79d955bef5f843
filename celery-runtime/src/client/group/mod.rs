//! Reading the results of groups: [`GroupResult`].

mod completions;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, ResultTree, State, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::BATCH_SIZE;
use crate::client::result::{AnyResult, AsyncResult, Reader, ResultError, decode};

pub use crate::client::group::completions::Completions;

/// The results of a group that was sent, in the order of its members; `Out` is
/// a `Vec` or a tuple of them.
///
/// Dropping it changes nothing for the tasks.
pub struct GroupResult<Out> {
    tree: ResultTree,
    reader: Arc<Reader>,
    result: PhantomData<fn() -> Out>,
}

/// As Celery writes it in what a task returns: `[[id, parent], members]`.
impl<R> Serialize for GroupResult<R> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.tree.to_value().serialize(serializer)
    }
}

impl<Out> GroupResult<Out> {
    pub(crate) fn of(tree: ResultTree, reader: Arc<Reader>) -> Self {
        Self {
            tree,
            reader,
            result: PhantomData,
        }
    }

    /// The group's id.
    pub fn id(&self) -> &str {
        &self.tree.id
    }

    /// What came before it in its chain, the nearest: the step whose result all
    /// members got.
    pub fn parent(&self) -> Option<AnyResult> {
        let parent = self.tree.parent()?;
        Some(AnyResult::of(parent, Arc::clone(&self.reader)))
    }

    /// The ids of its members and of what came before them, such as to
    /// [revoke](crate::Control::revoke) them all.
    pub fn task_ids(&self) -> Vec<String> {
        self.tree
            .task_ids()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// The results of its members, in their order.
    pub fn members(&self) -> Vec<AnyResult> {
        let member = |tree: &ResultTree| AnyResult::of(tree.clone(), Arc::clone(&self.reader));
        self.trees().iter().map(member).collect()
    }

    /// A group of one that was taken apart is that one.
    fn trees(&self) -> &[ResultTree] {
        match &self.tree.members {
            Some(members) => members,
            None => std::slice::from_ref(&self.tree),
        }
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.trees().len()
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The states of all tasks, those of groups inside included.
    ///
    /// # Errors
    ///
    /// When there is no backend, or it does not answer within the deadline.
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
        for some in ids.chunks(BATCH_SIZE) {
            let documents = self.reader.ask("read", || backend.fetch(some)).await?;
            let known = documents.into_iter();
            states.extend(known.map(|document| document.map_or(State::Pending, |one| one.status)));
        }
        Ok(states)
    }

    /// Whether all tasks have ended, in whatever way.
    ///
    /// # Errors
    ///
    /// As [`states`](Self::states).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ready(&self) -> Result<bool, ResultError> {
        Ok(self.states().await?.iter().all(State::is_ready))
    }

    /// How many tasks have succeeded so far.
    ///
    /// # Errors
    ///
    /// As [`states`](Self::states).
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

    /// Remembers on the result backend which results the group has, for
    /// [`Client::group_result`](crate::Client::group_result) anywhere, in Python
    /// too.
    ///
    /// # Errors
    ///
    /// When there is no backend, it keeps no groups, or it does not answer
    /// within the deadline.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have saved it.
    pub async fn save(&self) -> Result<(), ResultError> {
        let backend = self.reader.backend(&self.tree.id)?;
        let saving = self.reader.ask("store", || backend.store_group(&self.tree));
        Ok(saving.await?)
    }

    /// Undoes [`save`](Self::save). What the tasks returned stays.
    ///
    /// # Errors
    ///
    /// As [`save`](Self::save).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have deleted it.
    pub async fn delete(&self) -> Result<(), ResultError> {
        let backend = self.reader.backend(&self.tree.id)?;
        let deleting = || backend.forget_group(&self.tree.id);
        Ok(self.reader.ask("forget", deleting).await?)
    }

    /// Deletes what is stored of all tasks.
    ///
    /// # Errors
    ///
    /// As [`states`](Self::states).
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
        for some in ids.chunks(BATCH_SIZE) {
            self.reader.ask("forget", || backend.forget(some)).await?;
        }
        Ok(())
    }

    /// The result of each member once all have ended, however they did, in
    /// their order.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn outcomes<T: DeserializeOwned>(&self) -> Vec<Result<T, ResultError>> {
        let mut outcomes: Vec<Option<_>> = self.trees().iter().map(|_| None).collect();
        let mut completed = self.as_completed::<T>();
        while let Some((place, outcome)) = completed.next().await {
            outcomes[place] = Some(outcome);
        }
        outcomes.into_iter().flatten().collect()
    }

    /// The results of the members as they come, with their places.
    ///
    /// Of very many members a thousand are waited for at a time, and the others
    /// are looked at every now and then.
    pub fn as_completed<T: DeserializeOwned>(&self) -> Completions<T> {
        let trees = self.trees().iter().cloned();
        Completions::of(trees.enumerate().collect(), Arc::clone(&self.reader))
    }
}

impl<Out: DeserializeOwned> GroupResult<Out> {
    /// Waits until all members have ended and returns their values in their
    /// order, however long that takes; [`get_timeout`](Self::get_timeout) bounds
    /// it. The first failure ends it.
    ///
    /// # Errors
    ///
    /// When a member failed or was revoked, when a value has another type, when
    /// there is no backend, or when it stays away for longer than the configured
    /// deadline.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get(&self) -> Result<Out, ResultError> {
        let mut values = vec![Value::Null; self.len()];
        let mut completed = self.as_completed::<Value>();
        while let Some((place, value)) = completed.next().await {
            values[place] = value?;
        }
        decode(&self.tree.id, &Raw::from_value(Value::Array(values)))
    }

    /// The same, for at most this long.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and when not all members have ended by then.
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

/// All tasks, those of groups inside in their places.
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
    /// The group as one of any results, such as to put it beside others.
    pub fn untyped(&self) -> AnyResult {
        AnyResult::of(self.tree.clone(), Arc::clone(&self.reader))
    }

    /// One member by its place.
    pub fn member<T>(&self, place: usize) -> Option<AsyncResult<T>> {
        let tree = self.trees().get(place)?.clone();
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
