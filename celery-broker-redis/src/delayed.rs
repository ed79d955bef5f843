//! Deferred deliveries: tags that consumers return again at a later time.

use std::collections::{BTreeMap, VecDeque};
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
    due: BTreeMap<DueKey, String>,
    next_number: u64,
}

/// The due time, then the order in which the tags were added.
type DueKey = (SystemTime, u64);

impl DelayedDeliveries {
    /// Adds a tag that is due at a time.
    pub(crate) fn add(&self, tag: &str, until: SystemTime) {
        let mut state = self.lock();
        state.next_number += 1;
        let key = (until, state.next_number);
        state.due.insert(key, tag.to_owned());
    }

    /// Takes up to `max` tags of `queues` that are due.
    pub(crate) fn take_due(&self, queues: &[String], now: SystemTime, max: usize) -> TakenTags<'_> {
        self.take(queues, max, |until| until <= now)
    }

    /// Takes all tags of `queues`.
    pub(crate) fn take_all(&self, queues: &[String]) -> TakenTags<'_> {
        self.take(queues, usize::MAX, |_| true)
    }

    /// Removes the tags that begin with this text.
    pub(crate) fn forget(&self, prefix: &str) {
        self.lock().due.retain(|_, tag| !tag.starts_with(prefix));
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
    ) -> TakenTags<'_> {
        let mut state = self.lock();
        let keys: Vec<_> = state
            .due
            .iter()
            .take_while(|((until, _), _)| is_due(*until))
            .filter(|(_, tag)| belongs_to(queues, tag))
            .map(|(key, _)| *key)
            .take(max)
            .collect();
        let take = |key| Some((key, state.due.remove(&key)?));
        TakenTags {
            entries: keys.into_iter().filter_map(take).collect(),
            delayed: self,
        }
    }

    fn lock(&self) -> MutexGuard<'_, DelayQueue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tags that were taken in order to redeliver or to return them. Those that are
/// not [done](Self::done) stay delayed when this value is dropped.
#[derive(Debug)]
pub(crate) struct TakenTags<'a> {
    delayed: &'a DelayedDeliveries,
    entries: VecDeque<(DueKey, String)>,
}

impl TakenTags<'_> {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn first(&self) -> Option<&str> {
        self.iter().next()
    }

    /// Returns the tags; the first is due first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(_, tag)| tag.as_str())
    }

    /// Sorts the tags by queue, those of one queue so that the first is due last.
    pub(crate) fn sort_for_return(&mut self) {
        let entries = self.entries.make_contiguous();
        entries.reverse();
        entries.sort_by(|(_, one), (_, other)| queue_of(one).cmp(queue_of(other)));
    }

    /// Removes and returns the first tags.
    pub(crate) fn done(&mut self, count: usize) -> Vec<String> {
        let count = count.min(self.entries.len());
        self.entries.drain(..count).map(|(_, tag)| tag).collect()
    }
}

impl Drop for TakenTags<'_> {
    fn drop(&mut self) {
        self.delayed.lock().due.extend(self.entries.drain(..));
    }
}

fn belongs_to(queues: &[String], tag: &str) -> bool {
    queues.iter().any(|name| name == queue_of(tag))
}

fn queue_of(tag: &str) -> &str {
    ParsedTag::parse(tag).queue
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
        assert_eq!(delayed.take_due(&one, at(9), 8).len(), 0);
        assert_eq!(all(delayed.take_due(&one, at(10), 8)), ["a-2:one"]);
        assert_eq!(all(delayed.take_all(&one)), ["a-1:one"]);
        assert_eq!(delayed.next_due(&one, at(4)), None);
        assert_eq!(all(delayed.take_all(&["two".to_owned()])), ["a-3:two"]);
    }

    fn all(mut taken: TakenTags<'_>) -> Vec<String> {
        taken.done(usize::MAX)
    }

    #[test]
    fn take_due_returns_at_most_max_tags() {
        let now = SystemTime::UNIX_EPOCH;
        let delayed = DelayedDeliveries::default();
        for number in 0..3 {
            delayed.add(&format!("a-{number}:q"), now);
        }
        let queues = ["q".to_owned()];
        assert_eq!(all(delayed.take_due(&queues, now, 2)), ["a-0:q", "a-1:q"]);
        assert_eq!(all(delayed.take_due(&queues, now, 2)), ["a-2:q"]);
        assert_eq!(delayed.take_due(&queues, now, 2).len(), 0);
    }

    #[test]
    fn taken_tags_that_are_not_done_stay_delayed_in_order() {
        let now = SystemTime::UNIX_EPOCH;
        let delayed = DelayedDeliveries::default();
        for number in 0..3 {
            delayed.add(&format!("a-{number}:q"), now);
        }
        let queues = ["q".to_owned()];
        assert_eq!(delayed.take_due(&queues, now, 2).done(1), ["a-0:q"]);
        assert_eq!(all(delayed.take_all(&queues)), ["a-1:q", "a-2:q"]);
    }

    #[test]
    fn tags_are_returned_by_queue_and_latest_first() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let delayed = DelayedDeliveries::default();
        for (tag, due) in [("a-1:p", 1), ("a-2:q", 2), ("a-3:p", 3), ("a-4:q", 4)] {
            delayed.add(tag, at(due));
        }
        let mut taken = delayed.take_all(&["p".to_owned(), "q".to_owned()]);
        taken.sort_for_return();
        assert_eq!(all(taken), ["a-3:p", "a-1:p", "a-4:q", "a-2:q"]);
    }
}
