//! How often tasks may start: Celery's rate limits. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::env;

/// Up to which wait a limited task is kept by the worker, and has its start for
/// sure.
pub(crate) const MAX_LOCAL_WAIT: Duration = Duration::from_secs(1);

/// How long a limited task is left with the broker at a time, so that a limit
/// that is lifted has its effect soon.
pub(crate) const MAX_DEFER: Duration = Duration::from_secs(30);

/// The limits of a worker's tasks, and whose start is when.
///
/// A task whose start is near gets it. The others go back to the broker, spread
/// over the time to come, and line up anew when they return, here or at another
/// worker: a start that was kept for one of them would be lost where another
/// worker has it by then.
#[derive(Debug, Default)]
pub(crate) struct RateLimits {
    buckets: HashMap<String, TaskBucket>,
}

#[derive(Debug)]
struct TaskBucket {
    interval: Duration,
    /// When the next one may start.
    next: Option<Instant>,
    /// When the last one of those comes back that were sent away.
    last_deferred: Option<Instant>,
    /// The turns of those that wait here.
    reserved: HashMap<String, Instant>,
    /// Turns before `next` that were given up.
    free: BTreeSet<Instant>,
}

impl RateLimits {
    /// Sets the limit of a task, in starts for each second, or lifts it. Who
    /// waits lines up anew.
    pub(crate) fn set(&mut self, task: &str, rate: Option<f64>) {
        match rate {
            None => {
                self.buckets.remove(task);
            }
            Some(rate) => {
                let interval = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
                let next = self.buckets.get(task).and_then(|bucket| bucket.next);
                let bucket = TaskBucket {
                    interval,
                    next: next.map(|next| next.min(env::instant() + interval)),
                    last_deferred: None,
                    reserved: HashMap::new(),
                    free: BTreeSet::new(),
                };
                self.buckets.insert(task.to_owned(), bucket);
            }
        }
    }

    /// When the task with this id may start, or may ask again: at once where
    /// `None`.
    pub(crate) fn reserve(&mut self, task: &str, id: &str, now: Instant) -> Option<Instant> {
        let bucket = self.buckets.get_mut(task)?;
        if let Some(start) = bucket.reserved.get(id).copied() {
            if start > now {
                return Some(start);
            }
            bucket.reserved.remove(id);
            return None;
        }
        let start = bucket.first_free(now);
        if start > now + MAX_LOCAL_WAIT {
            return Some(bucket.defer(start, now));
        }
        bucket.take(start);
        if start <= now {
            return None;
        }
        bucket.reserved.insert(id.to_owned(), start);
        Some(start)
    }

    /// Gives the start of a task that will not start to another one.
    pub(crate) fn release(&mut self, id: &str) {
        for bucket in self.buckets.values_mut() {
            if let Some(start) = bucket.reserved.remove(id) {
                bucket.free.insert(start);
            }
        }
    }
}

impl TaskBucket {
    /// The first start from now on that nobody has.
    fn first_free(&mut self, now: Instant) -> Instant {
        self.free = self.free.split_off(&now);
        let next = self.next.map_or(now, |next| next.max(now));
        self.free.first().copied().unwrap_or(next)
    }

    fn take(&mut self, start: Instant) {
        if !self.free.remove(&start) {
            self.next = start.checked_add(self.interval).or(Some(start));
        }
    }

    /// When to ask again: each one a start after the one before.
    fn defer(&mut self, first: Instant, now: Instant) -> Instant {
        let after = self
            .last_deferred
            .and_then(|later| later.checked_add(self.interval));
        let back = after.map_or(first, |after| after.max(first));
        let back = back.min(now + MAX_DEFER);
        self.last_deferred = Some(back);
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_as_far_apart_as_the_rate_says() {
        let mut limits = RateLimits::default();
        let now = Instant::now();
        assert_eq!(limits.reserve("t", "a", now), None);
        limits.set("t", Some(10.0));
        assert_eq!(limits.reserve("t", "a", now), None);
        let tenth = Duration::from_millis(100);
        assert_eq!(limits.reserve("t", "b", now), Some(now + tenth));
        assert_eq!(limits.reserve("t", "c", now), Some(now + tenth * 2));
        assert_eq!(limits.reserve("t", "b", now), Some(now + tenth));
        assert_eq!(limits.reserve("t", "b", now + tenth), None);
        assert_eq!(limits.reserve("other", "x", now), None);
        let later = now + Duration::from_secs(5);
        assert_eq!(limits.reserve("t", "c", later), None);
        assert_eq!(
            limits.reserve("t", "d", later),
            None,
            "no burst is saved up"
        );
        assert!(limits.reserve("t", "e", later).is_some());
        limits.set("t", None);
        assert_eq!(limits.reserve("t", "f", later), None);
    }

    #[test]
    fn a_turn_that_is_given_up_is_anothers() {
        let mut limits = RateLimits::default();
        let now = Instant::now();
        let tenth = Duration::from_millis(100);
        limits.set("t", Some(10.0));
        assert_eq!(limits.reserve("t", "a", now), None);
        for (start, id) in (1..).zip(["b", "c", "d"]) {
            assert_eq!(limits.reserve("t", id, now), Some(now + tenth * start));
        }
        limits.release("b");
        limits.release("c");
        limits.release("nobody");
        // The first one is over.
        let later = now + tenth * 3 / 2;
        assert_eq!(limits.reserve("t", "e", later), Some(now + tenth * 2));
        assert_eq!(limits.reserve("t", "f", later), Some(now + tenth * 4));
        assert_eq!(limits.reserve("t", "d", later), Some(now + tenth * 3));
    }

    #[test]
    fn who_is_sent_away_comes_back_in_his_turn_and_keeps_it_from_nobody() {
        let mut limits = RateLimits::default();
        let now = Instant::now();
        let six = Duration::from_secs(6);
        limits.set("t", Some(1.0 / 6.0));
        assert_eq!(limits.reserve("t", "a", now), None);
        for start in 1..=5 {
            assert_eq!(limits.reserve("t", "away", now), Some(now + six * start));
        }
        // Nobody waits longer for a limit that may be lifted.
        assert_eq!(limits.reserve("t", "away", now), Some(now + MAX_DEFER));
        // They went to somebody else, and the start is for who is here.
        assert_eq!(limits.reserve("t", "b", now + six), None);
        assert_eq!(limits.reserve("t", "c", now + six * 2), None);
    }
}
