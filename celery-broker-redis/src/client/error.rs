//! Conversion of the library's errors to [`ServiceError`].

use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};
use redis::{ErrorKind, RedisError};

use super::RedisClient;

/// The operation and object of a call, for its errors.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    verb: &'static str,
    object: &'a str,
}

impl<'a> Operation<'a> {
    /// Returns the context of a call: `verb` is a verb phrase ("publish to"),
    /// `object` its object ("queue celery"). Errors add the address.
    pub const fn new(verb: &'static str, object: &'a str) -> Self {
        Self { verb, object }
    }

    /// Returns an error of this call.
    pub fn error(
        &self,
        client: &RedisClient,
        kind: ServiceErrorKind,
        cause: impl Into<String>,
    ) -> ServiceError {
        ServiceError::new(kind, self.verb, self.object_on(client), cause)
    }

    /// Returns the error of a call that got no answer in time.
    pub(super) fn no_answer(&self, client: &RedisClient, limit: Duration) -> ServiceError {
        ServiceError::no_answer(self.verb, self.object_on(client), limit)
    }

    /// Returns the error of a call that failed on an open connection.
    pub(super) fn failed(&self, client: &RedisClient, error: &RedisError) -> ServiceError {
        self.failed_within(client, error, client.options().limits.response)
    }

    /// Returns the error of a call with this time limit that failed on an open
    /// connection.
    pub(super) fn failed_within(
        &self,
        client: &RedisClient,
        error: &RedisError,
        limit: Duration,
    ) -> ServiceError {
        self.classify(client, error, limit, ServiceErrorKind::Disconnected)
    }

    /// Returns the error of a call for which no connection could be opened.
    pub(super) fn unconnected(&self, client: &RedisClient, error: &RedisError) -> ServiceError {
        let limit = client.options().limits.connect;
        self.classify(client, error, limit, ServiceErrorKind::Unreachable)
            .not_sent()
    }

    fn classify(
        &self,
        client: &RedisClient,
        error: &RedisError,
        limit: Duration,
        otherwise: ServiceErrorKind,
    ) -> ServiceError {
        if error.is_timeout() {
            return self.no_answer(client, limit).with_source(error.clone());
        }
        let error = &first(error);
        let text = error.to_string();
        let row = ERROR_CODES
            .iter()
            .find(|row| has_code(error, &text, row.code));
        let (kind, remedy) = match row {
            Some(row) => (row.kind, row.remedy),
            None => (kind_without_code(error, otherwise), ""),
        };
        let failure = self
            .error(client, kind, cause(error, &text))
            .with_source(error.clone());
        let failure = match remedy {
            "" => failure,
            remedy => failure.with_remedy(remedy),
        };
        match error.kind() {
            // The server has refused the command.
            ErrorKind::Server(_) | ErrorKind::Extension => failure.not_sent(),
            _ => failure,
        }
    }

    fn object_on(&self, client: &RedisClient) -> String {
        match self.object {
            "" => client.options().address().to_owned(),
            object => format!("{object} on {}", client.options().address()),
        }
    }
}

/// An error code of the server, with its kind and remedy.
struct ErrorCode {
    code: &'static str,
    kind: ServiceErrorKind,
    /// Empty if the default remedy of the kind applies.
    remedy: &'static str,
}

const fn row(code: &'static str, kind: ServiceErrorKind, remedy: &'static str) -> ErrorCode {
    ErrorCode { code, kind, remedy }
}

const ERROR_CODES: &[ErrorCode] = &[
    row("NOAUTH", ServiceErrorKind::Denied, ""),
    row("WRONGPASS", ServiceErrorKind::Denied, ""),
    row("NOPERM", ServiceErrorKind::Denied, ""),
    row(
        "DENIED",
        ServiceErrorKind::Denied,
        "set a password, or turn off the server's protected mode",
    ),
    row(
        "WRONGTYPE",
        ServiceErrorKind::Invalid,
        "another program uses a key of this name: rename the queue, or set global_keyprefix",
    ),
    row("LOADING", ServiceErrorKind::Disconnected, ""),
    row(
        "READONLY",
        ServiceErrorKind::Disconnected,
        "this server is a replica: is a failover in progress?",
    ),
    row("MASTERDOWN", ServiceErrorKind::Disconnected, ""),
    row("TRYAGAIN", ServiceErrorKind::Disconnected, ""),
    row("CLUSTERDOWN", ServiceErrorKind::Disconnected, ""),
    row(
        "BUSY",
        ServiceErrorKind::Disconnected,
        "a running script blocks the server",
    ),
    row(
        "MISCONF",
        ServiceErrorKind::Disconnected,
        "the server cannot write to its disk",
    ),
    row("NOREPLICAS", ServiceErrorKind::Disconnected, ""),
    row(
        "OOM",
        ServiceErrorKind::Disconnected,
        "the server's memory is full",
    ),
    row(
        "MOVED",
        ServiceErrorKind::Unsupported,
        "Redis Cluster is not supported: queues need one server",
    ),
    row(
        "CROSSSLOT",
        ServiceErrorKind::Unsupported,
        "Redis Cluster is not supported: queues need one server",
    ),
];

/// Returns whether the server answered, so that the connection is still usable.
pub(super) fn is_rejection(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
        // A server with these errors is no longer the right one.
        && !["READONLY", "MASTERDOWN"].iter().any(|code| has_code(error, &error.to_string(), code))
}

/// Returns whether an error has this code. Servers before Redis 7 put the code
/// of a script's failed command into the text.
fn has_code(error: &RedisError, text: &str, code: &str) -> bool {
    match error.code() {
        Some("ERR") | None => text
            .split(|c: char| !c.is_ascii_alphabetic())
            .any(|word| word == code),
        Some(found) => found == code,
    }
}

fn kind_without_code(error: &RedisError, otherwise: ServiceErrorKind) -> ServiceErrorKind {
    match error.kind() {
        ErrorKind::AuthenticationFailed => ServiceErrorKind::Denied,
        ErrorKind::Io | ErrorKind::Parse => otherwise,
        ErrorKind::MasterNameNotFoundBySentinel | ErrorKind::NoValidReplicasFoundBySentinel => {
            ServiceErrorKind::Unreachable
        }
        ErrorKind::RESP3NotSupported => ServiceErrorKind::Unsupported,
        _ => ServiceErrorKind::Invalid,
    }
}

fn cause(error: &RedisError, text: &str) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::AuthenticationFailed, Some(detail)) => detail.to_owned(),
        (ErrorKind::AuthenticationFailed, None) => "the server rejects the password".to_owned(),
        (ErrorKind::Server(_) | ErrorKind::Extension, Some(detail)) => {
            let code = error.code().filter(|code| *code != "ERR");
            code.map_or_else(|| detail.to_owned(), |code| format!("{code} {detail}"))
        }
        (ErrorKind::Io, _) => {
            // The number of the system error adds nothing to its text.
            let words = text.split(" (os error").next().unwrap_or(text);
            words.to_lowercase()
        }
        _ => text.to_owned(),
    }
}

/// Returns the first error of a pipeline.
fn first(error: &RedisError) -> RedisError {
    match error.clone().into_server_errors() {
        Some(errors) => match errors.first() {
            Some((_, first)) => first.clone().into(),
            None => error.clone(),
        },
        None => error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io;

    use redis::make_extension_error;
    use serde_json::Map;

    use super::*;
    use crate::config::RedisOptions;

    fn convert(error: &RedisError) -> ServiceError {
        let options = RedisOptions::parse("redis://:secret@h:1/2", &Map::new()).unwrap();
        Operation::new("publish to", "queue celery").failed(&RedisClient::new(options), error)
    }

    fn code(code: &str, detail: &str) -> RedisError {
        make_extension_error(code.into(), Some(detail.into()))
    }

    #[tokio::test]
    async fn error_text_names_operation_address_cause_and_remedy() {
        let error = convert(&code("WRONGTYPE", "Operation against a key"));
        assert_eq!(error.kind(), ServiceErrorKind::Invalid);
        assert_eq!(
            error.to_string(),
            "cannot publish to queue celery on redis://h:1/2: WRONGTYPE Operation against a key \
             (another program uses a key of this name: rename the queue, or set global_keyprefix)"
        );
        assert!(error.source().is_some());
    }

    #[tokio::test]
    async fn server_code_determines_the_kind() {
        for (name, kind) in [
            ("NOAUTH", ServiceErrorKind::Denied),
            ("WRONGPASS", ServiceErrorKind::Denied),
            ("NOPERM", ServiceErrorKind::Denied),
            ("LOADING", ServiceErrorKind::Disconnected),
            ("READONLY", ServiceErrorKind::Disconnected),
            ("MASTERDOWN", ServiceErrorKind::Disconnected),
            ("WHATEVER", ServiceErrorKind::Invalid),
        ] {
            let error = convert(&code(name, "text"));
            assert_eq!(error.kind(), kind, "{name}");
            assert!(!error.is_in_doubt(), "{name}");
        }
    }

    #[tokio::test]
    async fn code_inside_a_script_error_is_recognized() {
        let text = "Error running script (call to f_1): @user_script:3: WRONGTYPE Operation";
        assert_eq!(
            convert(&code("ERR", text)).kind(),
            ServiceErrorKind::Invalid
        );
        let error = convert(&code(
            "ERR",
            "Error running script: @user_script:3: READONLY You",
        ));
        assert_eq!(error.kind(), ServiceErrorKind::Disconnected);
    }

    #[tokio::test]
    async fn lost_and_silent_connections_have_different_kinds() {
        let lost = convert(&io::Error::from(io::ErrorKind::BrokenPipe).into());
        assert_eq!(lost.kind(), ServiceErrorKind::Disconnected);
        let silent = convert(&io::Error::from(io::ErrorKind::TimedOut).into());
        assert_eq!(silent.kind(), ServiceErrorKind::TimedOut);
        assert!(
            silent.to_string().contains("no answer within 5s"),
            "{silent}"
        );
    }
}
