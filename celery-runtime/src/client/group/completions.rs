//! The results of a group as they come: [`Completions`].

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Raw, ResultDocument, ResultTree};
use serde::de::DeserializeOwned;
use tokio::task::{JoinError, JoinSet};

use crate::client::BATCH_SIZE;
use crate::client::result::{Reader, ResultError, decode, ended, value_of};
use crate::env;

/// Between two looks at members that are not waited for yet.
const PAUSE: Duration = Duration::from_millis(100);

/// The results of a group's members as they come.
pub struct Completions<T> {
    reader: Arc<Reader>,
    /// Not waited for yet, the one that was not looked at for longest first.
    others: VecDeque<Member>,
    /// Tasks of their own: each may have a connection of the backend's in use,
    /// which must not wait for whoever asks for the next result.
    waiting: JoinSet<MemberOutcome>,
    /// Came, and not given out yet.
    here: VecDeque<MemberOutcome>,
    result: PhantomData<fn() -> T>,
}

/// A member by its place.
type Member = (usize, ResultTree);

/// The value of a member, by its place and id.
type MemberOutcome = (usize, String, Result<Raw<'static>, ResultError>);

impl<T> Completions<T> {
    pub(super) fn of(members: VecDeque<Member>, reader: Arc<Reader>) -> Self {
        Self {
            reader,
            others: members,
            waiting: JoinSet::new(),
            here: VecDeque::new(),
            result: PhantomData,
        }
    }

    fn wait_for(&mut self, (place, tree): Member) {
        let reader = Arc::clone(&self.reader);
        env::spawn_in(&mut self.waiting, async move {
            let value = value_of(&reader, &tree).await;
            (place, tree.id, value)
        });
    }

    /// Takes the next ones of those that are not waited for: what has ended is
    /// there now; of the rest as many are waited for as may be.
    async fn look(&mut self) {
        let count = self.others.len().min(BATCH_SIZE);
        let documents = match self.read(count).await {
            Ok(documents) => documents,
            Err(error) => {
                let told = self.others.drain(..).map(|(place, tree)| {
                    let error = same_for(&tree, &error);
                    (place, tree.id, Err(error))
                });
                return self.here.extend(told);
            }
        };
        let mut documents = documents.into_iter();
        // Nothing was taken until now, so that nothing is lost with this future.
        let some: Vec<_> = self.others.drain(..count).collect();
        for (place, tree) in some {
            let document = match tree.members {
                None => documents.next().flatten(),
                Some(_) => None,
            };
            match document.filter(|document| document.status.is_ready()) {
                Some(document) => {
                    let value = ended(&tree.id, &document).cloned();
                    self.here.push_back((place, tree.id, value));
                }
                None if self.waiting.len() < BATCH_SIZE => self.wait_for((place, tree)),
                None => self.others.push_back((place, tree)),
            }
        }
    }

    /// What is stored of the tasks among the next members.
    async fn read(
        &self,
        count: usize,
    ) -> Result<Vec<Option<ResultDocument<'static>>>, ResultError> {
        let members = self.others.iter().take(count).map(|(_, tree)| tree);
        let tasks = members.filter(|tree| tree.members.is_none());
        let ids: Vec<_> = tasks.map(|tree| tree.id.clone()).collect();
        let Some(first) = ids.first() else {
            return Ok(Vec::new());
        };
        let backend = self.reader.backend(first)?;
        Ok(self.reader.ask("read", || backend.fetch(&ids)).await?)
    }
}

impl<T: DeserializeOwned> Completions<T> {
    /// The next member that has ended, by its place in the group; `None` once
    /// all have come.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<(usize, Result<T, ResultError>)> {
        loop {
            if let Some((place, id, value)) = self.here.pop_front() {
                return Some((place, value.and_then(|value| decode(&id, &value))));
            }
            if self.others.is_empty() {
                let came = self.waiting.join_next().await?;
                self.here.push_back(came.unwrap_or_else(unwind));
            } else if self.waiting.len() <= BATCH_SIZE / 2 {
                self.look().await;
            } else {
                match tokio::time::timeout(PAUSE, self.waiting.join_next()).await {
                    Ok(came) => self
                        .here
                        .extend(came.map(|came| came.unwrap_or_else(unwind))),
                    Err(_) => self.look().await,
                }
            }
        }
    }
}

impl<T> fmt::Debug for Completions<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.others.len() + self.waiting.len() + self.here.len();
        f.debug_struct("Completions").field("left", &left).finish()
    }
}

/// Nobody aborts a wait that is still asked for.
fn unwind<T>(error: JoinError) -> T {
    std::panic::resume_unwind(error.into_panic())
}

/// What keeps one result from being read keeps the others, too.
fn same_for(tree: &ResultTree, error: &ResultError) -> ResultError {
    match error {
        ResultError::Backend(cause) => ResultError::Backend(cause.clone()),
        _ => ResultError::NoBackend {
            id: tree.id.clone(),
        },
    }
}
