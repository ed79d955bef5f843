//! Revoked task ids and stamps, and what is to be written of them: [`Revocations`].
//! Pure.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use celery_protocol::Value;

use crate::env;
use crate::execution::Job;

/// Most ids whose results are set to REVOKED in one request.
const WRITE_BATCH: usize = 256;

/// The interval at which changed revocations are saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// The revocations that this worker knows, bounded in number; ids also expire.
#[derive(Debug)]
pub(crate) struct Revocations {
    ids: HashMap<String, SystemTime>,
    /// Oldest first. An id that is revoked again has two entries.
    order: VecDeque<(SystemTime, String)>,
    stamps: HashMap<String, HashSet<String>>,
    /// Names and values of the stamps, oldest first.
    stamp_order: VecDeque<(String, String)>,
    capacity: usize,
    expires_after: Duration,
    /// Ids whose results are to be set to REVOKED, oldest first.
    pending_writes: VecDeque<String>,
    is_writing: bool,
    /// Whether ids were added since the last save.
    is_unsaved: bool,
    saved_at: Instant,
}

impl Revocations {
    /// `capacity` is the maximum number of ids, of stamps and of pending writes;
    /// `expires_after` is the lifetime of an id.
    pub(crate) fn new(capacity: usize, expires_after: Duration, now: Instant) -> Self {
        Self {
            ids: HashMap::new(),
            order: VecDeque::new(),
            stamps: HashMap::new(),
            stamp_order: VecDeque::new(),
            capacity: capacity.max(1),
            expires_after,
            pending_writes: VecDeque::new(),
            is_writing: false,
            is_unsaved: false,
            saved_at: now,
        }
    }

    /// Adds an id that was revoked at this time.
    pub(crate) fn add(&mut self, id: &str, now: SystemTime) {
        self.is_unsaved = true;
        self.insert(id, now);
    }

    /// Adds saved ids with the Unix time of their revocation.
    pub(crate) fn restore(&mut self, saved: &[(String, f64)]) {
        for (id, time) in saved {
            let since = Duration::try_from_secs_f64(*time).unwrap_or_default();
            self.insert(id, UNIX_EPOCH + since);
        }
    }

    fn insert(&mut self, id: &str, now: SystemTime) {
        self.ids.insert(id.to_owned(), now);
        self.order.push_back((now, id.to_owned()));
        self.purge(now);
    }

    /// Adds stamps. Tasks with one of these values are revoked.
    pub(crate) fn add_stamps(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        for value in values {
            let known = self.stamps.entry(name.to_owned()).or_default();
            if known.insert(value.clone()) {
                self.stamp_order.push_back((name.to_owned(), value));
            }
            self.purge_stamps();
        }
    }

    fn purge_stamps(&mut self) {
        if self.stamp_order.len() <= self.capacity {
            return;
        }
        let Some((name, value)) = self.stamp_order.pop_front() else {
            return;
        };
        if let Some(known) = self.stamps.get_mut(&name) {
            known.remove(&value);
            if known.is_empty() {
                self.stamps.remove(&name);
            }
        }
    }

    /// Returns whether the id is revoked.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    /// Returns whether a stamp of the task is revoked. Cheap if no stamps are.
    pub(crate) fn covers(&self, job: &Job) -> bool {
        !self.stamps.is_empty() && self.covers_stamps(job)
    }

    fn covers_stamps(&self, job: &Job) -> bool {
        let stamps = job.headers().ok().and_then(|headers| headers.stamps);
        let stamps = stamps.and_then(|stamps| stamps.to_value().ok());
        let Some(stamps) = stamps.as_ref().and_then(Value::as_map) else {
            return false;
        };
        stamps.iter().any(|(name, value)| {
            let revoked = name.as_str().and_then(|name| self.stamps.get(name));
            revoked.is_some_and(|revoked| {
                stamp_values(value)
                    .iter()
                    .any(|value| revoked.contains(value))
            })
        })
    }

    /// Returns all ids, oldest first.
    pub(crate) fn ids(&self) -> Vec<&str> {
        let mut seen = HashSet::with_capacity(self.ids.len());
        let newest_first = self.order.iter().rev();
        let mut ids: Vec<_> = newest_first
            .filter(|(time, id)| self.ids.get(id) == Some(time))
            .map(|(_, id)| id.as_str())
            .filter(|id| seen.insert(*id))
            .collect();
        ids.reverse();
        ids
    }

    /// Returns all ids with the Unix time of their revocation, oldest first.
    pub(crate) fn timed(&self) -> Vec<(String, f64)> {
        let timed = |id: &str| Some((id.to_owned(), env::unix_seconds(*self.ids.get(id)?)));
        self.ids().into_iter().filter_map(timed).collect()
    }

    /// Returns when the revocations are to be saved, if they have changed.
    pub(crate) fn next_save(&self) -> Option<Instant> {
        self.is_unsaved.then(|| self.saved_at + SAVE_INTERVAL)
    }

    /// Records that the revocations are saved.
    pub(crate) fn saved(&mut self, now: Instant) {
        self.is_unsaved = false;
        self.saved_at = now;
    }

    /// Queues ids whose results are to be set to REVOKED. Above the capacity the
    /// oldest ones are dropped.
    pub(crate) fn queue_writes(&mut self, ids: impl IntoIterator<Item = String>) {
        self.pending_writes.extend(ids);
        let excess = self.pending_writes.len().saturating_sub(self.capacity);
        if excess > 0 {
            tracing::warn!("dropped {excess} pending REVOKED result writes");
            self.pending_writes.drain(..excess);
        }
    }

    /// Returns the next batch of ids whose results are to be set to REVOKED, unless
    /// one is being written.
    pub(crate) fn next_write(&mut self) -> Option<Vec<String>> {
        if self.is_writing || self.pending_writes.is_empty() {
            return None;
        }
        self.is_writing = true;
        let batch = self.pending_writes.len().min(WRITE_BATCH);
        Some(self.pending_writes.drain(..batch).collect())
    }

    /// Records that the last batch is written.
    pub(crate) fn written(&mut self) {
        self.is_writing = false;
    }

    /// Removes ids that are expired or above the capacity.
    fn purge(&mut self, now: SystemTime) {
        while let Some((time, id)) = self.order.front() {
            let age = now.duration_since(*time).unwrap_or_default();
            let is_current = self.ids.get(id) == Some(time);
            if is_current && age <= self.expires_after && self.ids.len() <= self.capacity {
                break;
            }
            if is_current {
                self.ids.remove(id);
            }
            self.order.pop_front();
        }
    }
}

/// Returns the value or the values of a stamp as text.
pub(crate) fn stamp_values(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(stamp_values).collect(),
        Value::Str(text) => vec![text.clone()],
        Value::Int(number) => vec![number.to_string()],
        Value::Float(number) => vec![number.to_string()],
        Value::Bool(flag) => vec![flag.to_string()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn revocations(capacity: usize, expires_after: u64) -> Revocations {
        Revocations::new(capacity, Duration::from_secs(expires_after), Instant::now())
    }

    #[test]
    fn changed_revocations_are_saved_at_intervals() {
        let now = Instant::now();
        let mut revoked = Revocations::new(10, Duration::from_secs(100), now);
        revoked.restore(&[("a".to_owned(), 1.0)]);
        assert_eq!(revoked.next_save(), None);
        revoked.add("b", at(2));
        assert_eq!(revoked.next_save(), Some(now + SAVE_INTERVAL));
        let saved = revoked.timed();
        assert_eq!(saved, [("a".to_owned(), 1.0), ("b".to_owned(), 2.0)]);
        let later = now + SAVE_INTERVAL;
        revoked.saved(later);
        assert_eq!(revoked.next_save(), None);
        revoked.add("c", at(3));
        assert_eq!(revoked.next_save(), Some(later + SAVE_INTERVAL));
    }

    #[test]
    fn one_batch_is_written_at_a_time() {
        let mut revoked = revocations(WRITE_BATCH + 1, 100);
        assert_eq!(revoked.next_write(), None);
        revoked.queue_writes((0..WRITE_BATCH + 2).map(|id| id.to_string()));
        let first = revoked.next_write().unwrap();
        assert_eq!((first.len(), &*first[0]), (WRITE_BATCH, "1"));
        assert_eq!(revoked.next_write(), None);
        revoked.written();
        assert_eq!(revoked.next_write(), Some(vec!["257".to_owned()]));
    }

    #[test]
    fn oldest_ids_are_removed_first() {
        let mut revoked = revocations(3, 100);
        for (time, id) in ["a", "b", "c", "a", "d"].iter().enumerate() {
            revoked.add(id, at(time as u64));
        }
        assert_eq!(revoked.ids(), ["c", "a", "d"]);
        revoked.add("e", at(102));
        assert_eq!(revoked.ids(), ["a", "d", "e"]);
        revoked.add("f", at(300));
        assert_eq!(revoked.ids(), ["f"]);
        assert!(!revoked.contains("a"));
    }

    #[test]
    fn stamps_are_bounded() {
        let mut revoked = revocations(100, 100);
        for number in 0..1000 {
            let name = format!("name-{}", number / 500);
            revoked.add_stamps(&name, [number.to_string(), number.to_string()]);
        }
        let kept = |name: &str| revoked.stamps.get(name).map(HashSet::len);
        assert_eq!((kept("name-0"), kept("name-1")), (None, Some(100)));
        assert!(revoked.stamps["name-1"].contains("999"));
        assert_eq!(revoked.stamp_order.len(), 100);
    }

    #[test]
    fn million_ids_do_not_exceed_capacity() {
        let mut revoked = revocations(1000, 10_800);
        for number in 0..1_000_000_u64 {
            revoked.add(&format!("{}", number % 5000), at(number / 1000));
        }
        assert_eq!(revoked.ids().len(), 1000);
        assert!(revoked.order.len() <= 5000, "{}", revoked.order.len());
    }
}
