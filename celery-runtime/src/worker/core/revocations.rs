//! What was revoked: ids and stamps. Pure.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use celery_protocol::Value;

use crate::env;
use crate::execution::Job;

/// The tasks that shall not run, as far as they are known; bounded in number
/// and time.
#[derive(Debug)]
pub(crate) struct Revocations {
    ids: HashMap<String, SystemTime>,
    /// Oldest first; an id that was revoked again is in it twice.
    order: VecDeque<(SystemTime, String)>,
    stamps: HashMap<String, HashSet<String>>,
    /// Names and values of them, oldest first.
    stamp_order: VecDeque<(String, String)>,
    most: usize,
    lifetime: Duration,
}

impl Revocations {
    pub(crate) fn new(most: usize, lifetime: Duration) -> Self {
        Self {
            ids: HashMap::new(),
            order: VecDeque::new(),
            stamps: HashMap::new(),
            stamp_order: VecDeque::new(),
            most: most.max(1),
            lifetime,
        }
    }

    /// Remembers an id that is revoked now, or was at that time.
    pub(crate) fn add(&mut self, id: &str, now: SystemTime) {
        self.ids.insert(id.to_owned(), now);
        self.order.push_back((now, id.to_owned()));
        self.purge(now);
    }

    /// Remembers that tasks with one of these stamps are revoked.
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
        if self.stamp_order.len() <= self.most {
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

    /// Whether the id was revoked.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    /// Whether a stamp of the task was revoked. Cheap where none ever was.
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
            revoked.is_some_and(|revoked| texts(value).iter().any(|one| revoked.contains(one)))
        })
    }

    /// All ids, oldest first.
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

    /// All ids with the Unix time at which they were revoked, oldest first.
    pub(crate) fn timed(&self) -> Vec<(String, f64)> {
        let timed = |id: &str| Some((id.to_owned(), env::unix_seconds(*self.ids.get(id)?)));
        self.ids().into_iter().filter_map(timed).collect()
    }

    /// Forgets what is too old or too many.
    fn purge(&mut self, now: SystemTime) {
        while let Some((time, id)) = self.order.front() {
            let age = now.duration_since(*time).unwrap_or_default();
            let is_current = self.ids.get(id) == Some(time);
            if is_current && age <= self.lifetime && self.ids.len() <= self.most {
                break;
            }
            if is_current {
                self.ids.remove(id);
            }
            self.order.pop_front();
        }
    }
}

/// A stamp's value, or its values, as text.
pub(crate) fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::Str(text) => vec![text.clone()],
        Value::Int(number) => vec![number.to_string()],
        Value::Float(number) => vec![number.to_string()],
        Value::Bool(flag) => vec![flag.to_string()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut revoked = Revocations::new(3, Duration::from_secs(100));
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
    fn stamps_are_bounded_too() {
        let mut revoked = Revocations::new(100, Duration::from_secs(100));
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
    fn a_million_ids_do_not_take_more_room() {
        let mut revoked = Revocations::new(1000, Duration::from_secs(10_800));
        for number in 0..1_000_000_u64 {
            revoked.add(&format!("{}", number % 5000), at(number / 1000));
        }
        assert_eq!(revoked.ids().len(), 1000);
        assert!(revoked.order.len() <= 5000, "{}", revoked.order.len());
    }
}
