//! How large an answer with messages may be, and how long it may take.
//!
//! The same request would time out again on the same link, so each timeout makes
//! the next answer smaller, down to one message, and allows more time for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};

/// The size of an answer. Server and client each hold it in memory as a whole.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The size after a timeout is this part of the one before.
const SHRINK_DIVISOR: usize = 8;

/// The time for one message, unless `socket_timeout` is longer.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// The limits of the next answer; all consumers of one broker share them.
#[derive(Debug)]
pub(crate) struct AnswerBudget {
    response_timeout: Duration,
    limits: Mutex<AnswerLimits>,
}

/// The limits of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnswerLimits {
    /// A single message may be larger. At least 1.
    pub(crate) bytes: usize,
    pub(crate) timeout: Duration,
}

impl AnswerBudget {
    pub(crate) fn new(response_timeout: Duration) -> Self {
        let limits = AnswerLimits {
            bytes: MAX_BYTES,
            timeout: response_timeout,
        };
        Self {
            response_timeout,
            limits: Mutex::new(limits),
        }
    }

    pub(crate) fn limits(&self) -> AnswerLimits {
        *self.lock()
    }

    /// Records an answer of this size. One that took less than a quarter of the
    /// response timeout allows twice its size, and half of the time.
    pub(crate) fn answered(&self, size: usize, elapsed: Duration) {
        if elapsed * 4 > self.response_timeout {
            return;
        }
        let mut limits = self.lock();
        if size > 0 && size * 2 >= limits.bytes {
            limits.bytes = limits.bytes.max(size).saturating_mul(2).min(MAX_BYTES);
        }
        limits.timeout = (limits.timeout / 2).max(self.response_timeout);
    }

    /// Records the error of a call with these limits. Of several such calls
    /// without an answer only the first counts.
    pub(crate) fn failed(&self, error: &ServiceError, tried: AnswerLimits) {
        let mut limits = self.lock();
        if error.kind() == ServiceErrorKind::TimedOut && *limits == tried {
            limits.bytes = (tried.bytes / SHRINK_DIVISOR).max(1);
            limits.timeout = (tried.timeout * 2).min(MAX_TIMEOUT.max(self.response_timeout));
        }
    }

    fn lock(&self) -> MutexGuard<'_, AnswerLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn error(kind: ServiceErrorKind) -> ServiceError {
        ServiceError::new(kind, "consume", "queue q", "cause")
    }

    fn time_out(budget: &AnswerBudget) {
        budget.failed(&error(ServiceErrorKind::TimedOut), budget.limits());
    }

    #[test]
    fn timeouts_shrink_the_answer_to_one_message_and_allow_it_more_time() {
        let budget = AnswerBudget::new(5 * SECOND);
        let mut bytes = Vec::new();
        for _ in 0..10 {
            time_out(&budget);
            bytes.push(budget.limits().bytes);
        }
        assert_eq!(bytes[..3], [2 << 20, 256 << 10, 32 << 10]);
        assert_eq!(budget.limits().bytes, 1);
        assert_eq!(budget.limits().timeout, MAX_TIMEOUT);
    }

    #[test]
    fn quick_answers_of_full_size_restore_the_limits() {
        let budget = AnswerBudget::new(5 * SECOND);
        (0..10).for_each(|_| time_out(&budget));
        budget.answered(0, Duration::ZERO);
        assert_eq!(
            budget.limits().bytes,
            1,
            "an empty answer says nothing about sizes"
        );
        budget.answered(1 << 20, SECOND);
        assert_eq!(budget.limits().bytes, 2 << 20);
        for _ in 0..10 {
            budget.answered(budget.limits().bytes, SECOND);
        }
        assert_eq!(budget.limits(), AnswerBudget::new(5 * SECOND).limits());
    }

    #[test]
    fn slow_answer_leaves_the_limits() {
        let budget = AnswerBudget::new(5 * SECOND);
        time_out(&budget);
        let limits = budget.limits();
        budget.answered(limits.bytes, 2 * SECOND);
        assert_eq!(budget.limits(), limits);
    }

    #[test]
    fn simultaneous_timeouts_count_once() {
        let budget = AnswerBudget::new(SECOND);
        let tried = budget.limits();
        budget.failed(&error(ServiceErrorKind::Disconnected), tried);
        assert_eq!(budget.limits(), tried, "only a timeout counts");
        for _ in 0..2 {
            budget.failed(&error(ServiceErrorKind::TimedOut), tried);
        }
        assert_eq!(budget.limits().bytes, MAX_BYTES / SHRINK_DIVISOR);
        assert_eq!(budget.limits().timeout, 2 * SECOND);
    }
}
