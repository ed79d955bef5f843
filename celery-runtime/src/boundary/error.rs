//! What brokers, result backends and stores fail with.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// A broker, result backend or store could not do what it was asked.
///
/// One type serves all three boundaries, because callers ask the same two
/// questions everywhere: what was attempted on what, and is it worth trying
/// again ([`is_transient`](Self::is_transient)). The library underneath shows
/// only as [`source`](StdError::source).
#[derive(Clone)]
pub struct ServiceError {
    inner: Arc<Inner>,
}

struct Inner {
    kind: ServiceErrorKind,
    operation: &'static str,
    object: String,
    cause: String,
    remedy: &'static str,
    is_in_doubt: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Why a service failed; decides whether a retry can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceErrorKind {
    /// Nothing answers at the address, or the name does not resolve.
    Unreachable,
    /// The connection broke, or the server is loading, failing over or busy.
    Disconnected,
    /// No answer within the configured time.
    TimedOut,
    /// The server would not take it now, as when a queue is full.
    Refused,
    /// The server refused the credentials or the permissions do not suffice.
    Denied,
    /// The request itself can never succeed: wrong type of key, bad argument.
    Invalid,
    /// No queue would have received the message.
    Unroutable,
    /// This service does not offer the operation.
    Unsupported,
    /// The service was closed by this process.
    Closed,
}

impl ServiceError {
    /// An error of `operation` (a verb: "publish to") on `object` (a queue, a
    /// key, an address without its password).
    pub fn new(
        kind: ServiceErrorKind,
        operation: &'static str,
        object: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                operation,
                object: object.into(),
                cause: cause.into(),
                remedy: kind.remedy(),
                is_in_doubt: kind.is_in_doubt(),
                source: None,
            }),
        }
    }

    /// Nobody answered within `deadline`.
    pub fn no_answer(
        operation: &'static str,
        object: impl Into<String>,
        deadline: std::time::Duration,
    ) -> Self {
        let cause = format!("no answer within {deadline:?}");
        Self::new(ServiceErrorKind::TimedOut, operation, object, cause)
    }

    /// The same, with what the service said is in its way, if anything.
    pub(crate) fn no_answer_for(
        operation: &'static str,
        object: impl Into<String>,
        deadline: std::time::Duration,
        blocked_reason: Option<String>,
    ) -> Self {
        let Some(blocked_reason) = blocked_reason else {
            return Self::no_answer(operation, object, deadline);
        };
        let cause = format!("no answer within {deadline:?}: {blocked_reason}");
        Self::new(ServiceErrorKind::TimedOut, operation, object, cause)
    }

    /// The same error with the library's own error as its source.
    #[must_use]
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        let inner = &self.inner;
        Self {
            inner: Arc::new(Inner {
                kind: inner.kind,
                operation: inner.operation,
                object: inner.object.clone(),
                cause: inner.cause.clone(),
                remedy: inner.remedy,
                is_in_doubt: inner.is_in_doubt,
                source: Some(Box::new(source)),
            }),
        }
    }

    /// Replaces the remedy of the error's kind.
    #[must_use]
    pub fn with_remedy(self, remedy: &'static str) -> Self {
        self.map(|inner| Inner { remedy, ..inner })
    }

    /// Marks that no byte of the request left this process, so that it cannot
    /// have been carried out: no connection, or none free in time.
    #[must_use]
    pub fn not_sent(self) -> Self {
        self.map(|inner| Inner {
            is_in_doubt: false,
            ..inner
        })
    }

    fn map(self, change: impl FnOnce(Inner) -> Inner) -> Self {
        match Arc::try_unwrap(self.inner) {
            Ok(inner) => Self {
                inner: Arc::new(change(inner)),
            },
            Err(shared) => Self { inner: shared },
        }
    }

    /// Why it failed.
    pub fn kind(&self) -> ServiceErrorKind {
        self.inner.kind
    }

    /// What was attempted, as a verb.
    pub fn operation(&self) -> &'static str {
        self.inner.operation
    }

    /// What it was attempted on: a queue, a key, an address.
    pub fn object(&self) -> &str {
        &self.inner.object
    }

    /// Whether the same request may succeed later without any change.
    pub fn is_transient(&self) -> bool {
        self.inner.kind.is_transient()
    }

    /// Whether the request may have been carried out although it failed: it was
    /// sent, and no answer came. A refused request, or one that was
    /// [not sent](Self::not_sent), was not carried out.
    pub fn is_in_doubt(&self) -> bool {
        self.inner.is_in_doubt
    }
}

impl ServiceErrorKind {
    /// Whether a failure of this kind may pass without any change.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Unreachable | Self::Disconnected | Self::TimedOut | Self::Refused
        )
    }

    fn is_in_doubt(self) -> bool {
        matches!(self, Self::Disconnected | Self::TimedOut)
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Unreachable => "is the server running at this address?",
            Self::Denied => "check user and password in the URL and the server's access rules",
            Self::Unroutable => "declare a queue for it, or correct exchange and routing key",
            _ => "",
        }
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            operation,
            object,
            cause,
            remedy,
            ..
        } = &*self.inner;
        write!(f, "cannot {operation} {object}: {cause}")?;
        if !remedy.is_empty() {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceError")
            .field("kind", &self.inner.kind)
            .field("operation", &self.inner.operation)
            .field("object", &self.inner.object)
            .field("cause", &self.inner.cause)
            .finish_non_exhaustive()
    }
}

impl StdError for ServiceError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_operation_object_cause_and_remedy() {
        let error = ServiceError::new(
            ServiceErrorKind::Unreachable,
            "connect to",
            "redis://localhost:1",
            "connection refused",
        );
        assert_eq!(
            error.to_string(),
            "cannot connect to redis://localhost:1: connection refused \
             (is the server running at this address?)"
        );
        assert!(error.is_transient());
    }

    #[test]
    fn unanswered_request_is_in_doubt_unless_not_sent() {
        let unanswered =
            || ServiceError::no_answer("settle", "deliveries", std::time::Duration::from_secs(5));
        assert!(unanswered().is_in_doubt());
        assert!(!unanswered().not_sent().is_in_doubt());
        let refused = ServiceError::new(ServiceErrorKind::Denied, "settle", "q", "no permission");
        assert!(!refused.is_in_doubt());
    }

    #[test]
    fn the_source_is_kept_but_not_printed_twice() {
        let error = ServiceError::new(ServiceErrorKind::Invalid, "read", "key", "not a list")
            .with_source(std::io::Error::other("WRONGTYPE"));
        assert_eq!(error.to_string(), "cannot read key: not a list");
        assert_eq!(error.source().expect("a source").to_string(), "WRONGTYPE");
        assert!(!error.is_transient());
    }
}
