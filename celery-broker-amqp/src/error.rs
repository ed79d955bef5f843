//! Conversion of lapin's and RabbitMQ's errors to the runtime's `ServiceError`.

mod refusals;

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};
use lapin::ErrorKind;

pub(crate) use refusals::RefusedMessage;

/// The operation that an error belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorContext<'a> {
    operation: &'static str,
    object: &'a str,
    /// The URLs of the server, without their passwords.
    address: &'a str,
    /// The client has connected, or declared the object, before.
    connected: bool,
}

impl<'a> ErrorContext<'a> {
    pub(crate) fn new(operation: &'static str, object: &'a str, address: &'a str) -> Self {
        Self {
            operation,
            object,
            address,
            connected: false,
        }
    }

    /// Makes the errors of missing virtual hosts, queues and exchanges transient: the
    /// client has connected, or declared the object, before, so that the object may
    /// exist again soon.
    pub(crate) fn after_connect(self) -> Self {
        Self {
            connected: true,
            ..self
        }
    }

    /// Returns an error of this operation.
    pub(crate) fn error(self, kind: ServiceErrorKind, cause: impl Into<String>) -> ServiceError {
        let Self {
            operation,
            object,
            address,
            ..
        } = self;
        let target = match object {
            "" => address.to_owned(),
            object => format!("{object} on {address}"),
        };
        ServiceError::new(kind, operation, target, cause)
    }

    /// Converts an error of lapin.
    pub(crate) fn wrap(self, error: lapin::Error) -> ServiceError {
        let mut failure = self.classify(&error);
        // The connection existed, so that the request may have been sent.
        if failure.kind == ServiceErrorKind::Unreachable {
            failure.kind = ServiceErrorKind::Disconnected;
        }
        self.failed(failure, error)
    }

    /// Converts an error of lapin and replaces the server's text by `cause`.
    pub(crate) fn wrap_with_cause(self, cause: &str, error: lapin::Error) -> ServiceError {
        let failure = Failure {
            cause: cause.to_owned(),
            ..self.classify(&error)
        };
        self.failed(failure, error)
    }

    /// Converts an error of establishing a connection. Nothing was sent on it, so
    /// a transient failure means that the server was unreachable.
    pub(crate) fn connect_error(self, error: lapin::Error) -> ServiceError {
        let mut failure = self.classify(&error);
        if failure.kind.is_transient() {
            failure.kind = ServiceErrorKind::Unreachable;
        }
        self.failed(failure, error)
    }

    fn failed(self, failure: Failure, source: lapin::Error) -> ServiceError {
        let error = self.error(failure.kind, failure.cause).with_source(source);
        match failure.remedy {
            "" => error,
            remedy => error.with_remedy(remedy),
        }
    }

    fn classify(self, error: &lapin::Error) -> Failure {
        let disconnected = |cause: &str| Failure {
            kind: ServiceErrorKind::Disconnected,
            cause: cause.to_owned(),
            remedy: "",
        };
        match error.kind() {
            ErrorKind::ProtocolError(error) => {
                let text = error.get_message().as_str();
                let refusal = refusals::find(error.get_id(), text, self.connected);
                Failure {
                    kind: refusal.kind,
                    cause: text.to_owned(),
                    remedy: refusal.remedy,
                }
            }
            ErrorKind::IOError(error) => Failure {
                kind: io_error_kind(error),
                cause: io_error_text(error),
                remedy: io_error_remedy(error),
            },
            ErrorKind::InvalidChannel(_)
            | ErrorKind::InvalidChannelState(..)
            | ErrorKind::InvalidConnectionState(_) => disconnected("the connection is closed"),
            ErrorKind::MissingHeartbeatError => disconnected("the server sent no heartbeats"),
            _ => disconnected(&error.to_string()),
        }
    }
}

/// What an error of lapin means.
struct Failure {
    kind: ServiceErrorKind,
    cause: String,
    /// Empty for the remedy of the kind.
    remedy: &'static str,
}

/// Waits for a response until `limit` has passed.
pub(crate) async fn with_timeout<T>(
    limit: Duration,
    response: impl Future<Output = lapin::Result<T>>,
) -> lapin::Result<T> {
    match tokio::time::timeout(limit, response).await {
        Ok(response) => response,
        Err(_) => {
            let cause = format!("no response within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, cause).into())
        }
    }
}

/// Reports whether the error is a timeout.
pub(crate) fn is_timeout(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::IOError(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Returns the reply code that the server closed a channel or connection with.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    refusal_text(error).map(|(code, _)| code)
}

/// Reports whether the server refused a request because the exchange does not exist.
pub(crate) fn is_missing_exchange(error: &lapin::Error) -> bool {
    refusal_text(error).is_some_and(|(code, text)| refusals::is_missing_exchange(code, text))
}

/// Returns the messages that the server closed a channel because of, if its text tells.
pub(crate) fn refused_message(error: &lapin::Error) -> Option<RefusedMessage<'_>> {
    refusals::refused_message(refusal_text(error)?.1)
}

/// Reports whether the server refused a request because the queue or exchange does not
/// exist. A queue whose node is down exists.
pub(crate) fn is_missing(error: &lapin::Error) -> bool {
    refusal_text(error).is_some_and(|(code, text)| refusals::is_missing(code, text))
}

/// Returns the cause for the error of a declaration that differs from the existing
/// object, for example `it exists with x-max-priority 10, and not none`.
pub(crate) fn inequivalent_argument(error: &lapin::Error) -> Option<String> {
    refusals::inequivalent_argument(refusal_text(error)?.1)
}

/// Returns the reply code and the text that the server closed a channel or connection
/// with.
fn refusal_text(error: &lapin::Error) -> Option<(u16, &str)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().as_str())),
        _ => None,
    }
}

fn io_error_kind(error: &io::Error) -> ServiceErrorKind {
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NotFound
        | io::ErrorKind::AddrNotAvailable => ServiceErrorKind::Unreachable,
        io::ErrorKind::TimedOut => ServiceErrorKind::TimedOut,
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => ServiceErrorKind::Invalid,
        _ => ServiceErrorKind::Disconnected,
    }
}

fn io_error_remedy(error: &io::Error) -> &'static str {
    if io_error_text(error).contains("peer certificate") {
        "set ca_certs to the certificate of its authority (in a URL: cacertfile), and \
         server_hostname to the name in the certificate (server_name_indication)"
    } else {
        ""
    }
}

/// Returns the text of the innermost error, which is the most specific one.
fn io_error_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => return "connection refused".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionAborted => {
            return "the server closed the connection".to_owned();
        }
        _ => {}
    }
    let mut innermost: &(dyn StdError + 'static) = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPErrorKind};

    use super::*;

    fn refused(code: u16, text: &str) -> lapin::Error {
        let kind = AMQPErrorKind::from_id(code).expect("a reply code");
        ErrorKind::ProtocolError(AMQPError::new(kind, text.into())).into()
    }

    #[test]
    fn refused_connection_is_unreachable_with_the_remedy_of_the_refusal() {
        let context = ErrorContext::new("connect to", "", "amqp://h:1/v");
        let text = "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (1) is \
                    reached";
        let error = context.connect_error(refused(530, text));
        assert_eq!(error.kind(), ServiceErrorKind::Unreachable);
        assert!(error.to_string().contains("set_vhost_limits"), "{error}");
    }

    #[test]
    fn missing_object_is_permanent_at_first_and_transient_after_connect() {
        let context = ErrorContext::new("consume", "queue q", "amqp://h:1/v");
        for (code, text) in [
            (530, "NOT_ALLOWED - vhost v not found"),
            (404, "NOT_FOUND - no queue 'q' in vhost 'v'"),
        ] {
            let first = context.wrap(refused(code, text));
            assert_eq!(first.kind(), ServiceErrorKind::Invalid);
            assert_eq!(
                context.connect_error(refused(code, text)).kind(),
                first.kind()
            );
            let later = context.after_connect();
            assert_eq!(
                later.wrap(refused(code, text)).kind(),
                ServiceErrorKind::Disconnected
            );
            assert_eq!(
                later.connect_error(refused(code, text)).kind(),
                ServiceErrorKind::Unreachable
            );
        }
    }

    #[test]
    fn replaced_cause_keeps_kind_and_remedy() {
        let context = ErrorContext::new("declare", "queue q", "amqp://h:1/v");
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost 'v': \
                    received 'true' but current is 'false'";
        let cause = inequivalent_argument(&refused(406, text)).unwrap();
        let error = context.wrap_with_cause(&cause, refused(406, text));
        assert_eq!(error.kind(), ServiceErrorKind::Invalid);
        let shown = error.to_string();
        assert!(shown.contains("durable false, and not true"), "{shown}");
        assert!(shown.contains("task_default_queue_type"), "{shown}");
    }

    #[test]
    fn missing_objects_are_recognized_by_code_and_text() {
        let exchange = refused(404, "NOT_FOUND - no exchange 'x' in vhost 'v'");
        assert!(is_missing_exchange(&exchange) && is_missing(&exchange));
        let expected = RefusedMessage::OfExchange("x");
        assert_eq!(refused_message(&exchange), Some(expected));
        let queue = refused(404, "NOT_FOUND - no queue 'q' in vhost 'v'");
        assert!(!is_missing_exchange(&queue) && is_missing(&queue));
        assert!(!is_missing(
            &io::Error::from(io::ErrorKind::NotFound).into()
        ));
        assert_eq!(reply_code(&queue), Some(404));
    }

    #[test]
    fn error_names_operation_object_and_server() {
        let context = ErrorContext::new("declare", "queue q", "amqp://h:1//");
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused).into();
        let error = context.connect_error(refused());
        assert_eq!(
            error.to_string(),
            "cannot declare queue q on amqp://h:1//: connection refused \
             (is the server running at this address?)"
        );
        // On an established connection, the request may have been sent.
        assert!(context.wrap(refused()).is_in_doubt());
    }
}
