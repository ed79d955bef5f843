//! Conversion of lapin's and RabbitMQ's errors to the runtime's `ServiceError`.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};
use lapin::ErrorKind;

/// The operation that an error belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorContext<'a> {
    operation: &'static str,
    object: &'a str,
    /// The URLs of the server, without their passwords.
    address: &'a str,
}

impl<'a> ErrorContext<'a> {
    pub(crate) fn new(operation: &'static str, object: &'a str, address: &'a str) -> Self {
        Self {
            operation,
            object,
            address,
        }
    }

    /// Returns an error of this operation.
    pub(crate) fn error(self, kind: ServiceErrorKind, cause: impl Into<String>) -> ServiceError {
        let Self {
            operation,
            object,
            address,
        } = self;
        let target = match object {
            "" => address.to_owned(),
            object => format!("{object} on {address}"),
        };
        ServiceError::new(kind, operation, target, cause)
    }

    /// Converts an error of lapin.
    pub(crate) fn wrap(self, error: lapin::Error) -> ServiceError {
        let cause = classify(&error).1;
        self.wrap_with_cause(&cause, error)
    }

    /// Converts an error of lapin and replaces the server's text by `cause`.
    pub(crate) fn wrap_with_cause(self, cause: &str, error: lapin::Error) -> ServiceError {
        let (kind, text) = classify(&error);
        let converted = self.error(kind, cause).with_source(error);
        match remedy(&text) {
            Some(remedy) => converted.with_remedy(remedy),
            None => converted,
        }
    }

    /// Converts an error of establishing a connection. Nothing was sent on it, so
    /// a transient failure means that the server was unreachable.
    pub(crate) fn connect_error(self, error: lapin::Error) -> ServiceError {
        let (kind, cause) = classify(&error);
        if !kind.is_transient() {
            return self.wrap(error);
        }
        self.error(ServiceErrorKind::Unreachable, cause)
            .with_source(error)
    }
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
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Returns the kind of the error and its text.
fn classify(error: &lapin::Error) -> (ServiceErrorKind, String) {
    match error.kind() {
        ErrorKind::ProtocolError(error) => {
            let text = error.get_message().as_str().to_owned();
            (reply_code_kind(error.get_id(), &text), text)
        }
        ErrorKind::IOError(error) => (io_error_kind(error), io_error_text(error)),
        ErrorKind::InvalidChannel(_)
        | ErrorKind::InvalidChannelState(..)
        | ErrorKind::InvalidConnectionState(_) => (
            ServiceErrorKind::Disconnected,
            "the connection is closed".to_owned(),
        ),
        ErrorKind::MissingHeartbeatError => (
            ServiceErrorKind::Disconnected,
            "the server sent no heartbeats".to_owned(),
        ),
        _ => (ServiceErrorKind::Disconnected, error.to_string()),
    }
}

/// Maps AMQP's reply codes. A server that closes for a reason of its own may be
/// available again soon; a request that it rejects will be rejected again.
fn reply_code_kind(code: u16, text: &str) -> ServiceErrorKind {
    match code {
        403 => ServiceErrorKind::Denied,
        // The consumer_timeout of RabbitMQ passed, see `REMEDIES`.
        406 if text.contains(ACK_TIMEOUT) => ServiceErrorKind::Disconnected,
        // The queue may be locked by a lost connection of this client that the
        // server has not detected yet.
        405 if text.contains(LOCKED) => ServiceErrorKind::Disconnected,
        402 | 404..=406 | 530 => ServiceErrorKind::Invalid,
        540 => ServiceErrorKind::Unsupported,
        _ => ServiceErrorKind::Disconnected,
    }
}

/// Part of RabbitMQ's text when its consumer_timeout has passed.
const ACK_TIMEOUT: &str = "delivery acknowledgement on channel";

/// Part of RabbitMQ's text when another connection owns an exclusive queue.
const LOCKED: &str = "exclusive access to locked queue";

/// The remedies, by a part of the server's text.
const REMEDIES: [(&str, &str); 5] = [
    (
        LOCKED,
        "another connection consumes this mailbox: RabbitMQ releases it when it detects that a \
         lost connection is dead; if the error persists, another worker runs under this name",
    ),
    (
        ACK_TIMEOUT,
        "a task ran for longer than RabbitMQ's consumer_timeout before it was acknowledged: raise \
         consumer_timeout, or do not acknowledge this task late",
    ),
    (
        "inequivalent arg",
        "make the settings agree (task_queues, task_queue_max_priority, task_default_queue_type), \
         or delete the existing queue or exchange",
    ),
    (
        "NOT_ALLOWED - ",
        "check the virtual host in the URL; `rabbitmqctl add_vhost` creates one",
    ),
    (
        "peer certificate",
        "set ca_certs to the certificate of its authority (in a URL: cacertfile), and \
         server_hostname to the name in the certificate (server_name_indication)",
    ),
];

fn remedy(cause: &str) -> Option<&'static str> {
    REMEDIES
        .iter()
        .find(|(pattern, _)| cause.contains(pattern))
        .map(|(_, remedy)| *remedy)
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
    use super::*;

    #[test]
    fn rejected_request_is_permanent_and_lost_connection_is_transient() {
        for (code, kind) in [
            (403, ServiceErrorKind::Denied),
            (405, ServiceErrorKind::Invalid),
            (404, ServiceErrorKind::Invalid),
            (406, ServiceErrorKind::Invalid),
            (530, ServiceErrorKind::Invalid),
            (540, ServiceErrorKind::Unsupported),
            (320, ServiceErrorKind::Disconnected),
            (541, ServiceErrorKind::Disconnected),
        ] {
            assert_eq!(reply_code_kind(code, ""), kind, "{code}");
        }
        let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out";
        assert_eq!(reply_code_kind(406, text), ServiceErrorKind::Disconnected);
        assert!(remedy(text).unwrap().contains("consumer_timeout"));
        let text = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'";
        assert_eq!(reply_code_kind(405, text), ServiceErrorKind::Disconnected);
    }

    #[test]
    fn error_names_operation_object_and_server() {
        let context = ErrorContext::new("declare", "queue q", "amqp://h:1//");
        let error = context.wrap(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        assert_eq!(
            error.to_string(),
            "cannot declare queue q on amqp://h:1//: connection refused \
             (is the server running at this address?)"
        );
    }
}
