//! What is stored of a failed task: [`FailureInfo`].

use celery_protocol::Exception;

use crate::execution::error::Failure;

/// An exception and its traceback, ready to be stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FailureInfo {
    pub(crate) exception: Exception,
    pub(crate) traceback: Option<String>,
}

impl FailureInfo {
    /// Creates a failure without a traceback.
    pub(crate) fn new(exception: Exception) -> Self {
        Self {
            exception,
            traceback: None,
        }
    }
}

impl From<Failure> for FailureInfo {
    fn from(failure: Failure) -> Self {
        Self {
            traceback: Some(failure.traceback()),
            exception: failure.exception,
        }
    }
}
