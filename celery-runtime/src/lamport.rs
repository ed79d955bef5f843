//! The logical clock by which workers and clients order what they tell.

use std::sync::atomic::{AtomicU64, Ordering};

/// Lamport's clock: it advances with every event of our own, and past every
/// one that is heard of.
#[derive(Debug, Default)]
pub(crate) struct LogicalClock(AtomicU64);

impl LogicalClock {
    /// Advances for an event of our own and returns its time.
    pub(crate) fn forward(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Advances past the time of somebody else's event. A time that cannot be
    /// is left out, so that one sender cannot bring the clock to its end.
    pub(crate) fn adjust(&self, other: u64) {
        if other < FARTHEST {
            let later = |own: u64| Some(own.max(other) + 1);
            let _ = self
                .0
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
        }
    }

    /// The time of the latest event.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What Python and JSON readers hold exactly.
const FARTHEST: u64 = 1 << 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_after_everything_that_was_heard_of() {
        let clock = LogicalClock::default();
        assert_eq!(clock.forward(), 1);
        clock.adjust(10);
        assert_eq!(clock.value(), 11);
        clock.adjust(3);
        assert_eq!(clock.forward(), 13);
        clock.adjust(u64::MAX);
        assert_eq!(clock.value(), 13);
    }
}
