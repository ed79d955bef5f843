//! The messages between a worker and its child processes. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::boundary::ServiceError;
use crate::worker::isolated::wire_error::WireError;

/// The version of the protocol. A child with another version is rejected.
pub(crate) const PROTOCOL: u32 = 1;

/// A message from the worker to a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToChild {
    /// The answer to [`ToWorker::Handshake`].
    Configure(ChildConfig),
    /// Runs a task. Byte strings: the message's envelope with an empty body, and
    /// the body.
    Run(RunTask),
    /// The soft limit of the task is reached.
    SoftLimit,
    /// The worker is shutting down.
    Stop,
    /// The result of an [`Update`](ToWorker::Update).
    Updated {
        number: u64,
        error: Option<StoreError>,
    },
}

/// A message from a child to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first message of a child.
    Handshake(Handshake),
    /// The child has received the task and starts it.
    Started,
    /// The task handles its soft time limit itself.
    HandlesSoftLimit,
    /// Stores a state of the running task. Byte string: the result document.
    Update { number: u64, id: String },
    /// The task returned. Byte string: the value, if it is wanted.
    Value,
    /// The task ended with an error.
    Error(WireError),
    /// The task panicked.
    Panic(String),
}

/// The identity of a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Handshake {
    pub(crate) protocol: u32,
    /// See [`build`](crate::worker::isolated::program::build).
    pub(crate) build: String,
}

/// The settings that a child takes over from its worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ChildConfig {
    pub(crate) hostname: String,
    pub(crate) result_serializer: String,
    pub(crate) result_extended: bool,
    pub(crate) body_limit: usize,
}

/// A task to run, without its message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunTask {
    pub(crate) id: String,
    pub(crate) task: String,
    pub(crate) retries: u32,
    pub(crate) redelivered: bool,
    pub(crate) stores_result: bool,
    pub(crate) wants_value: bool,
    pub(crate) soft_limit: Option<Duration>,
    pub(crate) hard_limit: Option<Duration>,
}

/// The wire form of the [`ServiceError`] of an update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoreError {
    kind: String,
    cause: String,
}

impl From<&ServiceError> for StoreError {
    fn from(error: &ServiceError) -> Self {
        Self {
            kind: format!("{:?}", error.kind()),
            cause: error.to_string(),
        }
    }
}

impl StoreError {
    /// Returns the error for the task that sent the update.
    pub(crate) fn into_error(self, id: &str) -> ServiceError {
        use crate::boundary::ServiceErrorKind as Kind;
        const KINDS: [Kind; 9] = [
            Kind::Unreachable,
            Kind::Disconnected,
            Kind::TimedOut,
            Kind::Refused,
            Kind::Denied,
            Kind::Invalid,
            Kind::Unroutable,
            Kind::Unsupported,
            Kind::Closed,
        ];
        let mut kinds = KINDS.into_iter();
        let kind = kinds.find(|kind| format!("{kind:?}") == self.kind);
        let object = format!("the state of task {id} by its worker");
        ServiceError::new(kind.unwrap_or(Kind::Invalid), "store", object, self.cause)
            // The cause already contains the remedy, if there is one.
            .with_remedy("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::ServiceErrorKind;

    #[test]
    fn store_error_keeps_kind_and_text() {
        let error = ServiceError::new(
            ServiceErrorKind::Unreachable,
            "connect to",
            "redis://h",
            "connection refused",
        );
        let error = StoreError::from(&error).into_error("id-1");
        assert_eq!(error.kind(), ServiceErrorKind::Unreachable);
        assert!(error.is_transient());
        assert_eq!(
            error.to_string(),
            "cannot store the state of task id-1 by its worker: cannot connect to redis://h: \
             connection refused (is the server running at this address?)"
        );
    }
}
