//! Lamport's logical clock, by which Celery orders the messages of different
//! machines: [`LogicalClock`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The end of the integers that JSON readers represent exactly. A received time from
/// here on is ignored, because no clock can have reached it: one sender must not
/// drive all clocks to their maximum.
const MAX_TIME: u64 = 1 << 53;

/// The clock of one app. Clones share its value.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogicalClock {
    value: Arc<AtomicU64>,
}

impl LogicalClock {
    /// Returns the current value.
    pub(crate) fn value(&self) -> u64 {
        self.value.load(Ordering::SeqCst)
    }

    /// Advances the clock for a local event, and returns the new value to send.
    pub(crate) fn forward(&self) -> u64 {
        self.adjust(0)
    }

    /// Advances the clock past its own value and that of a received message, and
    /// returns the new value.
    pub(crate) fn adjust(&self, other: u64) -> u64 {
        let other = if other < MAX_TIME { other } else { 0 };
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
    fn received_time_advances_clock() {
        let clock = LogicalClock::default();
        assert_eq!(clock.forward(), 1);
        assert_eq!(clock.adjust(10), 11);
        assert_eq!(clock.adjust(3), 12);
        assert_eq!(clock.clone().forward(), 13);
        assert_eq!(clock.value(), 13);
    }

    #[test]
    fn impossible_time_is_ignored() {
        let clock = LogicalClock::default();
        assert_eq!(clock.adjust(u64::MAX), 1);
        assert_eq!(clock.forward(), 2);
    }
}
