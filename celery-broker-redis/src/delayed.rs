//! Deliveries that are not to be handed out before their time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::keys::ParsedTag;

/// The tags and times of parked deliveries; their messages stay on the server.
///
/// All consumers of one broker share it, so that the successor of a broken
/// consumer hands out what that one parked.
#[derive(Debug, Default)]
pub(crate) struct DelayedDeliveries {
    state: Mutex<DelayQueue>,
}

#[derive(Debug, Default)]
struct DelayQueue {
    /// By time, then in the order of parking.
    due: BTreeMap<(SystemTime, u64), String>,
    next_number: u64,
}

impl DelayedDeliveries {
    pub(crate) fn add(&self, tag: &str, until: SystemTime) {
        let mut state = self.lock();
        state.next_number += 1;
        let key = (until, state.next_number);
        state.due.insert(key, tag.to_owned());
    }

    /// Takes out at most `most` tags of `queues` whose time has come.
    pub(crate) fn take_due(&self, queues: &[String], now: SystemTime, most: usize) -> Vec<String> {
        self.take(queues, most, |until| until <= now)
    }

    /// Takes out all tags of `queues`.
    pub(crate) fn take_all(&self, queues: &[String]) -> Vec<String> {
        self.take(queues, usize::MAX, |_| true)
    }

    /// How long until the next tag of `queues` is due.
    pub(crate) fn next_due(&self, queues: &[String], now: SystemTime) -> Option<Duration> {
        let state = self.lock();
        let mut of_queues = state.due.iter().filter(|(_, tag)| is_of(queues, tag));
        let ((until, _), _) = of_queues.next()?;
        Some(until.duration_since(now).unwrap_or_default())
    }

    fn take(
        &self,
        queues: &[String],
        most: usize,
        mut is_due: impl FnMut(SystemTime) -> bool,
    ) -> Vec<String> {
        let mut state = self.lock();
        let keys: Vec<_> = state
            .due
            .iter()
            .take_while(|((until, _), _)| is_due(*until))
            .filter(|(_, tag)| is_of(queues, tag))
            .map(|(key, _)| *key)
            .take(most)
            .collect();
        keys.iter()
            .filter_map(|key| state.due.remove(key))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, DelayQueue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of(queues: &[String], tag: &str) -> bool {
    let queue = ParsedTag::parse(tag).queue;
    queues.iter().any(|name| name == queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_back_when_due_and_to_their_queue_only() {
        let start = SystemTime::UNIX_EPOCH;
        let at = |seconds| start + Duration::from_secs(seconds);
        let parked = DelayedDeliveries::default();
        parked.add("a-1:one", at(20));
        parked.add("a-2:one", at(10));
        parked.add("a-3:two", at(5));
        let one = ["one".to_owned()];

        assert_eq!(parked.next_due(&one, at(4)), Some(Duration::from_secs(6)));
        assert!(parked.take_due(&one, at(9), 8).is_empty());
        assert_eq!(parked.take_due(&one, at(10), 8), ["a-2:one"]);
        assert_eq!(parked.take_all(&one), ["a-1:one"]);
        assert_eq!(parked.next_due(&one, at(4)), None);
        assert_eq!(parked.take_all(&["two".to_owned()]), ["a-3:two"]);
    }

    #[test]
    fn no_more_than_asked_for() {
        let now = SystemTime::UNIX_EPOCH;
        let parked = DelayedDeliveries::default();
        for number in 0..3 {
            parked.add(&format!("a-{number}:q"), now);
        }
        let queues = ["q".to_owned()];
        assert_eq!(parked.take_due(&queues, now, 2), ["a-0:q", "a-1:q"]);
        assert_eq!(parked.take_due(&queues, now, 2), ["a-2:q"]);
        assert!(parked.take_due(&queues, now, 2).is_empty());
    }
}
