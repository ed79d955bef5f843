//! The result backend.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use celery_broker_redis::RedisOptions;
use celery_broker_redis::client::{Command, Operation, RedisClient, RedisReply, Script};
use celery_protocol::{ResultDocument, ResultTree, Serializer, State, Value, decompress_document};
use celery_runtime::{
    BackendCapabilities, BoxFuture, ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart,
    ChordStore, ResultBackend, ResultRecord, ServiceError, ServiceErrorKind, StalledChord,
};

use crate::keys::Keys;
use crate::listen::ResultListener;

static STORE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/store.lua")));

/// The poll interval of a wait, which doubles from the first to the maximum.
/// Polling finds results that were stored without a publication.
const FIRST_POLL_INTERVAL: Duration = Duration::from_millis(500);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The size limit of a value in Redis.
pub(crate) const MAX_VALUE_SIZE: usize = 512 << 20;

/// Task results on Redis, in the format of Celery's Redis backend. Clones share
/// connections.
#[derive(Clone)]
pub struct RedisBackend {
    pub(crate) client: RedisClient,
    pub(crate) keys: Keys,
    listener: Arc<ResultListener>,
    pub(crate) expires: Option<Duration>,
    pub(crate) chord_expires: Option<Duration>,
    pub(crate) chord_order: ChordOrder,
    pub(crate) serializer: Serializer,
}

/// The order in which the results of chord members are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChordOrder {
    /// By index in the header.
    Index,
    /// In order of arrival.
    Arrival,
}

impl RedisBackend {
    /// Returns a backend that connects when it is first used. Results are
    /// stored as JSON for a day, Celery's defaults.
    pub fn new(options: RedisOptions) -> Self {
        let keys = Keys::new(options.key_prefix());
        let client = RedisClient::new(options);
        Self {
            listener: Arc::new(ResultListener::new(client.clone())),
            keys,
            client,
            expires: Some(Duration::from_secs(86_400)),
            chord_expires: None,
            chord_order: ChordOrder::Index,
            serializer: Serializer::Json,
        }
    }

    /// Sets how long results are kept, in whole seconds. `None` and zero keep
    /// them forever, as in Celery.
    #[must_use]
    pub fn result_expires(self, expires: Option<Duration>) -> Self {
        Self { expires, ..self }
    }

    /// Sets how long the keys of a chord are kept, in whole seconds. `None`,
    /// the default, keeps them as long as results; zero keeps them forever, as
    /// in Celery. It has to exceed the run time of any chord.
    #[must_use]
    pub fn result_chord_expires(self, chord_expires: Option<Duration>) -> Self {
        Self {
            chord_expires,
            ..self
        }
    }

    /// Sets whether the body of a chord receives the results in the order of
    /// its header, the default, or in order of arrival. In Celery this is one
    /// of the `result_backend_transport_options`. All clients of this backend
    /// have to use the same value.
    #[must_use]
    pub fn result_chord_ordered(self, ordered: bool) -> Self {
        let chord_order = if ordered {
            ChordOrder::Index
        } else {
            ChordOrder::Arrival
        };
        Self {
            chord_order,
            ..self
        }
    }

    /// Sets the serializer of documents. All clients of this backend have to
    /// use the same one.
    #[must_use]
    pub fn serializer(self, serializer: Serializer) -> Self {
        Self { serializer, ..self }
    }

    async fn store_document(&self, document: &ResultDocument<'_>) -> Result<(), ServiceError> {
        let object = result_object(&document.task_id);
        let operation = Operation::new("store", &object);
        let text = document
            .encode(self.serializer)
            .map_err(|error| self.invalid(operation, &error.to_string()))?;
        if text.len() > MAX_VALUE_SIZE {
            return Err(self.invalid(operation, "the document is larger than 512 MB"));
        }
        let key = self.keys.task(&document.task_id);
        let mut known = Bytes::new();
        loop {
            let seconds = self.seconds();
            let arguments = [&*text, seconds.as_bytes(), &known];
            let answer = self
                .client
                .script(operation, &STORE, &[&key], &arguments)
                .await?;
            // The script returns a document that it cannot parse. It is decoded
            // here, and replaced only if it has not changed.
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
        ResultDocument::decode(self.serializer, document, MAX_VALUE_SIZE)
            .is_ok_and(|document| document.status == State::Success)
    }

    async fn fetch_documents(
        &self,
        ids: &[String],
    ) -> Result<Vec<Option<ResultDocument<'static>>>, ServiceError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let object = results_object(ids);
        let operation = Operation::new("read", &object);
        let command = Command::new("MGET").args(ids.iter().map(|id| self.keys.task(id)));
        let answers = self.client.call(operation, command).await?.list();
        answers
            .into_iter()
            .map(|answer| {
                answer
                    .data()
                    .map(|bytes| self.decode(operation, &bytes))
                    .transpose()
            })
            .collect()
    }

    /// Subscribes before it reads, so that a result stored in between is not
    /// missed. It also polls, since not every client publishes the results that
    /// it stores; aio-celery does not.
    async fn wait_for(&self, id: &str) -> Result<ResultDocument<'static>, ServiceError> {
        let object = result_object(id);
        let operation = Operation::new("wait for", &object);
        let key = self.keys.task(id);
        let mut subscription = self.listener.subscribe(operation, &key).await?;
        let read = async || {
            let stored = self.client.call(operation, Command::new("GET").arg(&key));
            Ok::<_, ServiceError>(stored.await?.data())
        };
        let mut newest = read().await?;
        let mut poll_interval = FIRST_POLL_INTERVAL;
        loop {
            if let Some(bytes) = newest {
                let document = self.decode(operation, &bytes)?;
                if document.status.is_ready() {
                    return Ok(document);
                }
            }
            newest = match tokio::time::timeout(poll_interval, subscription.next(operation)).await {
                Ok(subscription) => Some(subscription?),
                Err(_) => read().await?,
            };
            poll_interval = (poll_interval * 2).min(MAX_POLL_INTERVAL);
        }
    }

    async fn delete(&self, ids: &[String]) -> Result<(), ServiceError> {
        if ids.is_empty() {
            return Ok(());
        }
        let object = results_object(ids);
        let command = Command::new("DEL").args(ids.iter().map(|id| self.keys.task(id)));
        self.client
            .call(Operation::new("forget", &object), command)
            .await
            .map(drop)
    }

    async fn save_group(&self, group: &ResultTree) -> Result<(), ServiceError> {
        let object = format!("group {}", group.id);
        let operation = Operation::new("store", &object);
        let text = self.group_document(operation, group)?;
        let key = self.keys.group(&group.id);
        let set = self.set(&key, &text);
        let publish = Command::new("PUBLISH").arg(&key).arg(&text);
        self.client
            .atomic(operation, vec![set, publish])
            .await
            .map(drop)
    }

    /// Encodes a group document.
    pub(crate) fn group_document(
        &self,
        operation: Operation<'_>,
        group: &ResultTree,
    ) -> Result<Vec<u8>, ServiceError> {
        let document = [("result", group.to_value())];
        let document: celery_protocol::Map = document.into_iter().collect();
        self.serializer
            .encode(&document)
            .map_err(|error| self.invalid(operation, &error.to_string()))
    }

    /// Returns a `SET` with the expiry of results.
    fn set(&self, key: &str, value: &[u8]) -> Command {
        let set = Command::new("SET").arg(key).arg(value);
        match self.seconds().as_str() {
            "0" => set,
            seconds => set.arg("EX").arg(seconds),
        }
    }

    async fn read_group(&self, group_id: &str) -> Result<Option<ResultTree>, ServiceError> {
        let object = format!("group {group_id}");
        let operation = Operation::new("read", &object);
        let command = Command::new("GET").arg(self.keys.group(group_id));
        let RedisReply::Data(bytes) = self.client.call(operation, command).await? else {
            return Ok(None);
        };
        self.group_tree(operation, &bytes).map(Some)
    }

    /// Decodes the result tree in a stored group document.
    pub(crate) fn group_tree(
        &self,
        operation: Operation<'_>,
        bytes: &[u8],
    ) -> Result<ResultTree, ServiceError> {
        let tree = || {
            let bytes = decompress_document(bytes, MAX_VALUE_SIZE)?;
            let document: Value = self.serializer.decode(&bytes)?;
            ResultTree::from_value(document.get("result").unwrap_or(&Value::Null))
        };
        tree().map_err(|error| self.invalid(operation, &error.to_string()))
    }

    async fn delete_group(&self, group_id: &str) -> Result<(), ServiceError> {
        let object = format!("group {group_id}");
        let command = Command::new("DEL").arg(self.keys.group(group_id));
        let operation = Operation::new("forget", &object);
        self.client.call(operation, command).await.map(drop)
    }

    fn decode(
        &self,
        operation: Operation<'_>,
        bytes: &[u8],
    ) -> Result<ResultDocument<'static>, ServiceError> {
        ResultDocument::decode(self.serializer, bytes, MAX_VALUE_SIZE)
            .map(ResultDocument::into_owned)
            .map_err(|error| self.invalid(operation, &error.to_string()))
    }

    pub(crate) fn invalid(&self, operation: Operation<'_>, cause: &str) -> ServiceError {
        operation.error(&self.client, ServiceErrorKind::Invalid, cause)
    }

    fn seconds(&self) -> String {
        seconds(self.expires).to_string()
    }
}

impl ResultBackend for RedisBackend {
    fn store<'a>(&'a self, record: ResultRecord<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
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
        self.client.close();
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
        member: &'a ChordMember<'a>,
        claim: &'a ChordClaim,
    ) -> BoxFuture<'a, Result<Option<ChordResults>, ServiceError>> {
        Box::pin(self.complete_chord_member(member, claim))
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
        let address = self.client.options().address();
        f.debug_struct("RedisBackend")
            .field("address", &address)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Rounds an expiry up to the whole seconds of Redis; 0 stands for no expiry.
pub(crate) fn seconds(expires: Option<Duration>) -> u128 {
    expires.map_or(0, |expires| expires.as_millis().div_ceil(1000))
}

fn result_object(id: &str) -> String {
    format!("the result of task {id}")
}

fn results_object(ids: &[String]) -> String {
    match ids {
        [id] => result_object(id),
        ids => format!("the results of {} tasks", ids.len()),
    }
}
