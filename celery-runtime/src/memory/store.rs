//! The in-memory store: [`MemoryStore`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::boundary::{BoxFuture, ServiceError, ServiceErrorKind, Store};
use crate::env::Clock;
use crate::memory::lock;

/// A store inside this process. Clones share their keys.
#[derive(Clone, Default)]
pub struct MemoryStore {
    entries: Arc<Mutex<HashMap<String, StoreEntry>>>,
    clock: Clock,
}

struct StoreEntry {
    value: Bytes,
    expires: SystemTime,
}

impl MemoryStore {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns an empty store whose keys expire by `clock`.
    pub fn with_clock(clock: Clock) -> Self {
        Self {
            clock,
            ..Self::default()
        }
    }

    /// Runs one step on the keys that have not expired.
    fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut HashMap<String, StoreEntry>, SystemTime) -> T,
    ) -> BoxFuture<'static, T> {
        let now = self.clock.now();
        let mut entries = lock(&self.entries);
        entries.retain(|_, entry| entry.expires > now);
        let done = step(&mut entries, now);
        Box::pin(std::future::ready(done))
    }
}

impl Store for MemoryStore {
    fn put_if_absent<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        self.step(|entries, now| {
            let absent = !entries.contains_key(key);
            if absent {
                let entry = StoreEntry {
                    value: Bytes::copy_from_slice(value),
                    expires: now + ttl,
                };
                entries.insert(key.to_owned(), entry);
            }
            Ok(absent)
        })
    }

    fn compare_and_delete<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        self.step(|entries, _| {
            let equal = entries.get(key).is_some_and(|entry| entry.value == value);
            if equal {
                entries.remove(key);
            }
            Ok(equal)
        })
    }

    fn extend<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, ServiceError>> {
        self.step(|entries, now| match entries.get_mut(key) {
            Some(entry) if entry.value == value => {
                entry.expires = now + ttl;
                Ok(true)
            }
            _ => Ok(false),
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, ServiceError>> {
        self.step(|entries, _| Ok(entries.get(key).map(|entry| entry.value.clone())))
    }

    fn count<'a>(
        &'a self,
        key: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<u64, ServiceError>> {
        self.step(|entries, now| {
            let entry = entries.entry(key.to_owned()).or_insert_with(|| StoreEntry {
                value: Bytes::from_static(b"0"),
                expires: now + ttl,
            });
            let text = std::str::from_utf8(&entry.value).unwrap_or_default();
            let count: u64 = text.parse().map_err(|_| not_a_counter(key))?;
            entry.value = Bytes::from((count + 1).to_string());
            Ok(count + 1)
        })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

fn not_a_counter(key: &str) -> ServiceError {
    ServiceError::new(
        ServiceErrorKind::Invalid,
        "count in",
        format!("key {key}"),
        "its value is not a number",
    )
}
