//! How often tasks may start: Celery's rate limits. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::env;

/// Up to which wait a limited task is kept by the worker, and has its turn for
/// sure.
pub(crate) const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// How long a limited task is left with the broker at a time, so that a limit
/// that is lifted has its effect soon.
pub(crate) const LONGEST_PARK: Duration = Duration::from_secs(30);

/// The limits of a worker's tasks, and whose turn is when.
///
/// A task whose turn is near gets it. The others go back to the broker, spread
/// over the time to come, and line up anew when they return, here or at another
/// worker: a turn that was kept for one of them would be lost where another
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
    later: Option<Instant>,
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
                let next = self.buckets.get(task).and_then(|lane| lane.next);
                let lane = TaskBucket {
                    interval,
                    next: next.map(|next| next.min(env::instant() + interval)),
                    later: None,
                    reserved: HashMap::new(),
                    free: BTreeSet::new(),
                };
                self.buckets.insert(task.to_owned(), lane);
            }
        }
    }

    /// When the task with this id may start, or may ask again: at once where
    /// `None`.
    pub(crate) fn turn(&mut self, task: &str, id: &str, now: Instant) -> Option<Instant> {
        let lane = self.buckets.get_mut(task)?;
        if let Some(turn) = lane.reserved.get(id).copied() {
            if turn > now {
                return Some(turn);
            }
            lane.reserved.remove(id);
            return None;
        }
        let turn = lane.first_turn(now);
        if turn > now + LONGEST_HOLD {
            return Some(lane.send_away(turn, now));
        }
        lane.take(turn);
        if turn <= now {
            return None;
        }
        lane.reserved.insert(id.to_owned(), turn);
        Some(turn)
    }

    /// Gives the turn of a task that will not start to another one.
    pub(crate) fn forget(&mut self, id: &str) {
        for lane in self.buckets.values_mut() {
            if let Some(turn) = lane.reserved.remove(id) {
                lane.free.insert(turn);
            }
        }
    }
}

impl TaskBucket {
    /// The first turn from now on that nobody has.
    fn first_turn(&mut self, now: Instant) -> Instant {
        self.free = self.free.split_off(&now);
        let next = self.next.map_or(now, |next| next.max(now));
        self.free.first().copied().unwrap_or(next)
    }

    fn take(&mut self, turn: Instant) {
        if !self.free.remove(&turn) {
            self.next = turn.checked_add(self.interval).or(Some(turn));
        }
    }

    /// When to ask again: each one a turn after the one before.
    fn send_away(&mut self, first: Instant, now: Instant) -> Instant {
        let after = self
            .later
            .and_then(|later| later.checked_add(self.interval));
        let back = after.map_or(first, |after| after.max(first));
        let back = back.min(now + LONGEST_PARK);
        self.later = Some(back);
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_as_far_apart_as_the_rate_says() {
        let mut rates = RateLimits::default();
        let now = Instant::now();
        assert_eq!(rates.turn("t", "a", now), None);
        rates.set("t", Some(10.0));
        assert_eq!(rates.turn("t", "a", now), None);
        let tenth = Duration::from_millis(100);
        assert_eq!(rates.turn("t", "b", now), Some(now + tenth));
        assert_eq!(rates.turn("t", "c", now), Some(now + tenth * 2));
        assert_eq!(rates.turn("t", "b", now), Some(now + tenth));
        assert_eq!(rates.turn("t", "b", now + tenth), None);
        assert_eq!(rates.turn("other", "x", now), None);
        let later = now + Duration::from_secs(5);
        assert_eq!(rates.turn("t", "c", later), None);
        assert_eq!(rates.turn("t", "d", later), None, "no burst is saved up");
        assert!(rates.turn("t", "e", later).is_some());
        rates.set("t", None);
        assert_eq!(rates.turn("t", "f", later), None);
    }

    #[test]
    fn a_turn_that_is_given_up_is_anothers() {
        let mut rates = RateLimits::default();
        let now = Instant::now();
        let tenth = Duration::from_millis(100);
        rates.set("t", Some(10.0));
        assert_eq!(rates.turn("t", "a", now), None);
        for (turn, id) in (1..).zip(["b", "c", "d"]) {
            assert_eq!(rates.turn("t", id, now), Some(now + tenth * turn));
        }
        rates.forget("b");
        rates.forget("c");
        rates.forget("nobody");
        // The first one is over.
        let later = now + tenth * 3 / 2;
        assert_eq!(rates.turn("t", "e", later), Some(now + tenth * 2));
        assert_eq!(rates.turn("t", "f", later), Some(now + tenth * 4));
        assert_eq!(rates.turn("t", "d", later), Some(now + tenth * 3));
    }

    #[test]
    fn who_is_sent_away_comes_back_in_his_turn_and_keeps_it_from_nobody() {
        let mut rates = RateLimits::default();
        let now = Instant::now();
        let six = Duration::from_secs(6);
        rates.set("t", Some(1.0 / 6.0));
        assert_eq!(rates.turn("t", "a", now), None);
        for turn in 1..=5 {
            assert_eq!(rates.turn("t", "away", now), Some(now + six * turn));
        }
        // Nobody waits longer for a limit that may be lifted.
        assert_eq!(rates.turn("t", "away", now), Some(now + LONGEST_PARK));
        // They went to somebody else, and the turn is for who is here.
        assert_eq!(rates.turn("t", "b", now + six), None);
        assert_eq!(rates.turn("t", "c", now + six * 2), None);
    }
}
