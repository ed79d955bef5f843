//! Wall-clock and monotonic time: [`Clock`].

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::time;

/// The source of wall-clock time for clients, workers and the in-memory
/// services. Clones share one clock.
///
/// [`Clock::system`] is the machine's. [`Clock::tokio`] starts at a given time
/// and advances with tokio's clock, so that a test that pauses tokio's time
/// also decides when a task's ETA falls due.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    virtual_origin: Option<Arc<(SystemTime, time::Instant)>>,
    /// Milliseconds added to the wall-clock time.
    offset: Arc<AtomicI64>,
}

impl Clock {
    /// Returns the clock of the machine; it follows the machine's corrections.
    pub fn system() -> Self {
        Self::default()
    }

    /// Returns a clock that shows `start` now and advances with [`tokio::time`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime whose time is paused, as reading tokio's
    /// clock does.
    pub fn tokio(start: SystemTime) -> Self {
        Self {
            virtual_origin: Some(Arc::new((start, time::Instant::now()))),
            offset: Arc::default(),
        }
    }

    /// Returns the wall-clock time.
    pub fn now(&self) -> SystemTime {
        let now = match self.virtual_origin.as_deref() {
            None => super::system_time(),
            Some((start, origin)) => *start + origin.elapsed(),
        };
        let offset = self.offset.load(Ordering::Relaxed);
        let distance = Duration::from_millis(offset.unsigned_abs());
        let shifted = if offset < 0 {
            now.checked_sub(distance)
        } else {
            now.checked_add(distance)
        };
        shifted.unwrap_or(now)
    }

    /// Returns wall-clock and monotonic time together: the first for what
    /// messages say, the second for limits and delays.
    pub fn moment(&self) -> Now {
        Now {
            wall: self.now(),
            instant: time::Instant::now().into_std(),
        }
    }

    /// Sets the wall clock this many milliseconds ahead of its source, or behind
    /// it where negative; monotonic time does not change. For tests of clocks
    /// that differ between machines or are set while a worker runs.
    pub fn set_offset(&self, milliseconds: i64) {
        self.offset.store(milliseconds, Ordering::Relaxed);
    }

    /// Returns how long to sleep until `time`, at most a minute, so that the
    /// sleeper reads the clock again and follows one that was set meanwhile.
    pub(crate) fn sleep_towards(&self, time: SystemTime) -> Duration {
        time.duration_since(self.now())
            .unwrap_or(Duration::ZERO)
            .min(Duration::from_secs(60))
    }
}

/// A point in time on both clocks, as an argument of the pure parts of the
/// worker.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The wall-clock time.
    pub wall: SystemTime,
    /// The monotonic time, on tokio's clock.
    pub instant: Instant,
}

/// The longest delay: a delay from a message may be any number.
const MAX_DELAY: Duration = Duration::from_secs(1_000 * 365 * 86_400);

/// Returns the time after a delay, which is cut at a thousand years.
pub(crate) fn later(now: SystemTime, delay: Duration) -> SystemTime {
    now + delay.min(MAX_DELAY)
}

/// Returns a time as seconds since 1970, as Celery writes timestamps; 0 for a
/// time before.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn offset_moves_wall_clock_and_not_instant() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let clock = Clock::tokio(start);
        let before = clock.moment();
        clock.clone().set_offset(-5_000);
        assert_eq!(clock.now(), start - Duration::from_secs(5));
        clock.set_offset(5_000);
        let after = clock.moment();
        assert_eq!(after.wall, start + Duration::from_secs(5));
        assert_eq!(after.instant, before.instant);
    }
}
