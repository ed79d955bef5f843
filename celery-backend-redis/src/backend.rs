//! The result backend.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use celery_broker_redis::RedisOptions;
use celery_broker_redis::link::{Attempt, Command, Link, Reply, Script};
use celery_protocol::{ResultDocument, ResultTree, Serializer, State, Value, decompress_document};
use celery_runtime::{
    BackendCapabilities, BoxFuture, ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart,
    ChordStore, Record, ResultBackend, ServiceError, ServiceErrorKind, StalledChord,
};

use crate::keys::Keys;
use crate::listen::Listener;

static STORE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/store.lua")));

/// When a result that was not announced is looked for, first and later on.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LAST_LOOK: Duration = Duration::from_secs(5);

/// Redis keeps no value that is larger.
pub(crate) const LARGEST: usize = 512 << 20;

/// Results on Redis, as Celery keeps them. Clones share connections.
#[derive(Clone)]
pub struct RedisBackend {
    pub(crate) link: Link,
    pub(crate) keys: Keys,
    listener: Arc<Listener>,
    pub(crate) expires: Option<Duration>,
    pub(crate) chord_expires: Option<Duration>,
    pub(crate) chord_order: ChordOrder,
    pub(crate) serializer: Serializer,
}

/// Whether the parts of a chord are kept by their index or as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChordOrder {
    Index,
    Arrival,
}

impl RedisBackend {
    /// A backend that connects when it is first used. Results are JSON and are
    /// kept for a day, Celery's defaults.
    pub fn new(options: RedisOptions) -> Self {
        let keys = Keys::new(options.key_prefix());
        let link = Link::new(options);
        Self {
            listener: Arc::new(Listener::new(link.clone())),
            keys,
            link,
            expires: Some(Duration::from_secs(86_400)),
            chord_expires: None,
            chord_order: ChordOrder::Index,
            serializer: Serializer::Json,
        }
    }

    /// Keeps results for this long, in whole seconds; for ever where `None` or
    /// zero, as Celery has it.
    #[must_use]
    pub fn result_expires(self, expires: Option<Duration>) -> Self {
        Self { expires, ..self }
    }

    /// Keeps what is needed to go on with a chord for this long, in whole
    /// seconds; as long as results where `None`, the default, and for ever where
    /// zero, as Celery has it. It has to be longer than a chord may take.
    #[must_use]
    pub fn result_chord_expires(self, chord_expires: Option<Duration>) -> Self {
        Self {
            chord_expires,
            ..self
        }
    }

    /// Whether the body of a chord gets the results in the order of its header,
    /// which is the default, or as they came. Celery has it among its
    /// `result_backend_transport_options`; it has to be the same for everybody
    /// on this backend.
    #[must_use]
    pub fn result_chord_ordered(self, ordered: bool) -> Self {
        let chord_order = match ordered {
            true => ChordOrder::Index,
            false => ChordOrder::Arrival,
        };
        Self {
            chord_order,
            ..self
        }
    }

    /// Writes and reads documents with this serializer, which has to be that of
    /// everybody on this backend.
    #[must_use]
    pub fn serializer(self, serializer: Serializer) -> Self {
        Self { serializer, ..self }
    }

    async fn store_document(&self, document: &ResultDocument<'_>) -> Result<(), ServiceError> {
        let object = object(&document.task_id);
        let attempt = Attempt::new("store", &object);
        let text = document
            .encode(self.serializer)
            .map_err(|error| self.invalid(attempt, &error.to_string()))?;
        if text.len() > LARGEST {
            return Err(self.invalid(attempt, "it is larger than 512 MB"));
        }
        let key = self.keys.task(&document.task_id);
        let mut known = Bytes::new();
        loop {
            let seconds = self.seconds();
            let arguments = [&*text, seconds.as_bytes(), &known];
            let answer = self
                .link
                .script(attempt, &STORE, &[&key], &arguments)
                .await?;
            // In a form that the script cannot read: it is looked at here, and
            // replaced only if it is still the same.
            let Some(old) = answer.data() else {
                return Ok(());
            };
            if self.is_success(&old) {
                return Ok(());
            }
            known = old;
        }
    }

    fn is_success(&self, document: &[u8]) -> bool {
        ResultDocument::decode(self.serializer, document, LARGEST)
            .is_ok_and(|document| document.status == State::Success)
    }

    async fn fetch_documents(
        &self,
        ids: &[String],
    ) -> Result<Vec<Option<ResultDocument<'static>>>, ServiceError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let object = several(ids);
        let attempt = Attempt::new("read", &object);
        let command = Command::new("MGET").args(ids.iter().map(|id| self.keys.task(id)));
        let answers = self.link.call(attempt, command).await?.list();
        answers
            .into_iter()
            .map(|answer| {
                answer
                    .data()
                    .map(|bytes| self.decode(attempt, &bytes))
                    .transpose()
            })
            .collect()
    }

    /// Subscribes first and reads then, so that a result stored in between is
    /// not missed. It reads again from time to time, since not everybody who
    /// stores a result announces it, as aio-celery does not.
    async fn wait_for(&self, id: &str) -> Result<ResultDocument<'static>, ServiceError> {
        let object = object(id);
        let attempt = Attempt::new("wait for", &object);
        let key = self.keys.task(id);
        let mut announced = self.listener.subscribe(attempt, &key).await?;
        let read = async || {
            let stored = self.link.call(attempt, Command::new("GET").arg(&key));
            Ok::<_, ServiceError>(stored.await?.data())
        };
        let mut newest = read().await?;
        let mut pause = FIRST_LOOK;
        loop {
            if let Some(bytes) = newest {
                let document = self.decode(attempt, &bytes)?;
                if document.status.is_ready() {
                    return Ok(document);
                }
            }
            newest = match tokio::time::timeout(pause, announced.next(attempt)).await {
                Ok(announced) => Some(announced?),
                Err(_) => read().await?,
            };
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    async fn delete(&self, ids: &[String]) -> Result<(), ServiceError> {
        if ids.is_empty() {
            return Ok(());
        }
        let object = several(ids);
        let command = Command::new("DEL").args(ids.iter().map(|id| self.keys.task(id)));
        self.link
            .call(Attempt::new("forget", &object), command)
            .await
            .map(drop)
    }

    async fn save_group(&self, group: &ResultTree) -> Result<(), ServiceError> {
        let object = format!("group {}", group.id);
        let attempt = Attempt::new("store", &object);
        let text = self.group_document(attempt, group)?;
        let key = self.keys.group(&group.id);
        let set = self.set(&key, &text);
        let publish = Command::new("PUBLISH").arg(&key).arg(&text);
        self.link
            .atomic(attempt, vec![set, publish])
            .await
            .map(drop)
    }

    pub(crate) fn group_document(
        &self,
        attempt: Attempt<'_>,
        group: &ResultTree,
    ) -> Result<Vec<u8>, ServiceError> {
        let document = [("result", group.to_value())];
        let document: celery_protocol::Map = document.into_iter().collect();
        self.serializer
            .encode(&document)
            .map_err(|error| self.invalid(attempt, &error.to_string()))
    }

    /// A `SET` with the expiry of results.
    fn set(&self, key: &str, value: &[u8]) -> Command {
        let set = Command::new("SET").arg(key).arg(value);
        match self.seconds().as_str() {
            "0" => set,
            seconds => set.arg("EX").arg(seconds),
        }
    }

    async fn read_group(&self, group_id: &str) -> Result<Option<ResultTree>, ServiceError> {
        let object = format!("group {group_id}");
        let attempt = Attempt::new("read", &object);
        let command = Command::new("GET").arg(self.keys.group(group_id));
        let Reply::Data(bytes) = self.link.call(attempt, command).await? else {
            return Ok(None);
        };
        self.group_tree(attempt, &bytes).map(Some)
    }

    /// The group in a document that was saved.
    pub(crate) fn group_tree(
        &self,
        attempt: Attempt<'_>,
        bytes: &[u8],
    ) -> Result<ResultTree, ServiceError> {
        let tree = || {
            let bytes = decompress_document(bytes, LARGEST)?;
            let document: Value = self.serializer.decode(&bytes)?;
            ResultTree::from_value(document.get("result").unwrap_or(&Value::Null))
        };
        tree().map_err(|error| self.invalid(attempt, &error.to_string()))
    }

    async fn delete_group(&self, group_id: &str) -> Result<(), ServiceError> {
        let object = format!("group {group_id}");
        let command = Command::new("DEL").arg(self.keys.group(group_id));
        let attempt = Attempt::new("forget", &object);
        self.link.call(attempt, command).await.map(drop)
    }

    fn decode(
        &self,
        attempt: Attempt<'_>,
        bytes: &[u8],
    ) -> Result<ResultDocument<'static>, ServiceError> {
        ResultDocument::decode(self.serializer, bytes, LARGEST)
            .map(ResultDocument::into_owned)
            .map_err(|error| self.invalid(attempt, &error.to_string()))
    }

    pub(crate) fn invalid(&self, attempt: Attempt<'_>, cause: &str) -> ServiceError {
        attempt.error(&self.link, ServiceErrorKind::Invalid, cause)
    }

    fn seconds(&self) -> String {
        seconds(self.expires).to_string()
    }
}

impl ResultBackend for RedisBackend {
    fn store<'a>(&'a self, record: Record<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.store_document(record.document))
    }

    fn fetch<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<ResultDocument<'static>>>, ServiceError>> {
        Box::pin(self.fetch_documents(ids))
    }

    fn wait<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<ResultDocument<'static>, ServiceError>> {
        Box::pin(self.wait_for(id))
    }

    fn forget<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.delete(ids))
    }

    fn store_group<'a>(&'a self, group: &'a ResultTree) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.save_group(group))
    }

    fn fetch_group<'a>(
        &'a self,
        group_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ResultTree>, ServiceError>> {
        Box::pin(self.read_group(group_id))
    }

    fn forget_group<'a>(&'a self, group_id: &'a str) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.delete_group(group_id))
    }

    fn chords(&self) -> Option<&dyn ChordStore> {
        Some(self)
    }

    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities::new().shared(true).groups(true)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.link.close();
        Box::pin(std::future::ready(()))
    }
}

impl ChordStore for RedisBackend {
    fn begin<'a>(&'a self, chord: &'a ChordStart) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.begin_chord(chord))
    }

    fn add_member<'a>(
        &'a self,
        group_id: &'a str,
        task_id: &'a str,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.add_chord_member(group_id, task_id))
    }

    fn complete_member<'a>(
        &'a self,
        part: &'a ChordMember<'a>,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<Option<ChordResults>, ServiceError>> {
        Box::pin(self.complete_chord_member(part, claim))
    }

    fn renew_claim<'a>(
        &'a self,
        group_id: &'a str,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(self.renew_chord_claim(group_id, claim))
    }

    fn finish<'a>(
        &'a self,
        group_id: &'a str,
        claim: &'a ChordClaim,
        end: ChordEnd,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(self.finish_chord(group_id, claim, end))
    }

    fn claim_stalled<'a>(
        &'a self,
        claim: &'a ChordClaim,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<StalledChord>, ServiceError>> {
        Box::pin(self.claim_stalled_chords(claim, limit))
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.link.options().address();
        f.debug_struct("RedisBackend")
            .field("address", &address)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Redis counts expiry in whole seconds; 0 stands for none.
pub(crate) fn seconds(expires: Option<Duration>) -> u128 {
    expires.map_or(0, |expires| expires.as_millis().div_ceil(1000))
}

fn object(id: &str) -> String {
    format!("the result of task {id}")
}

fn several(ids: &[String]) -> String {
    match ids {
        [id] => object(id),
        ids => format!("the results of {} tasks", ids.len()),
    }
}
