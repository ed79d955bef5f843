//! The shared store on Redis.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use celery_broker_redis::RedisOptions;
use celery_broker_redis::client::{COMPARE_AND_DELETE, Command, Operation, RedisClient, Script};
use celery_runtime::{BoxFuture, ServiceError, Store};

use crate::keys::Keys;

static EXTEND: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/extend.lua")));
static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/count.lua")));

/// A [`Store`] on Redis, with keys that start with `celery-rs-`. Clones share
/// connections.
#[derive(Clone)]
pub struct RedisStore {
    client: RedisClient,
    keys: Keys,
}

impl RedisStore {
    /// Returns a store that connects when it is first used.
    pub fn new(options: RedisOptions) -> Self {
        Self {
            keys: Keys::new(options.key_prefix()),
            client: RedisClient::new(options),
        }
    }

    /// Runs a script on one key and returns whether its reply is 1.
    async fn flag(
        &self,
        verb: &'static str,
        key: &str,
        script: &Script,
        arguments: &[&[u8]],
    ) -> Result<bool, ServiceError> {
        let object = format!("key {key}");
        let operation = Operation::new(verb, &object);
        let key = self.keys.store_value(key);
        let answer = self
            .client
            .script(operation, script, &[&key], arguments)
            .await?;
        Ok(answer.number() == 1)
    }
}

impl Store for RedisStore {
    fn put_if_absent<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(async move {
            let object = format!("key {key}");
            let command = Command::new("SET")
                .arg(self.keys.store_value(key))
                .arg(value)
                .arg("NX")
                .arg("PX")
                .arg(milliseconds(ttl));
            let answer = self
                .client
                .call(Operation::new("set", &object), command)
                .await?;
            Ok(answer.data().is_some())
        })
    }

    fn compare_and_delete<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(self.delete(key, value))
    }

    fn extend<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        Box::pin(async move {
            let ttl = milliseconds(ttl);
            self.flag("extend", key, &EXTEND, &[value, ttl.as_bytes()])
                .await
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, ServiceError>> {
        Box::pin(async move {
            let object = format!("key {key}");
            let command = Command::new("GET").arg(self.keys.store_value(key));
            let answer = self
                .client
                .call(Operation::new("read", &object), command)
                .await?;
            Ok(answer.data())
        })
    }

    fn count<'a>(
        &'a self,
        key: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            let object = format!("key {key}");
            let operation = Operation::new("count in", &object);
            let (key, ttl) = (self.keys.store_value(key), milliseconds(ttl));
            let answer = self
                .client
                .script(operation, &COUNT, &[&key], &[ttl.as_bytes()])
                .await?;
            Ok(u64::try_from(answer.number()).unwrap_or_default())
        })
    }
}

impl RedisStore {
    async fn delete(&self, key: &str, value: &[u8]) -> Result<bool, ServiceError> {
        self.flag("delete", key, &COMPARE_AND_DELETE, &[value])
            .await
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.client.options().address();
        f.debug_struct("RedisStore")
            .field("address", &address)
            .finish_non_exhaustive()
    }
}

/// Formats a time to live; Redis rejects 0.
fn milliseconds(ttl: Duration) -> String {
    ttl.as_millis().max(1).to_string()
}
