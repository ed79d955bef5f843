//! Rate limits of tasks: [`RateLimits`]. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::task::RateLimit;

/// The maximum wait for which the worker holds a rate-limited task and reserves its
/// start time. Tasks with a longer wait are deferred to the broker.
pub(crate) const MAX_LOCAL_WAIT: Duration = Duration::from_secs(1);

/// The maximum time for which a rate-limited task is deferred at once, so that a
/// changed limit takes effect soon.
pub(crate) const MAX_DEFER: Duration = Duration::from_secs(30);

/// The rate limits of a worker's tasks, with the reserved start times.
///
/// A task that can start within [`MAX_LOCAL_WAIT`] gets a start time. The others are
/// deferred to the broker until different times and queue again when they return, to
/// this worker or to another one. No start time is reserved for them, since it would
/// be lost if another worker receives the task.
#[derive(Debug, Default)]
pub(crate) struct RateLimits {
    buckets: HashMap<String, TaskBucket>,
}

/// The rate limit of one task.
#[derive(Debug)]
struct TaskBucket {
    /// The limit in Celery's notation, as it was set.
    text: String,
    /// The time between two starts.
    interval: Duration,
    /// The first start time that was never reserved.
    next: Option<Instant>,
    /// When the last deferred task returns.
    last_deferred: Option<Instant>,
    /// The start times of tasks that wait in this worker, by task id.
    reserved: HashMap<String, Instant>,
    /// Start times before `next` that were released.
    free: BTreeSet<Instant>,
}

impl RateLimits {
    /// Sets the limit of a task, or removes it. `text` is the limit in Celery's
    /// notation. Reservations are dropped: the waiting tasks queue again.
    pub(crate) fn set(&mut self, task: &str, text: &str, limit: RateLimit, now: Instant) {
        match limit.per_second {
            None => {
                self.buckets.remove(task);
            }
            Some(rate) => {
                let interval = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
                let next = self.buckets.get(task).and_then(|bucket| bucket.next);
                let bucket = TaskBucket {
                    text: text.to_owned(),
                    interval,
                    next: next.map(|next| next.min(now + interval)),
                    last_deferred: None,
                    reserved: HashMap::new(),
                    free: BTreeSet::new(),
                };
                self.buckets.insert(task.to_owned(), bucket);
            }
        }
    }

    /// Returns the limit of a task in Celery's notation, as it was set.
    pub(crate) fn show(&self, task: &str) -> Option<&str> {
        self.buckets.get(task).map(|bucket| &*bucket.text)
    }

    /// Returns `None` if the task with this id may start now. Otherwise returns when to
    /// call again: at its reserved start time, or after a deferral.
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

    /// Releases the start time of a task that will not start.
    pub(crate) fn release(&mut self, id: &str) {
        for bucket in self.buckets.values_mut() {
            if let Some(start) = bucket.reserved.remove(id) {
                bucket.free.insert(start);
            }
        }
    }
}

impl TaskBucket {
    /// Returns the first start time from now on that is not reserved.
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

    /// Returns when a deferred task returns: one interval after the one deferred before.
    fn defer(&mut self, first: Instant, now: Instant) -> Instant {
        let after = self
            .last_deferred
            .and_then(|last| last.checked_add(self.interval));
        let until = after.map_or(first, |after| after.max(first));
        let until = until.min(now + MAX_DEFER);
        self.last_deferred = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(limits: &mut RateLimits, text: &str, now: Instant) {
        limits.set("t", text, RateLimit::parse(text).unwrap(), now);
    }

    #[test]
    fn limit_is_shown_as_it_was_set() {
        let mut limits = RateLimits::default();
        assert_eq!(limits.show("t"), None);
        set(&mut limits, "2.50/m", Instant::now());
        assert_eq!(limits.show("t"), Some("2.50/m"));
        set(&mut limits, "0", Instant::now());
        assert_eq!(limits.show("t"), None);
    }

    #[test]
    fn starts_are_one_interval_apart() {
        let mut limits = RateLimits::default();
        let now = Instant::now();
        assert_eq!(limits.reserve("t", "a", now), None);
        set(&mut limits, "10/s", now);
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
            "unused starts do not accumulate"
        );
        assert!(limits.reserve("t", "e", later).is_some());
        set(&mut limits, "0", later);
        assert_eq!(limits.reserve("t", "f", later), None);
    }

    #[test]
    fn released_start_is_reserved_by_another_task() {
        let mut limits = RateLimits::default();
        let now = Instant::now();
        let tenth = Duration::from_millis(100);
        set(&mut limits, "10/s", now);
        assert_eq!(limits.reserve("t", "a", now), None);
        for (start, id) in (1..).zip(["b", "c", "d"]) {
            assert_eq!(limits.reserve("t", id, now), Some(now + tenth * start));
        }
        limits.release("b");
        limits.release("c");
        limits.release("unknown");
        // The first released start time is in the past.
        let later = now + tenth * 3 / 2;
        assert_eq!(limits.reserve("t", "e", later), Some(now + tenth * 2));
        assert_eq!(limits.reserve("t", "f", later), Some(now + tenth * 4));
        assert_eq!(limits.reserve("t", "d", later), Some(now + tenth * 3));
    }

    #[test]
    fn deferred_tasks_return_spread_out_without_reservation() {
        let mut limits = RateLimits::default();
        let now = Instant::now();
        let six = Duration::from_secs(6);
        set(&mut limits, "10/m", now);
        assert_eq!(limits.reserve("t", "a", now), None);
        for start in 1..=5 {
            assert_eq!(limits.reserve("t", "away", now), Some(now + six * start));
        }
        // The limit may be removed meanwhile.
        assert_eq!(limits.reserve("t", "away", now), Some(now + MAX_DEFER));
        // The deferred tasks may be at other workers, so their times are free.
        assert_eq!(limits.reserve("t", "b", now + six), None);
        assert_eq!(limits.reserve("t", "c", now + six * 2), None);
    }
}
