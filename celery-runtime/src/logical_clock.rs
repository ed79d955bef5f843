//! Lamport's logical clock, by which Celery orders what different machines say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What Python and JSON readers hold exactly. A later time is none that a clock
/// can have come to, and is left out: one sender must not bring all clocks to
/// their end.
const HIGHEST: u64 = 1 << 53;

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
        let other = if other < HIGHEST { other } else { 0 };
        let past = |value: u64| value.max(other) + 1;
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
    fn a_time_that_cannot_be_does_not_move_it() {
        let clock = LogicalClock::default();
        assert_eq!(clock.adjust(u64::MAX), 1);
        assert_eq!(clock.forward(), 2);
    }
}
