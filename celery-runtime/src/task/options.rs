//! The options of a task: [`TaskOptions`] and [`AutoRetry`].

use std::error::Error as StdError;
use std::time::Duration;

use crate::backoff::RetryBackoff;
use crate::task::unique::Unique;

/// The options of a task. An option that is `None` has the value of the worker's configuration.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TaskOptions {
    /// Acknowledges the message after the task has run instead of before (`acks_late`).
    pub acks_late: Option<bool>,
    /// Acknowledges a late-acknowledged message also if the task failed
    /// (`acks_on_failure_or_timeout`); otherwise the message is rejected.
    pub acks_on_failure: Option<bool>,
    /// Acknowledges a late-acknowledged message also if the task exceeded its time limit
    /// (`task_acks_on_timeout`); by default the value of `acks_on_failure`.
    pub acks_on_timeout: Option<bool>,
    /// The rate limit per worker (`rate_limit`): `10/s`, `5/m`, `2.5/h`, or a number per second.
    pub rate_limit: Option<&'static str>,
    /// Requeues the message when the child process of the task is lost (`reject_on_worker_lost`),
    /// for late-acknowledged tasks in child processes
    /// ([`with_isolated`](crate::Tasks::with_isolated)). The message is delivered at most five
    /// times if the broker counts deliveries, and at most twice if it only flags redeliveries. Then
    /// the task fails, so that a task which always crashes its process is not retried without end.
    /// The late-acknowledged messages of tasks in the process of the worker are redelivered by the
    /// broker in any case.
    pub reject_on_worker_lost: Option<bool>,
    /// Does not store the result (`ignore_result`).
    pub ignore_result: Option<bool>,
    /// Stores failures even if the result is ignored (`store_errors_even_if_ignored`).
    pub store_errors: Option<bool>,
    /// Stores the state STARTED when the task starts (`track_started`).
    pub track_started: Option<bool>,
    /// The maximum number of retries (`max_retries`); `Some(None)` for no limit.
    pub max_retries: Option<Option<u32>>,
    /// The delay of a retry that does not set its own (`default_retry_delay`).
    pub retry_delay: Option<Duration>,
    /// The soft time limit, at which the task is asked to finish.
    pub soft_time_limit: Option<Duration>,
    /// The hard time limit, at which the task is aborted.
    pub time_limit: Option<Duration>,
    /// Prevents concurrent executions; see [`Unique`].
    pub unique: Option<Unique>,
    /// The default priority of messages, 0 to 9.
    pub priority: Option<u8>,
    /// The failures that are retried automatically.
    pub autoretry: Option<AutoRetry>,
}

impl TaskOptions {
    /// The default, for constants.
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

/// The failures of a task that are retried automatically, and the back-off.
#[derive(Clone, Copy, Debug)]
pub struct AutoRetry {
    matches: fn(&(dyn StdError + 'static)) -> bool,
    pub(crate) any: bool,
    pub(crate) backoff: Option<RetryBackoff>,
}

impl AutoRetry {
    /// Retries every failure.
    pub const fn any() -> Self {
        Self {
            matches: |_| true,
            any: true,
            backoff: None,
        }
    }

    /// Retries failures that were made from an error of type `E`, or have one among their causes.
    pub const fn on<E: StdError + 'static>() -> Self {
        Self {
            matches: |error| error.is::<E>(),
            any: false,
            backoff: None,
        }
    }

    /// Sets a back-off; by default the delay is the task's `retry_delay`.
    #[must_use]
    pub const fn backoff(self, backoff: RetryBackoff) -> Self {
        Self {
            backoff: Some(backoff),
            ..self
        }
    }

    /// Returns whether a failure made from `source` is retried.
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
    fn autoretry_on_type_searches_causes() {
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
