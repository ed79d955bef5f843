//! The in-memory result backend.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use celery_protocol::{ResultDocument, ResultTree, Serializer, State};
use tokio::sync::Notify;

use crate::boundary::{
    BackendCapabilities, BoxFuture, ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart,
    ChordStore, Record, ResultBackend, ServiceError, ServiceErrorKind, StalledChord,
};
use crate::env::Clock;
use crate::memory::chords::Chords;
use crate::memory::faults::Faults;
use crate::memory::lock;

/// Celery's `result_expires`.
pub(super) const EXPIRES: Duration = Duration::from_secs(86_400);

/// Results inside this process, kept for a day. Clones share them.
///
/// Documents are kept as JSON, as Redis has them.
#[derive(Clone)]
pub struct MemoryBackend {
    shared: Arc<Shared>,
}

struct Shared {
    documents: Mutex<Documents>,
    stored: Notify,
    faults: Faults,
    clock: Clock,
}

#[derive(Default)]
struct Documents {
    by_id: HashMap<String, Stored>,
    groups: HashMap<String, ResultTree>,
    chords: Chords,
    /// Ids in the order of their expiry.
    expiry: VecDeque<(SystemTime, String)>,
}

struct Stored {
    state: State,
    text: Vec<u8>,
    expires: SystemTime,
}

impl MemoryBackend {
    /// An empty backend.
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// An empty backend whose results expire by `clock`.
    pub fn with_clock(clock: Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
                documents: Mutex::default(),
                stored: Notify::new(),
                faults: Faults::default(),
                clock,
            }),
        }
    }

    /// The chord that was begun with this id, to look at in tests.
    pub fn chord(&self, group_id: &str) -> Option<ChordStart> {
        lock(&self.shared.documents).chords.begun(group_id).cloned()
    }

    /// The failures to switch on.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
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
    fn store<'a>(&'a self, record: Record<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("store").await?;
            let document = record.document;
            let text = document
                .encode(Serializer::Json)
                .map_err(|error| invalid("store", &document.task_id, error.to_string()))?;
            let now = self.shared.clock.now();
            lock(&self.shared.documents).insert(document, text, now);
            self.shared.stored.notify_waiters();
            Ok(())
        })
    }

    fn prepare<'a>(&'a self, _ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(std::future::ready(
            self.shared.faults.check_planned("expect"),
        ))
    }

    fn fetch<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<ResultDocument<'static>>>, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("fetch").await?;
            ids.iter().map(|id| self.find(id)).collect()
        })
    }

    fn wait<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<ResultDocument<'static>, ServiceError>> {
        Box::pin(async move {
            loop {
                let stored = self.shared.stored.notified();
                self.shared.faults.check("wait").await?;
                match self.find(id)? {
                    Some(document) if document.status.is_ready() => return Ok(document),
                    _ => {}
                }
                tokio::select! {
                    biased;
                    () = stored => {}
                    error = self.shared.faults.broken("wait") => return Err(error),
                }
            }
        })
    }

    fn forget<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("forget").await?;
            let mut documents = lock(&self.shared.documents);
            for id in ids {
                documents.by_id.remove(id);
            }
            Ok(())
        })
    }

    fn store_group<'a>(&'a self, group: &'a ResultTree) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("store_group").await?;
            let mut documents = lock(&self.shared.documents);
            documents.groups.insert(group.id.clone(), group.clone());
            Ok(())
        })
    }

    fn fetch_group<'a>(
        &'a self,
        group_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ResultTree>, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("fetch_group").await?;
            Ok(lock(&self.shared.documents).groups.get(group_id).cloned())
        })
    }

    fn forget_group<'a>(&'a self, group_id: &'a str) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("forget_group").await?;
            lock(&self.shared.documents).groups.remove(group_id);
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
            self.shared.faults.check("begin").await?;
            let mut documents = lock(&self.shared.documents);
            if let Some(tree) = &chord.tree {
                documents
                    .groups
                    .insert(chord.group_id.clone(), tree.clone());
            }
            documents.chords.begin(chord, self.shared.clock.now());
            Ok(())
        })
    }

    fn add_member<'a>(
        &'a self,
        group_id: &'a str,
        task_id: &'a str,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("add_member").await?;
            let now = self.shared.clock.now();
            let mut documents = lock(&self.shared.documents);
            documents.chords.extend(group_id, task_id, now);
            Ok(())
        })
    }

    fn complete_member<'a>(
        &'a self,
        part: &'a ChordMember<'a>,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<Option<ChordResults>, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("complete_member").await?;
            let now = self.shared.clock.now();
            let mut documents = lock(&self.shared.documents);
            let parts = documents.chords.count(part, claim, now);
            let tree = documents.groups.get(part.group_id).cloned();
            Ok(parts.map(|parts| ChordResults::new(parts, tree)))
        })
    }

    fn renew_claim<'a>(
        &'a self,
        group_id: &'a str,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("renew_claim").await?;
            let now = self.shared.clock.now();
            let mut documents = lock(&self.shared.documents);
            Ok(documents.chords.hold(group_id, claim, now))
        })
    }

    fn finish<'a>(
        &'a self,
        group_id: &'a str,
        claim: &'a ChordClaim,
        end: ChordEnd,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("finish").await?;
            let now = self.shared.clock.now();
            let mut documents = lock(&self.shared.documents);
            Ok(documents.chords.end(group_id, claim, end, now))
        })
    }

    fn claim_stalled<'a>(
        &'a self,
        claim: &'a ChordClaim,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<StalledChord>, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("claim_stalled").await?;
            let now = self.shared.clock.now();
            let mut documents = lock(&self.shared.documents);
            let overdue = documents.chords.overdue(claim, limit, now).into_iter();
            let chord = |(id, body, parts)| {
                let tree = documents.groups.get(&id).cloned();
                StalledChord::new(id, body, ChordResults::new(parts, tree))
            };
            Ok(overdue.map(chord).collect())
        })
    }
}

impl MemoryBackend {
    fn find(&self, id: &str) -> Result<Option<ResultDocument<'static>>, ServiceError> {
        let now = self.shared.clock.now();
        let documents = lock(&self.shared.documents);
        let Some(stored) = documents
            .by_id
            .get(id)
            .filter(|stored| stored.expires > now)
        else {
            return Ok(None);
        };
        ResultDocument::decode(Serializer::Json, &stored.text, usize::MAX)
            .map(|document| Some(document.into_owned()))
            .map_err(|error| invalid("read", id, error.to_string()))
    }
}

impl Documents {
    fn insert(&mut self, document: &ResultDocument<'_>, text: Vec<u8>, now: SystemTime) {
        self.expire(now);
        let id = document.task_id.as_ref();
        let success = |stored: &Stored| stored.state == State::Success && stored.expires > now;
        if self.by_id.get(id).is_some_and(success) {
            return;
        }
        let expires = now + EXPIRES;
        let stored = Stored {
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
            // Stored again since, it has a later entry of its own.
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
