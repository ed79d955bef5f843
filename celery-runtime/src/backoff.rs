//! Delays between attempts: [`Backoff`] and [`RetryBackoff`]. Pure: the random
//! number is an argument.

use std::time::Duration;

/// An exponential back-off for reconnecting, publishing and storing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first delay.
    pub first: Duration,
    /// The longest delay.
    pub max: Duration,
}

impl Backoff {
    /// The back-off of connections: from 50 ms, since most servers are back within a
    /// second, to 2 s, so that work resumes soon after a long outage.
    pub const CONNECTION: Self = Self {
        first: Duration::from_millis(50),
        max: Duration::from_secs(2),
    };

    /// Returns the delay before retry number `attempt`, counted from 0.
    ///
    /// `random` in `0.0..1.0` shortens the delay by up to a half, so that the workers
    /// of a fleet do not reconnect at the same time.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX));
        doubled
            .min(self.max)
            .mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }
}

/// The back-off of automatic retries: Celery's `retry_backoff`,
/// `retry_backoff_max` and `retry_jitter`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBackoff {
    /// The seconds before the first retry; doubled with each further one.
    pub factor: u32,
    /// The maximum delay in seconds; 600 by default.
    pub max: u32,
    /// Whether the delay is random between 0 and the computed one; `true` by default.
    pub jitter: bool,
}

impl RetryBackoff {
    /// A back-off with this factor and Celery's defaults: at most 600 s, with jitter.
    pub const fn new(factor: u32) -> Self {
        Self {
            factor,
            max: 600,
            jitter: true,
        }
    }

    /// Returns the delay after this number of retries, by Celery's formula:
    /// `min(max, factor * 2^retries)` seconds, or with jitter a whole number of
    /// seconds between 0 and that, both included.
    ///
    /// `random` is in `0.0..1.0`.
    pub fn countdown(&self, retries: u32, random: f64) -> Duration {
        let doubled = 1u64.checked_shl(retries).unwrap_or(u64::MAX);
        let seconds = u64::from(self.factor.max(1))
            .saturating_mul(doubled)
            .min(u64::from(self.max));
        if !self.jitter {
            return Duration::from_secs(seconds);
        }
        // Truncating 0.0..1.0 times n + 1 gives 0..=n with equal probability.
        let drawn = (random.clamp(0.0, 1.0) * (seconds + 1) as f64) as u64;
        Duration::from_secs(drawn.min(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_delay_doubles_up_to_maximum() {
        let delays: Vec<_> = (0..8)
            .map(|attempt| Backoff::CONNECTION.delay(attempt, 0.0).as_millis())
            .collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(Backoff::CONNECTION.delay(40, 0.0), Duration::from_secs(2));
        assert_eq!(Backoff::CONNECTION.delay(0, 1.0), Duration::from_millis(25));
    }

    #[test]
    fn retry_delay_follows_celerys_formula() {
        let exact = RetryBackoff {
            jitter: false,
            ..RetryBackoff::new(3)
        };
        let seconds: Vec<_> = (0..10).map(|n| exact.countdown(n, 0.5).as_secs()).collect();
        assert_eq!(seconds, [3, 6, 12, 24, 48, 96, 192, 384, 600, 600]);
        assert_eq!(exact.countdown(200, 0.5).as_secs(), 600);
    }

    #[test]
    fn jitter_covers_zero_to_full_delay() {
        let jitter = RetryBackoff::new(1);
        assert_eq!(jitter.countdown(3, 0.0).as_secs(), 0);
        assert_eq!(jitter.countdown(3, 0.999_999).as_secs(), 8);
        assert_eq!(jitter.countdown(3, 1.0).as_secs(), 8);
    }
}
