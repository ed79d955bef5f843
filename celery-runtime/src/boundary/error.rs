//! The error of brokers, result backends and stores: [`ServiceError`].

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// An operation of a broker, result backend or store that failed.
///
/// One type serves all three boundaries, because callers need the same
/// information everywhere: the operation and its object, whether a retry can
/// succeed ([`is_transient`](Self::is_transient)), and whether the operation may
/// have been carried out ([`is_in_doubt`](Self::is_in_doubt)). Errors of the client
/// library appear only as [`source`](StdError::source).
///
/// ```
/// use celery_runtime::{ServiceError, ServiceErrorKind};
///
/// let error = ServiceError::new(
///     ServiceErrorKind::Unreachable,
///     "connect to",
///     "redis://localhost",
///     "connection refused",
/// );
/// assert!(error.is_transient());
/// assert_eq!(
///     error.to_string(),
///     "cannot connect to redis://localhost: connection refused \
///      (is the server running at this address?)"
/// );
/// ```
#[derive(Clone)]
pub struct ServiceError {
    inner: Arc<ErrorInner>,
}

struct ErrorInner {
    kind: ServiceErrorKind,
    operation: &'static str,
    object: String,
    cause: String,
    remedy: &'static str,
    is_in_doubt: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The kind of a [`ServiceError`]; decides whether a retry can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceErrorKind {
    /// No server answers at the address, or the name does not resolve.
    Unreachable,
    /// The connection broke, or the server is loading, failing over or busy.
    Disconnected,
    /// The server did not answer within the configured time.
    TimedOut,
    /// The server refused the request for now, for example because a queue is full.
    Refused,
    /// The server refused the credentials, or permissions are missing.
    Denied,
    /// The request can never succeed: a key of the wrong type, a bad argument.
    Invalid,
    /// The message matches no queue.
    Unroutable,
    /// This service does not offer the operation.
    Unsupported,
    /// The service was closed by this process.
    Closed,
}

impl ServiceError {
    /// An error of `operation` (a verb, such as "publish to") on `object` (a queue,
    /// a key, an address without its password), with the remedy of its kind.
    pub fn new(
        kind: ServiceErrorKind,
        operation: &'static str,
        object: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        Self {
            inner: Arc::new(ErrorInner {
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

    /// An operation without an answer within `deadline`.
    pub fn no_answer(
        operation: &'static str,
        object: impl Into<String>,
        deadline: std::time::Duration,
    ) -> Self {
        let cause = format!("no answer within {deadline:?}");
        Self::new(ServiceErrorKind::TimedOut, operation, object, cause)
    }

    /// An operation without an answer within `deadline`, with the reason that the
    /// broker gave for blocking, if any.
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

    /// Sets the error of the client library as the source.
    #[must_use]
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        let inner = &self.inner;
        Self {
            inner: Arc::new(ErrorInner {
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

    /// Sets the remedy, in the place of that of the error's kind.
    #[must_use]
    pub fn with_remedy(self, remedy: &'static str) -> Self {
        self.map(|inner| ErrorInner { remedy, ..inner })
    }

    /// Marks the request as not carried out: no connection could be made, none was free
    /// in time, or the server has answered that it refuses the request for now.
    #[must_use]
    pub fn not_sent(self) -> Self {
        self.map(|inner| ErrorInner {
            is_in_doubt: false,
            ..inner
        })
    }

    fn map(self, change: impl FnOnce(ErrorInner) -> ErrorInner) -> Self {
        match Arc::try_unwrap(self.inner) {
            Ok(inner) => Self {
                inner: Arc::new(change(inner)),
            },
            Err(shared) => Self { inner: shared },
        }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ServiceErrorKind {
        self.inner.kind
    }

    /// Returns the operation, a verb.
    pub fn operation(&self) -> &'static str {
        self.inner.operation
    }

    /// Returns the object of the operation: a queue, a key, an address.
    pub fn object(&self) -> &str {
        &self.inner.object
    }

    /// Returns whether the same request may succeed later without any change.
    pub fn is_transient(&self) -> bool {
        self.inner.kind.is_transient()
    }

    /// Returns whether the request may have been carried out although it failed: it
    /// was sent, and no answer arrived. This is so for
    /// [`Disconnected`](ServiceErrorKind::Disconnected) and
    /// [`TimedOut`](ServiceErrorKind::TimedOut), unless the request was
    /// [not sent](Self::not_sent). Other errors mean that nothing was carried out.
    pub fn is_in_doubt(&self) -> bool {
        self.inner.is_in_doubt
    }
}

impl ServiceErrorKind {
    /// Returns whether an error of this kind may pass without any change: it is so
    /// for `Unreachable`, `Disconnected`, `TimedOut` and `Refused`.
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
        let ErrorInner {
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
    fn error_text_names_operation_object_cause_and_remedy() {
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
    fn error_source_is_kept_and_not_printed() {
        let error = ServiceError::new(ServiceErrorKind::Invalid, "read", "key", "not a list")
            .with_source(std::io::Error::other("WRONGTYPE"));
        assert_eq!(error.to_string(), "cannot read key: not a list");
        assert_eq!(error.source().expect("a source").to_string(), "WRONGTYPE");
        assert!(!error.is_transient());
    }
}
