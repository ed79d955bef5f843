//! Where the time comes from.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Tells the time of day to clients, workers and the in-memory services.
///
/// [`Clock::system`] is the machine's. [`Clock::tokio`] starts at a given time
/// and advances with tokio's clock, so that a test that pauses tokio's time
/// also decides when a task's ETA falls due.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    virtual_origin: Option<Arc<(SystemTime, Instant)>>,
}

impl Clock {
    /// The time of the machine; follows its corrections.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that shows `start` now and runs with [`tokio::time`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime whose time is paused, as reading tokio's
    /// clock does.
    pub fn tokio(start: SystemTime) -> Self {
        Self {
            virtual_origin: Some(Arc::new((start, Instant::now()))),
        }
    }

    /// The time of day.
    pub fn now(&self) -> SystemTime {
        match self.virtual_origin.as_deref() {
            None => SystemTime::now(),
            Some((start, origin)) => *start + origin.elapsed(),
        }
    }

    /// Both kinds of time at once: of day for what messages say, monotonic
    /// for limits and delays.
    pub fn moment(&self) -> Now {
        Now {
            wall: self.now(),
            instant: Instant::now(),
        }
    }

    /// How long to sleep until `time`; at most a minute, so that whoever waits
    /// looks again and follows a clock that was set meanwhile.
    pub(crate) fn sleep_towards(&self, time: SystemTime) -> Duration {
        time.duration_since(self.now())
            .unwrap_or(Duration::ZERO)
            .min(Duration::from_secs(60))
    }
}

/// A point in time, as the pure parts of the worker are told it.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The time of day.
    pub wall: SystemTime,
    /// The monotonic time.
    pub instant: Instant,
}

/// The farthest that anything is put off: what somebody writes as a delay may be
/// any number.
const FARTHEST: Duration = Duration::from_secs(1_000 * 365 * 86_400);

/// The time after a delay.
pub(crate) fn later(now: SystemTime, delay: Duration) -> SystemTime {
    now + delay.min(FARTHEST)
}
