//! What a worker and its children say to each other. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::boundary::ServiceError;
use crate::worker::isolated::wire_error::WireError;

/// The version of what follows; a child that speaks another one is refused.
pub(crate) const PROTOCOL: u32 = 1;

/// From the worker to a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToChild {
    /// The answer to [`ToWorker::Handshake`].
    Welcome(Welcome),
    /// Run this task. Beside it: the message's envelope with an empty body,
    /// and the body.
    Run(Call),
    /// The soft limit of the task is reached.
    SoftLimit,
    /// The worker was told to stop.
    Stop,
    /// What came of an update.
    Updated {
        number: u64,
        refusal: Option<StoreRefusal>,
    },
}

/// From a child to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first word of all.
    Handshake(Handshake),
    /// A task was taken in hand.
    Began,
    /// The task will end on its own terms at its soft limit.
    Listens,
    /// Store this state of the running task. Beside it: the document.
    Update { number: u64, id: String },
    /// The task returned. Beside it: the value, where it is wanted.
    Value,
    /// The task ended without a value.
    WireError(WireError),
    /// The task panicked.
    Panic(String),
}

/// Who a child is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Handshake {
    pub(crate) protocol: u32,
    /// See [`build`](crate::worker::isolated::program::build).
    pub(crate) build: String,
}

/// What a child has to know of its worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) hostname: String,
    pub(crate) result_serializer: String,
    pub(crate) result_extended: bool,
    pub(crate) body_limit: usize,
}

/// A task to run, without its message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) task: String,
    pub(crate) retries: u32,
    pub(crate) redelivered: bool,
    pub(crate) stores_result: bool,
    pub(crate) wants_value: bool,
    pub(crate) soft_limit: Option<Duration>,
    pub(crate) hard_limit: Option<Duration>,
}

/// Why an update was not stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoreRefusal {
    kind: String,
    cause: String,
}

impl From<&ServiceError> for StoreRefusal {
    fn from(error: &ServiceError) -> Self {
        Self {
            kind: format!("{:?}", error.kind()),
            cause: error.to_string(),
        }
    }
}

impl StoreRefusal {
    /// The same for the task that asked.
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
            // The cause has one of its own, if there is one.
            .with_remedy("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::ServiceErrorKind;

    #[test]
    fn a_refusal_keeps_its_kind_and_its_words() {
        let error = ServiceError::new(
            ServiceErrorKind::Unreachable,
            "connect to",
            "redis://h",
            "connection refused",
        );
        let refusal = StoreRefusal::from(&error).into_error("id-1");
        assert_eq!(refusal.kind(), ServiceErrorKind::Unreachable);
        assert!(refusal.is_transient());
        assert_eq!(
            refusal.to_string(),
            "cannot store the state of task id-1 by its worker: cannot connect to redis://h: \
             connection refused (is the server running at this address?)"
        );
    }
}
