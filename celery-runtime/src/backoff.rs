//! Delays between attempts. Pure: the random number is an argument.

use std::time::Duration;

/// Exponential delays for reconnecting, publishing and storing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first delay.
    pub first: Duration,
    /// The longest delay.
    pub max: Duration,
}

impl Backoff {
    /// For connections: quick at first, since most servers are back within a
    /// second, and never more than 2 s apart, so that work resumes soon.
    pub const CONNECTION: Self = Self {
        first: Duration::from_millis(50),
        max: Duration::from_secs(2),
    };

    /// The delay before attempt number `attempt` (the first retry is 0).
    /// `random` in `0.0..1.0` takes off up to a half, so that a fleet does
    /// not come back in step.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX));
        doubled
            .min(self.max)
            .mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }
}

/// When a task that failed is tried again without being told to: Celery's
/// `retry_backoff`, `retry_backoff_max` and `retry_jitter`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBackoff {
    /// Seconds before the first retry; doubled with each one.
    pub factor: u32,
    /// The most seconds between two attempts; 600 by default.
    pub max: u32,
    /// Whether the delay is drawn from between nothing and the computed one.
    pub jitter: bool,
}

impl RetryBackoff {
    /// Celery's defaults with this factor: at most 600 s, with jitter.
    pub const fn new(factor: u32) -> Self {
        Self {
            factor,
            max: 600,
            jitter: true,
        }
    }

    /// Celery's formula: `min(max, factor * 2^retries)`, with jitter a whole
    /// number of seconds between 0 and that, both included.
    pub fn countdown(&self, retries: u32, random: f64) -> Duration {
        let doubled = 1u64.checked_shl(retries).unwrap_or(u64::MAX);
        let seconds = u64::from(self.factor.max(1))
            .saturating_mul(doubled)
            .min(u64::from(self.max));
        if !self.jitter {
            return Duration::from_secs(seconds);
        }
        // Truncation is the point: 0.0..1.0 times n+1 gives 0..=n evenly.
        let drawn = (random.clamp(0.0, 1.0) * (seconds + 1) as f64) as u64;
        Duration::from_secs(drawn.min(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_delays_double_up_to_the_limit() {
        let delays: Vec<_> = (0..8)
            .map(|attempt| Backoff::CONNECTION.delay(attempt, 0.0).as_millis())
            .collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(Backoff::CONNECTION.delay(40, 0.0), Duration::from_secs(2));
        assert_eq!(Backoff::CONNECTION.delay(0, 1.0), Duration::from_millis(25));
    }

    #[test]
    fn retry_delays_follow_celerys_formula() {
        let exact = RetryBackoff {
            jitter: false,
            ..RetryBackoff::new(3)
        };
        let seconds: Vec<_> = (0..10).map(|n| exact.countdown(n, 0.5).as_secs()).collect();
        assert_eq!(seconds, [3, 6, 12, 24, 48, 96, 192, 384, 600, 600]);
        assert_eq!(exact.countdown(200, 0.5).as_secs(), 600);
    }

    #[test]
    fn jitter_covers_nothing_to_everything() {
        let jitter = RetryBackoff::new(1);
        assert_eq!(jitter.countdown(3, 0.0).as_secs(), 0);
        assert_eq!(jitter.countdown(3, 0.999_999).as_secs(), 8);
        assert_eq!(jitter.countdown(3, 1.0).as_secs(), 8);
    }
}
