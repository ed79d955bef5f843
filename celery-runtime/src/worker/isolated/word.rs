//! What a worker and its children say to each other. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use crate::error::{ServiceError, ServiceErrorKind};

/// The version of what follows; a child that speaks another one is refused.
pub(super) const PROTOCOL: u32 = 1;

/// From the worker to a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ToChild {
    /// The answer to [`ToWorker::Hello`].
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
        refusal: Option<Refusal>,
    },
}

/// From a child to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// The first word of all.
    Hello(Hello),
    /// A task was taken in hand.
    Began,
    /// The task will end on its own terms at its soft limit.
    Listens,
    /// Store this state of the running task. Beside it: the document.
    Update { number: u64, id: String },
    /// The task returned. Beside it: the value, where it is wanted.
    Value,
    /// The task ended without a value.
    Fault(Fault),
    /// The task panicked.
    Panic(String),
}

/// Who a child is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    /// See [`build`](super::program::build).
    pub(super) build: String,
}

/// What a child has to know of its worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) hostname: String,
    pub(super) result_serializer: String,
    pub(super) result_extended: bool,
    pub(super) body_limit: usize,
}

/// A task to run, without its message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) task: String,
    pub(super) retries: u32,
    pub(super) redelivered: bool,
    pub(super) stores_result: bool,
    pub(super) wants_value: bool,
    pub(super) soft_limit: Option<Duration>,
    pub(super) hard_limit: Option<Duration>,
}

/// Why an update was not stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Refusal {
    kind: String,
    cause: String,
}

impl From<&ServiceError> for Refusal {
    fn from(error: &ServiceError) -> Self {
        Self {
            kind: format!("{:?}", error.kind()),
            cause: error.to_string(),
        }
    }
}

impl Refusal {
    /// The same for the task that asked.
    pub(super) fn into_error(self, id: &str) -> ServiceError {
        use ServiceErrorKind as Kind;
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

    #[test]
    fn a_refusal_keeps_its_kind_and_its_words() {
        let error = ServiceError::new(
            ServiceErrorKind::Unreachable,
            "connect to",
            "redis://h",
            "connection refused",
        );
        let refusal = Refusal::from(&error).into_error("id-1");
        assert_eq!(refusal.kind(), ServiceErrorKind::Unreachable);
        assert!(refusal.is_transient());
        assert_eq!(
            refusal.to_string(),
            "cannot store the state of task id-1 by its worker: cannot connect to redis://h: \
             connection refused (is the server running at this address?)"
        );
    }
}
