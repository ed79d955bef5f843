//! Lamport's logical clock, by which Celery orders what different machines say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The highest value: what fits the signed numbers of every serializer. A clock
/// that somebody set there stays there.
const HIGHEST: u64 = i64::MAX as u64;

/// The clock of one app; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogicalClock {
    value: Arc<AtomicU64>,
}

impl LogicalClock {
    /// The value now.
    pub(crate) fn value(&self) -> u64 {
        self.value.load(Ordering::SeqCst)
    }

    /// Something happened here; the new value is what to tell others.
    pub(crate) fn forward(&self) -> u64 {
        self.adjust(0)
    }

    /// Somebody whose clock shows `other` told something. Ours is past both from
    /// now on.
    pub(crate) fn adjust(&self, other: u64) -> u64 {
        let past = |value: u64| value.max(other).saturating_add(1).min(HIGHEST);
        let step = |value| Some(past(value));
        match self
            .value
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, step)
        {
            Ok(before) | Err(before) => past(before),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_past_what_it_hears() {
        let clock = LogicalClock::default();
        assert_eq!(clock.forward(), 1);
        assert_eq!(clock.adjust(10), 11);
        assert_eq!(clock.adjust(3), 12);
        assert_eq!(clock.clone().forward(), 13);
        assert_eq!(clock.value(), 13);
    }

    #[test]
    fn it_does_not_run_over() {
        let clock = LogicalClock::default();
        assert_eq!(clock.adjust(u64::MAX), HIGHEST);
        assert_eq!(clock.forward(), HIGHEST);
    }
}
