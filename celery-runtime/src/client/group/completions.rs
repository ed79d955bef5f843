//! The results of a group in the order of completion: [`Completions`].

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, ResultDocument, ResultTree};
use serde::de::DeserializeOwned;
use tokio::task::{JoinError, JoinSet};

use crate::client::BATCH_SIZE;
use crate::client::reader::ResultReader;
use crate::client::result::{ResultError, decode, value_or_failure, wait_for_value};
use crate::env;

/// The interval at which members that are not waited for are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The results of a group's members in the order in which they end.
pub struct Completions<T> {
    reader: Arc<ResultReader>,
    /// Members that are not waited for, ordered by the time of their last poll.
    polled: VecDeque<Member>,
    /// Members that are waited for, in tokio tasks. Each may hold a connection of the backend,
    /// whose progress must not depend on calls of [`next`](Self::next).
    waiting: JoinSet<MemberOutcome>,
    /// Results that were not returned yet.
    completed: VecDeque<MemberOutcome>,
    result: PhantomData<fn() -> T>,
}

/// The index and result tree of a member.
type Member = (usize, ResultTree);

/// The index, id and value of a member.
type MemberOutcome = (usize, String, Result<Raw<'static>, ResultError>);

impl<T> Completions<T> {
    pub(super) fn of(members: VecDeque<Member>, reader: Arc<ResultReader>) -> Self {
        Self {
            reader,
            polled: members,
            waiting: JoinSet::new(),
            completed: VecDeque::new(),
            result: PhantomData,
        }
    }

    /// Starts to wait for a member in a tokio task.
    fn wait_for(&mut self, (index, tree): Member) {
        let reader = Arc::clone(&self.reader);
        env::spawn_in(&mut self.waiting, async move {
            let value = wait_for_value(&reader, &tree).await;
            (index, tree.id, value)
        });
    }

    /// Reads the stored results of the next polled members. Those that have ended are complete; of
    /// the others as many as possible are waited for.
    async fn poll_members(&mut self) {
        let count = self.polled.len().min(BATCH_SIZE);
        let documents = match self.read(count).await {
            Ok(documents) => documents,
            Err(error) => {
                let failed = self.polled.drain(..).map(|(index, tree)| {
                    let error = error_for(&tree, &error);
                    (index, tree.id, Err(error))
                });
                return self.completed.extend(failed);
            }
        };
        let mut documents = documents.into_iter();
        // Members are removed after the last await, so that a dropped future loses none.
        let members: Vec<_> = self.polled.drain(..count).collect();
        for (index, tree) in members {
            let document = match tree.members {
                None => documents.next().flatten(),
                Some(_) => None,
            };
            match document.filter(|document| document.status.is_ready()) {
                Some(document) => {
                    let value = value_or_failure(&tree.id, &document).cloned();
                    self.completed.push_back((index, tree.id, value));
                }
                None if self.waiting.len() < BATCH_SIZE => self.wait_for((index, tree)),
                None => self.polled.push_back((index, tree)),
            }
        }
    }

    /// Reads the stored results of the tasks among the next `count` members.
    async fn read(
        &self,
        count: usize,
    ) -> Result<Vec<Option<ResultDocument<'static>>>, ResultError> {
        let members = self.polled.iter().take(count).map(|(_, tree)| tree);
        let tasks = members.filter(|tree| tree.members.is_none());
        let ids: Vec<_> = tasks.map(|tree| tree.id.clone()).collect();
        let Some(first) = ids.first() else {
            return Ok(Vec::new());
        };
        let backend = self.reader.backend(first)?;
        Ok(self.reader.without_deadline(|| backend.fetch(&ids)).await?)
    }
}

impl<T: DeserializeOwned> Completions<T> {
    /// Waits for the next member that has ended, and returns its index in the group and its result;
    /// `None` after the last member.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<(usize, Result<T, ResultError>)> {
        loop {
            if let Some((index, id, value)) = self.completed.pop_front() {
                return Some((index, value.and_then(|value| decode(&id, &value))));
            }
            if self.polled.is_empty() {
                let outcome = self.waiting.join_next().await?;
                self.completed
                    .push_back(outcome.unwrap_or_else(resume_unwind));
            } else if self.waiting.len() <= BATCH_SIZE / 2 {
                self.poll_members().await;
            } else {
                match tokio::time::timeout(POLL_INTERVAL, self.waiting.join_next()).await {
                    Ok(outcome) => self
                        .completed
                        .extend(outcome.map(|outcome| outcome.unwrap_or_else(resume_unwind))),
                    Err(_) => self.poll_members().await,
                }
            }
        }
    }
}

impl<T> fmt::Debug for Completions<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.polled.len() + self.waiting.len() + self.completed.len();
        f.debug_struct("Completions").field("left", &left).finish()
    }
}

/// Resumes the panic of a tokio task. The tasks are aborted only when the set is dropped.
fn resume_unwind<T>(error: JoinError) -> T {
    std::panic::resume_unwind(error.into_panic())
}

/// Converts an error in reading a batch of members to the error of one of them.
fn error_for(tree: &ResultTree, error: &ResultError) -> ResultError {
    match error {
        ResultError::Backend(cause) => ResultError::Backend(cause.clone()),
        _ => ResultError::NoBackend {
            id: tree.id.clone(),
        },
    }
}
