//! What a declaration says beside name and parameters.

use std::error::Error as StdError;
use std::time::Duration;

use crate::backoff::RetryBackoff;
use crate::task::unique::Unique;

/// Settings of one task. What is `None` follows the worker's configuration.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TaskOptions {
    /// Acknowledge after the task ran instead of before (`acks_late`).
    pub acks_late: Option<bool>,
    /// Acknowledge a late task also when it failed
    /// (`acks_on_failure_or_timeout`); otherwise it is rejected.
    pub acks_on_failure: Option<bool>,
    /// Acknowledge a late task also when it ran out of time; as
    /// `acks_on_failure` where nothing is said (`task_acks_on_timeout`).
    pub acks_on_timeout: Option<bool>,
    /// How often it may start, on each worker: `10/s`, `5/m`, `2.5/h`, or a
    /// number for each second (`rate_limit`).
    pub rate_limit: Option<&'static str>,
    /// Give the message back when the process running the task is lost
    /// (`reject_on_worker_lost`), for late tasks in child processes
    /// ([`with_isolated`](crate::Tasks::with_isolated)). It is given back until
    /// it was delivered five times where the broker counts, and once where it
    /// only tells a first delivery from others; then the task fails, so that
    /// one which always takes its process with it does not go round for ever.
    /// Of tasks in the worker's own process the broker gives every late
    /// message to another worker anyway.
    pub reject_on_worker_lost: Option<bool>,
    /// Store no result.
    pub ignore_result: Option<bool>,
    /// Store failures even where results are ignored.
    pub store_errors: Option<bool>,
    /// Store the state STARTED when the task begins.
    pub track_started: Option<bool>,
    /// Retries before the task fails; `Some(None)` is without end.
    pub max_retries: Option<Option<u32>>,
    /// Wait before a retry that names no delay.
    pub retry_delay: Option<Duration>,
    /// Time after which the task is told to finish.
    pub soft_time_limit: Option<Duration>,
    /// Time after which the task is ended.
    pub time_limit: Option<Duration>,
    /// Whether there is one at a time.
    pub unique: Option<Unique>,
    /// Priority of its messages, 0 to 9.
    pub priority: Option<u8>,
    /// Failures after which the task is retried by itself.
    pub autoretry: Option<AutoRetry>,
}

impl TaskOptions {
    /// Nothing said, for constants; the same as the default.
    pub(crate) const NONE: Self = Self {
        acks_late: None,
        acks_on_failure: None,
        acks_on_timeout: None,
        rate_limit: None,
        unique: None,
        reject_on_worker_lost: None,
        ignore_result: None,
        store_errors: None,
        track_started: None,
        max_retries: None,
        retry_delay: None,
        soft_time_limit: None,
        time_limit: None,
        priority: None,
        autoretry: None,
    };
}

/// Which failures are retried without the task asking, and when.
#[derive(Clone, Copy, Debug)]
pub struct AutoRetry {
    matches: fn(&(dyn StdError + 'static)) -> bool,
    pub(crate) any: bool,
    pub(crate) backoff: Option<RetryBackoff>,
}

impl AutoRetry {
    /// Every failure, whatever its type.
    pub const fn any() -> Self {
        Self {
            matches: |_| true,
            any: true,
            backoff: None,
        }
    }

    /// Failures made from an error of type `E`, or caused by one.
    pub const fn on<E: StdError + 'static>() -> Self {
        Self {
            matches: |error| error.is::<E>(),
            any: false,
            backoff: None,
        }
    }

    /// Waits longer each time; without it the task's `retry_delay` applies.
    #[must_use]
    pub const fn backoff(self, backoff: RetryBackoff) -> Self {
        Self {
            backoff: Some(backoff),
            ..self
        }
    }

    /// Whether a failure with this error behind it is retried.
    pub(crate) fn applies_to(
        &self,
        source: Option<&(dyn StdError + Send + Sync + 'static)>,
    ) -> bool {
        if self.any {
            return true;
        }
        let mut next = source.map(|error| error as &(dyn StdError + 'static));
        while let Some(error) = next {
            if (self.matches)(error) {
                return true;
            }
            next = error.source();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_found_along_the_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);

        let auto = AutoRetry::on::<std::io::Error>();
        let outer = Outer(std::io::Error::other("x"));
        assert!(auto.applies_to(Some(&outer)));
        let other = "x".parse::<i64>().unwrap_err();
        assert!(!auto.applies_to(Some(&other)));
        assert!(!auto.applies_to(None));
        assert!(AutoRetry::any().applies_to(None));
    }
}
