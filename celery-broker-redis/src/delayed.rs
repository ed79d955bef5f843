//! Deferred deliveries: tags that consumers return again at a later time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::keys::ParsedTag;

/// The tags and due times of deferred deliveries. Their messages stay on the
/// server.
///
/// All consumers of one broker share them, so that the successor of a broken
/// consumer returns what that one deferred.
#[derive(Debug, Default)]
pub(crate) struct DelayedDeliveries {
    state: Mutex<DelayQueue>,
}

#[derive(Debug, Default)]
struct DelayQueue {
    /// By due time, then in the order in which they were added.
    due: BTreeMap<(SystemTime, u64), String>,
    next_number: u64,
}

impl DelayedDeliveries {
    /// Adds a tag that is due at a time.
    pub(crate) fn add(&self, tag: &str, until: SystemTime) {
        let mut state = self.lock();
        state.next_number += 1;
        let key = (until, state.next_number);
        state.due.insert(key, tag.to_owned());
    }

    /// Removes and returns up to `max` tags of `queues` that are due.
    pub(crate) fn take_due(&self, queues: &[String], now: SystemTime, max: usize) -> Vec<String> {
        self.take(queues, max, |until| until <= now)
    }

    /// Removes and returns all tags of `queues`.
    pub(crate) fn take_all(&self, queues: &[String]) -> Vec<String> {
        self.take(queues, usize::MAX, |_| true)
    }

    /// Returns the time until the next tag of `queues` is due.
    pub(crate) fn next_due(&self, queues: &[String], now: SystemTime) -> Option<Duration> {
        let state = self.lock();
        let mut of_queues = state.due.iter().filter(|(_, tag)| belongs_to(queues, tag));
        let ((until, _), _) = of_queues.next()?;
        Some(until.duration_since(now).unwrap_or_default())
    }

    fn take(
        &self,
        queues: &[String],
        max: usize,
        mut is_due: impl FnMut(SystemTime) -> bool,
    ) -> Vec<String> {
        let mut state = self.lock();
        let keys: Vec<_> = state
            .due
            .iter()
            .take_while(|((until, _), _)| is_due(*until))
            .filter(|(_, tag)| belongs_to(queues, tag))
            .map(|(key, _)| *key)
            .take(max)
            .collect();
        keys.iter()
            .filter_map(|key| state.due.remove(key))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, DelayQueue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn belongs_to(queues: &[String], tag: &str) -> bool {
    let queue = ParsedTag::parse(tag).queue;
    queues.iter().any(|name| name == queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delayed_tags_are_returned_when_due_and_by_queue() {
        let start = SystemTime::UNIX_EPOCH;
        let at = |seconds| start + Duration::from_secs(seconds);
        let delayed = DelayedDeliveries::default();
        delayed.add("a-1:one", at(20));
        delayed.add("a-2:one", at(10));
        delayed.add("a-3:two", at(5));
        let one = ["one".to_owned()];

        assert_eq!(delayed.next_due(&one, at(4)), Some(Duration::from_secs(6)));
        assert!(delayed.take_due(&one, at(9), 8).is_empty());
        assert_eq!(delayed.take_due(&one, at(10), 8), ["a-2:one"]);
        assert_eq!(delayed.take_all(&one), ["a-1:one"]);
        assert_eq!(delayed.next_due(&one, at(4)), None);
        assert_eq!(delayed.take_all(&["two".to_owned()]), ["a-3:two"]);
    }

    #[test]
    fn take_due_returns_at_most_max_tags() {
        let now = SystemTime::UNIX_EPOCH;
        let delayed = DelayedDeliveries::default();
        for number in 0..3 {
            delayed.add(&format!("a-{number}:q"), now);
        }
        let queues = ["q".to_owned()];
        assert_eq!(delayed.take_due(&queues, now, 2), ["a-0:q", "a-1:q"]);
        assert_eq!(delayed.take_due(&queues, now, 2), ["a-2:q"]);
        assert!(delayed.take_due(&queues, now, 2).is_empty());
    }
}
