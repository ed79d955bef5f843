//! What lapin and RabbitMQ fail with, in the words of the runtime.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};
use lapin::ErrorKind;

/// Something that is attempted on the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorContext<'a> {
    operation: &'static str,
    object: &'a str,
    /// The server, without its password.
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

    /// The error of this context.
    pub(crate) fn error(self, kind: ServiceErrorKind, cause: impl Into<String>) -> ServiceError {
        let Self {
            operation,
            object,
            address,
        } = self;
        let place = match object {
            "" => address.to_owned(),
            object => format!("{object} on {address}"),
        };
        ServiceError::new(kind, operation, place, cause)
    }

    /// What lapin says, as an error of this context.
    pub(crate) fn wrap(self, error: lapin::Error) -> ServiceError {
        let cause = classify(&error).1;
        self.wrap_with_cause(&cause, error)
    }

    /// What the server says, explained in our own words.
    pub(crate) fn wrap_with_cause(self, cause: &str, error: lapin::Error) -> ServiceError {
        let (kind, text) = classify(&error);
        let own = self.error(kind, cause).with_source(error);
        match remedy(&text) {
            Some(remedy) => own.with_remedy(remedy),
            None => own,
        }
    }

    /// What lapin says about a connection that was to be made. Nothing was
    /// sent on it yet, so whatever passes may be tried again at once.
    pub(crate) fn connect_error(self, error: lapin::Error) -> ServiceError {
        let (kind, cause) = classify(&error);
        if !kind.is_transient() {
            return self.wrap(error);
        }
        self.error(ServiceErrorKind::Unreachable, cause)
            .with_source(error)
    }
}

/// Waits for an answer, which has to come within `limit`.
pub(crate) async fn with_timeout<T>(
    limit: Duration,
    answer: impl Future<Output = lapin::Result<T>>,
) -> lapin::Result<T> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let silence = format!("no answer within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, silence).into())
        }
    }
}

/// Whether an answer did not come.
pub(crate) fn is_timeout(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::IOError(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// The number that the server closed a channel or connection with.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

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
            "the server is silent, its heartbeats do not come".to_owned(),
        ),
        _ => (ServiceErrorKind::Disconnected, error.to_string()),
    }
}

/// AMQP's reply codes. Where the server closes for a reason of its own, it may
/// be back soon; where it refuses what was asked, it will do so again.
fn reply_code_kind(code: u16, text: &str) -> ServiceErrorKind {
    match code {
        403 => ServiceErrorKind::Denied,
        // The server gave up on an acknowledgement, see `REMEDIES`.
        406 if text.contains(ACK_TIMEOUT) => ServiceErrorKind::Disconnected,
        // Whoever holds it may be a connection of ours that the server has not
        // missed yet.
        405 if text.contains(LOCKED) => ServiceErrorKind::Disconnected,
        402 | 404..=406 | 530 => ServiceErrorKind::Invalid,
        540 => ServiceErrorKind::Unsupported,
        _ => ServiceErrorKind::Disconnected,
    }
}

const ACK_TIMEOUT: &str = "delivery acknowledgement on channel";

const LOCKED: &str = "exclusive access to locked queue";

/// What helps, by what the server says.
const REMEDIES: [(&str, &str); 5] = [
    (
        LOCKED,
        "another connection reads this mailbox: it goes when RabbitMQ misses that connection; if it \
         does not, another worker runs under this name",
    ),
    (
        ACK_TIMEOUT,
        "a task ran for longer than RabbitMQ's consumer_timeout before it was acknowledged: raise \
         that, or do not acknowledge this task late",
    ),
    (
        "inequivalent arg",
        "make the settings agree (task_queues, task_queue_max_priority, task_default_queue_type), \
         or delete what exists",
    ),
    (
        "NOT_ALLOWED - ",
        "check the virtual host in the URL; `rabbitmqctl add_vhost` makes one",
    ),
    (
        "peer certificate",
        "name its authority by ca_certs (in a URL: cacertfile), and the name that is in it by \
         server_hostname (server_name_indication)",
    ),
];

fn remedy(cause: &str) -> Option<&'static str> {
    REMEDIES
        .iter()
        .find(|(sign, _)| cause.contains(sign))
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

/// The text of the innermost error, which is the one that says something.
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
    fn what_the_server_refuses_is_final_and_what_it_lost_is_not() {
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
    fn the_attempt_names_object_and_server() {
        let context = ErrorContext::new("declare", "queue q", "amqp://h:1//");
        let error = context.wrap(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        assert_eq!(
            error.to_string(),
            "cannot declare queue q on amqp://h:1//: connection refused \
             (is the server running at this address?)"
        );
    }
}
