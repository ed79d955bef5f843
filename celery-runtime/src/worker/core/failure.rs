//! Exceptions that the worker itself stores.

use std::time::Duration;

use celery_protocol::{Exception, Value};

use crate::execution::TaskError;
use crate::task::Conflict;

pub(crate) use crate::execution::FailureInfo;

/// What a task fails with that did not heed its soft limit.
pub(crate) fn soft_limit_exceeded() -> TaskError {
    TaskError::failed(billiard_exception("SoftTimeLimitExceeded", []))
}

pub(crate) fn time_limit_exceeded(limit: Duration) -> FailureInfo {
    let seconds = limit.as_secs_f64();
    let argument = if seconds.fract() == 0.0 {
        Value::Int(seconds as i64)
    } else {
        Value::Float(seconds)
    };
    FailureInfo::new(billiard_exception("TimeLimitExceeded", [argument]))
}

/// What a task fails with that had to be the only one.
pub(crate) fn not_unique() -> FailureInfo {
    FailureInfo::new(Exception::new("celery_rs", "NotUnique", Conflict::REASON))
}

/// What a task fails with whose process is gone.
pub(crate) fn worker_lost(message: String) -> FailureInfo {
    FailureInfo::new(billiard_exception("WorkerLostError", [Value::Str(message)]))
}

pub(crate) fn celery_exception(name: &str, message: impl Into<String>) -> FailureInfo {
    FailureInfo::new(Exception::new("celery.exceptions", name, message))
}

/// Celery's pool has its own exceptions, and readers know them by this module.
fn billiard_exception(name: &str, args: impl IntoIterator<Item = Value>) -> Exception {
    Exception::new("billiard.exceptions", name, "").with_args(args)
}
