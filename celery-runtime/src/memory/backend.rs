//! The in-memory result backend.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use celery_protocol::{ResultDocument, ResultTree, Serializer, State};
use tokio::sync::Notify;

use crate::boundary::{
    BackendCapabilities, BoxFuture, ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart,
    ChordStore, ResultBackend, ResultRecord, ServiceError, ServiceErrorKind, StalledChord,
};
use crate::env::Clock;
use crate::memory::chords::ChordTable;
use crate::memory::faults::Faults;
use crate::memory::lock;

/// The time after which results expire: the default of Celery's `result_expires`.
pub(super) const RESULT_TTL: Duration = Duration::from_secs(86_400);

/// A result backend inside this process. Clones share their results.
///
/// Results expire after a day. Documents are stored as JSON, as on Redis.
#[derive(Clone)]
pub struct MemoryBackend {
    inner: Arc<BackendInner>,
}

struct BackendInner {
    results: Mutex<StoredResults>,
    stored: Notify,
    faults: Faults,
    clock: Clock,
}

#[derive(Default)]
struct StoredResults {
    by_id: HashMap<String, StoredDocument>,
    groups: HashMap<String, ResultTree>,
    chords: ChordTable,
    /// Task ids in the order in which their documents expire.
    expiry: VecDeque<(SystemTime, String)>,
}

struct StoredDocument {
    state: State,
    text: Vec<u8>,
    expires: SystemTime,
}

impl MemoryBackend {
    /// Returns an empty backend.
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// Returns an empty backend whose results expire by `clock`.
    pub fn with_clock(clock: Clock) -> Self {
        Self {
            inner: Arc::new(BackendInner {
                results: Mutex::default(),
                stored: Notify::new(),
                faults: Faults::default(),
                clock,
            }),
        }
    }

    /// Returns the chord that began with this id, for tests.
    pub fn chord(&self, group_id: &str) -> Option<ChordStart> {
        lock(&self.inner.results).chords.started(group_id).cloned()
    }

    /// Returns the failures that a test can switch on.
    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend").finish_non_exhaustive()
    }
}

impl ResultBackend for MemoryBackend {
    fn store<'a>(&'a self, record: ResultRecord<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("store").await?;
            let document = record.document;
            let text = document
                .encode(Serializer::Json)
                .map_err(|error| invalid("store", &document.task_id, error.to_string()))?;
            let now = self.inner.clock.now();
            lock(&self.inner.results).insert(document, text, now);
            self.inner.stored.notify_waiters();
            Ok(())
        })
    }

    fn prepare<'a>(&'a self, _ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(std::future::ready(
            self.inner.faults.check_planned("prepare"),
        ))
    }

    fn fetch<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<ResultDocument<'static>>>, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("fetch").await?;
            ids.iter().map(|id| self.find(id)).collect()
        })
    }

    fn wait<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<ResultDocument<'static>, ServiceError>> {
        Box::pin(async move {
            loop {
                let stored = self.inner.stored.notified();
                self.inner.faults.check("wait").await?;
                match self.find(id)? {
                    Some(document) if document.status.is_ready() => return Ok(document),
                    _ => {}
                }
                tokio::select! {
                    biased;
                    () = stored => {}
                    error = self.inner.faults.broken("wait") => return Err(error),
                }
            }
        })
    }

    fn forget<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("forget").await?;
            let mut results = lock(&self.inner.results);
            for id in ids {
                results.by_id.remove(id);
            }
            Ok(())
        })
    }

    fn store_group<'a>(&'a self, group: &'a ResultTree) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("store_group").await?;
            let mut results = lock(&self.inner.results);
            results.groups.insert(group.id.clone(), group.clone());
            Ok(())
        })
    }

    fn fetch_group<'a>(
        &'a self,
        group_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ResultTree>, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("fetch_group").await?;
            Ok(lock(&self.inner.results).groups.get(group_id).cloned())
        })
    }

    fn forget_group<'a>(&'a self, group_id: &'a str) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("forget_group").await?;
            lock(&self.inner.results).groups.remove(group_id);
            Ok(())
        })
    }

    fn chords(&self) -> Option<&dyn ChordStore> {
        Some(self)
    }

    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities::new().shared(true).groups(true)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl ChordStore for MemoryBackend {
    fn begin<'a>(&'a self, chord: &'a ChordStart) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("begin").await?;
            let mut results = lock(&self.inner.results);
            if let Some(tree) = &chord.tree {
                results.groups.insert(chord.group_id.clone(), tree.clone());
            }
            results.chords.begin(chord, self.inner.clock.now());
            Ok(())
        })
    }

    fn add_member<'a>(
        &'a self,
        group_id: &'a str,
        task_id: &'a str,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("add_member").await?;
            let now = self.inner.clock.now();
            let mut results = lock(&self.inner.results);
            results.chords.add_member(group_id, task_id, now);
            Ok(())
        })
    }

    fn complete_member<'a>(
        &'a self,
        member: &'a ChordMember<'a>,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<Option<ChordResults>, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("complete_member").await?;
            let now = self.inner.clock.now();
            let mut results = lock(&self.inner.results);
            let members = results.chords.complete_member(member, claim, now);
            let tree = results.groups.get(member.group_id).cloned();
            Ok(members.map(|members| ChordResults::new(members, tree)))
        })
    }

    fn renew_claim<'a>(
        &'a self,
        group_id: &'a str,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("renew_claim").await?;
            let now = self.inner.clock.now();
            let mut results = lock(&self.inner.results);
            Ok(results.chords.renew_claim(group_id, claim, now))
        })
    }

    fn finish<'a>(
        &'a self,
        group_id: &'a str,
        claim: &'a ChordClaim,
        end: ChordEnd,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("finish").await?;
            let now = self.inner.clock.now();
            let mut results = lock(&self.inner.results);
            Ok(results.chords.finish(group_id, claim, end, now))
        })
    }

    fn claim_stalled<'a>(
        &'a self,
        claim: &'a ChordClaim,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<StalledChord>, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("claim_stalled").await?;
            let now = self.inner.clock.now();
            let mut results = lock(&self.inner.results);
            let stalled = results.chords.claim_stalled(claim, limit, now).into_iter();
            let chord = |(id, body, members)| {
                let tree = results.groups.get(&id).cloned();
                StalledChord::new(id, body, ChordResults::new(members, tree))
            };
            Ok(stalled.map(chord).collect())
        })
    }
}

impl MemoryBackend {
    fn find(&self, id: &str) -> Result<Option<ResultDocument<'static>>, ServiceError> {
        let now = self.inner.clock.now();
        let results = lock(&self.inner.results);
        let Some(stored) = results.by_id.get(id).filter(|stored| stored.expires > now) else {
            return Ok(None);
        };
        ResultDocument::decode(Serializer::Json, &stored.text, usize::MAX)
            .map(|document| Some(document.into_owned()))
            .map_err(|error| invalid("read", id, error.to_string()))
    }
}

impl StoredResults {
    fn insert(&mut self, document: &ResultDocument<'_>, text: Vec<u8>, now: SystemTime) {
        self.expire(now);
        let id = document.task_id.as_ref();
        let success =
            |stored: &StoredDocument| stored.state == State::Success && stored.expires > now;
        if self.by_id.get(id).is_some_and(success) {
            return;
        }
        let expires = now + RESULT_TTL;
        let stored = StoredDocument {
            state: document.status.clone(),
            text,
            expires,
        };
        self.by_id.insert(id.to_owned(), stored);
        self.expiry.push_back((expires, id.to_owned()));
    }

    fn expire(&mut self, now: SystemTime) {
        while let Some((due, id)) = self.expiry.front()
            && *due <= now
        {
            // A document that was stored again has a later entry.
            if self
                .by_id
                .get(id)
                .is_some_and(|stored| stored.expires <= now)
            {
                self.by_id.remove(id);
            }
            self.expiry.pop_front();
        }
    }
}

fn invalid(operation: &'static str, id: &str, cause: String) -> ServiceError {
    let object = format!("the result of task {id}");
    ServiceError::new(ServiceErrorKind::Invalid, operation, object, cause)
}
