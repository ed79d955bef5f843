//! Task rates over the last minute: [`EventRates`].

use std::time::{SystemTime, UNIX_EPOCH};

use celery_protocol::State;

/// The length of the window in seconds.
const WINDOW: u64 = 60;

/// Tasks per second that reached each state, averaged over the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct EventRates {
    /// Tasks received by workers.
    pub received: f64,
    /// Tasks started.
    pub started: f64,
    /// Tasks that succeeded.
    pub succeeded: f64,
    /// Tasks that failed.
    pub failed: f64,
    /// Tasks that are retried.
    pub retried: f64,
}

/// Counts state changes in one bucket per second.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    buckets: Vec<Bucket>,
    /// The second of the first count.
    first: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    second: u64,
    counts: [u64; 5],
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            buckets: vec![Bucket::default(); WINDOW as usize],
            first: None,
        }
    }
}

impl Meter {
    /// Counts a task that reached this state.
    pub(super) fn count(&mut self, state: &State, now: SystemTime) {
        let kind = match state {
            State::Received => 0,
            State::Started => 1,
            State::Success => 2,
            State::Failure => 3,
            State::Retry => 4,
            _ => return,
        };
        let second = second(now);
        self.first.get_or_insert(second);
        let bucket = &mut self.buckets[(second % WINDOW) as usize];
        if bucket.second != second {
            // The bucket is a minute old, or the clock was set back.
            *bucket = Bucket {
                second,
                ..Bucket::default()
            };
        }
        bucket.counts[kind] += 1;
    }

    pub(super) fn rates(&self, now: SystemTime) -> EventRates {
        let now = second(now);
        let is_recent = |bucket: &&Bucket| bucket.second <= now && now - bucket.second < WINDOW;
        let mut sums = [0u64; 5];
        for bucket in self.buckets.iter().filter(is_recent) {
            for (sum, count) in sums.iter_mut().zip(bucket.counts) {
                *sum += count;
            }
        }
        // The average is over the time since the first count, if that is shorter.
        let observed = self
            .first
            .map_or(WINDOW, |first| now.saturating_sub(first) + 1);
        let seconds = observed.clamp(1, WINDOW) as f64;
        let [received, started, succeeded, failed, retried] = sums.map(|sum| sum as f64 / seconds);
        EventRates {
            received,
            started,
            succeeded,
            failed,
            retried,
        }
    }
}

fn second(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000 + second)
    }

    #[test]
    fn rates_cover_the_last_minute() {
        let mut meter = Meter::default();
        assert_eq!(meter.rates(at(0)), EventRates::default());
        for second in 0..120 {
            meter.count(&State::Received, at(second));
            meter.count(&State::Received, at(second));
            meter.count(&State::Pending, at(second));
        }
        assert_eq!(meter.rates(at(119)).received, 2.0);
        assert_eq!(meter.rates(at(149)).received, 1.0);
        assert_eq!(meter.rates(at(300)).received, 0.0);
    }

    #[test]
    fn new_meter_averages_since_its_first_count() {
        let mut meter = Meter::default();
        for _ in 0..10 {
            meter.count(&State::Success, at(0));
        }
        assert_eq!(meter.rates(at(4)).succeeded, 2.0);
    }

    #[test]
    fn clock_set_back_is_tolerated() {
        let mut meter = Meter::default();
        meter.count(&State::Failure, at(60));
        meter.count(&State::Failure, at(0));
        assert_eq!(meter.rates(at(0)).failed, 1.0);
    }
}
