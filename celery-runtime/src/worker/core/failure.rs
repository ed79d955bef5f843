//! Exceptions that the worker itself creates.

use std::time::Duration;

use celery_protocol::{Exception, Value};

use crate::execution::{FailureInfo, TaskError};
use crate::task::Conflict;

/// Returns the error of a task that does not observe its soft time limit.
pub(crate) fn soft_limit_exceeded() -> TaskError {
    TaskError::failed(billiard_exception("SoftTimeLimitExceeded", []))
}

/// Returns the failure of a task that exceeds its hard time limit.
pub(crate) fn time_limit_exceeded(limit: Duration) -> FailureInfo {
    let seconds = limit.as_secs_f64();
    let argument = if seconds.fract() == 0.0 {
        Value::Int(seconds as i64)
    } else {
        Value::Float(seconds)
    };
    FailureInfo::new(billiard_exception("TimeLimitExceeded", [argument]))
}

/// Returns the failure of a unique task of which another instance exists.
pub(crate) fn not_unique() -> FailureInfo {
    FailureInfo::new(Exception::new("celery_rs", "NotUnique", Conflict::REASON))
}

/// Returns the failure of a task whose process is lost.
pub(crate) fn worker_lost(message: String) -> FailureInfo {
    FailureInfo::new(billiard_exception("WorkerLostError", [Value::Str(message)]))
}

/// Returns a failure with an exception of `celery.exceptions`.
pub(crate) fn celery_exception(name: &str, message: impl Into<String>) -> FailureInfo {
    FailureInfo::new(Exception::new("celery.exceptions", name, message))
}

/// Returns an exception of Celery's process pool, which Python knows by this module.
fn billiard_exception(name: &str, args: impl IntoIterator<Item = Value>) -> Exception {
    Exception::new("billiard.exceptions", name, "").with_args(args)
}
