//! The wire form of [`TaskError`] between processes: [`WireError`]. Pure.
//!
//! Python values are encoded as strings of Celery's JSON, which unlike
//! `serde_json` preserves byte strings and infinities.

use std::time::{Duration, SystemTime};

use celery_protocol::{DecodeError, EncodeError, Exception, Map, Raw, Serializer, Value};
use serde::{Deserialize, Serialize};

use crate::canvas::Canvas;
use crate::execution::{
    Changes, Failure, RemoteFailure, Requeue, Retry, TaskError, TaskErrorKind as Kind, When,
};
use crate::task::AutoRetry;

/// A [`TaskError`] without its source error. What depends on the source's type,
/// as automatic retries do, is determined in the child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum WireError {
    Failed(WireFailure),
    Retry {
        when: Option<WireWhen>,
        max_retries: WireMaxRetries,
        because: Option<WireFailure>,
        changes: Option<WireChanges>,
    },
    Reject {
        requeue: bool,
        reason: String,
    },
    Ignore,
    /// The canvas that replaces the task: a signature in JSON.
    Replace(String),
}

/// The wire form of [`Failure`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WireFailure {
    /// The exception in JSON.
    exception: String,
    traceback: String,
    /// Whether the task's automatic retry applies to the source error.
    autoretried: bool,
}

/// The wire form of [`Changes`]; values are in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WireChanges {
    args: Option<String>,
    kwargs: Option<String>,
    headers: String,
    expires: Option<SystemTime>,
}

/// The wire form of [`When`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum WireWhen {
    After(Duration),
    At(SystemTime),
}

/// The wire form of the limit of retries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum WireMaxRetries {
    /// The limit in the task's options.
    Declared,
    Unlimited,
    Limit(u32),
}

impl WireError {
    /// Converts the error of a task with this automatic retry.
    pub(crate) fn encode(error: TaskError, auto: Option<&AutoRetry>) -> Result<Self, EncodeError> {
        Ok(match error.into_kind() {
            Kind::Failed(failure) => Self::Failed(WireFailure::encode(&failure, auto)?),
            Kind::Retry(retry) => Self::Retry {
                when: retry.when.map(|when| match when {
                    When::After(delay) => WireWhen::After(delay),
                    When::At(time) => WireWhen::At(time),
                }),
                max_retries: match retry.max_retries {
                    None => WireMaxRetries::Declared,
                    Some(None) => WireMaxRetries::Unlimited,
                    Some(Some(limit)) => WireMaxRetries::Limit(limit),
                },
                because: match &retry.because {
                    Some(failure) => Some(WireFailure::encode(failure, auto)?),
                    None => None,
                },
                changes: WireChanges::encode(&retry.changes)?,
            },
            Kind::Reject { requeue, reason } => Self::Reject {
                requeue: requeue == Requeue::Yes,
                reason,
            },
            Kind::Ignore => Self::Ignore,
            Kind::Replace(canvas) => Self::Replace(json(&canvas_to_wire(&canvas)?)?),
            // Only built-in tasks end with this, and they are not isolated.
            Kind::Join(_) => Self::Ignore,
        })
    }

    /// Converts the wire form back.
    pub(crate) fn decode(self) -> Result<TaskError, DecodeError> {
        Ok(TaskError::from_kind(match self {
            Self::Failed(wire) => Kind::Failed(wire.decode()?),
            Self::Retry {
                when,
                max_retries,
                because,
                changes,
            } => Kind::Retry(Retry {
                when: when.map(|due| match due {
                    WireWhen::After(delay) => When::After(delay),
                    WireWhen::At(time) => When::At(time),
                }),
                max_retries: match max_retries {
                    WireMaxRetries::Declared => None,
                    WireMaxRetries::Unlimited => Some(None),
                    WireMaxRetries::Limit(limit) => Some(Some(limit)),
                },
                because: because.map(WireFailure::decode).transpose()?,
                changes: match changes {
                    Some(changed) => changed.decode()?,
                    None => Changes::default(),
                },
            }),
            Self::Reject { requeue, reason } => Kind::Reject {
                requeue: if requeue { Requeue::Yes } else { Requeue::No },
                reason,
            },
            Self::Ignore => Kind::Ignore,
            Self::Replace(canvas) => {
                let canvas = Canvas::read(&Raw::json(&canvas));
                let canvas = canvas.map_err(|error| DecodeError::new(error.to_string()))?;
                Kind::Replace(Box::new(canvas))
            }
        }))
    }
}

impl WireFailure {
    fn encode(failure: &Failure, auto: Option<&AutoRetry>) -> Result<Self, EncodeError> {
        Ok(Self {
            exception: json(&failure.exception)?,
            traceback: failure.traceback(),
            autoretried: auto.is_some_and(|auto| failure.is_retried_by(auto)),
        })
    }

    fn decode(self) -> Result<Failure, DecodeError> {
        Ok(Failure {
            exception: Exception::read(&Raw::json(&self.exception))?,
            source: None,
            remote: Some(RemoteFailure {
                traceback: self.traceback,
                autoretried: self.autoretried,
            }),
        })
    }
}

impl WireChanges {
    /// Returns `None` if nothing is changed.
    fn encode(changes: &Changes) -> Result<Option<Self>, EncodeError> {
        if changes.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            args: changes.args.as_ref().map(json).transpose()?,
            kwargs: changes.kwargs.as_ref().map(json).transpose()?,
            headers: json(&changes.headers)?,
            expires: changes.expires,
        }))
    }

    fn decode(self) -> Result<Changes, DecodeError> {
        let array = |text: String| Raw::json(&text).decode::<Vec<Value>>();
        let map = |text: String| Raw::json(&text).decode::<Map>();
        Ok(Changes {
            args: self.args.map(array).transpose()?,
            kwargs: self.kwargs.map(map).transpose()?,
            headers: map(self.headers)?,
            expires: self.expires,
        })
    }
}

fn canvas_to_wire(canvas: &Canvas) -> Result<Raw<'static>, EncodeError> {
    let wire = canvas.to_wire();
    wire.map_err(|error| EncodeError::new(error.to_string()))
}

fn json<T: Serialize>(value: &T) -> Result<String, EncodeError> {
    let raw = Raw::encode(Serializer::Json, value)?;
    Ok(raw.as_json().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use celery_protocol::Value;

    use super::*;

    fn round_trip(error: TaskError, auto: Option<AutoRetry>) -> Kind {
        let wire = WireError::encode(error, auto.as_ref()).unwrap();
        let bytes = serde_json::to_vec(&wire).unwrap();
        let wire: WireError = serde_json::from_slice(&bytes).unwrap();
        wire.decode().unwrap().into_kind()
    }

    #[test]
    fn failure_keeps_exception_and_traceback() {
        let arguments = [Value::Bytes(vec![0, 255]), Value::Float(f64::INFINITY)];
        let exception = Exception::new("m", "E", "").with_args(arguments);
        let Kind::Failed(failure) = round_trip(TaskError::failed(exception.clone()), None) else {
            panic!("not a failure")
        };
        assert_eq!(failure.exception, exception);
        assert_eq!(failure.traceback(), format!("{exception}\n"));
    }

    #[test]
    fn automatic_retry_is_decided_by_the_source_type() {
        let auto = AutoRetry::on::<std::num::ParseIntError>();
        let parse = || TaskError::from("x".parse::<i64>().unwrap_err());
        let io = || TaskError::from(std::io::Error::other("x"));
        for (error, auto_retry, expected) in [
            (parse(), Some(auto), true),
            (io(), Some(auto), false),
            (parse(), None, false),
        ] {
            let Kind::Failed(failure) = round_trip(error, auto_retry) else {
                panic!("not a failure")
            };
            assert_eq!(failure.is_retried_by(&auto), expected);
        }
    }

    #[test]
    fn retry_and_reject_keep_their_fields() {
        let retry = TaskError::retry()
            .after(Duration::from_secs(5))
            .at_most(7)
            .because(std::io::Error::other("busy"));
        let Kind::Retry(retry) = round_trip(retry, None) else {
            panic!("not a retry")
        };
        assert!(matches!(retry.when, Some(When::After(delay)) if delay.as_secs() == 5));
        assert_eq!(retry.max_retries, Some(Some(7)));
        let because = retry.because.unwrap();
        assert_eq!(because.exception.exc_message, [Value::from("busy")]);

        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
        let Kind::Retry(retry) = round_trip(TaskError::retry().at(time), None) else {
            panic!("not a retry")
        };
        assert!(matches!(retry.when, Some(When::At(at)) if at == time));
        assert_eq!(retry.max_retries, None);

        let changed = TaskError::retry()
            .args([Value::Bytes(vec![255])])
            .kwargs([("x", 1)])
            .header("h", 2)
            .expires_at(time);
        let Kind::Retry(expected) = changed.into_kind() else {
            panic!("not a retry")
        };
        let changes = expected.changes.clone();
        let Kind::Retry(retry) = round_trip(TaskError::from_kind(Kind::Retry(expected)), None)
        else {
            panic!("not a retry")
        };
        assert_eq!(retry.changes, changes);

        let rejected = round_trip(TaskError::reject("no", Requeue::Yes), None);
        assert!(matches!(
            rejected,
            Kind::Reject { requeue: Requeue::Yes, reason } if reason == "no"
        ));
        assert!(matches!(
            round_trip(TaskError::ignore(), None),
            Kind::Ignore
        ));
    }
}
