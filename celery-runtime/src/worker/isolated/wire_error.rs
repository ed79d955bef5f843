//! How a task that did not return is told across processes. Pure.

use std::time::{Duration, SystemTime};

use celery_protocol::{DecodeError, EncodeError, Exception, Map, Raw, Serializer, Value};
use serde::{Deserialize, Serialize};

use crate::canvas::Canvas;
use crate::execution::{
    Changes, Failure, RemoteFailure, Requeue, Retry, TaskError, TaskErrorKind as Kind, When,
};
use crate::task::AutoRetry;

/// A [`TaskError`] without the error behind it: what that decides is decided
/// where it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum WireError {
    Failed(WireTold),
    Retry {
        when: Option<Due>,
        most: Most,
        because: Option<WireTold>,
        changes: Option<Changed>,
    },
    Reject {
        requeue: bool,
        reason: String,
    },
    Ignore,
    /// The canvas that takes the task's place, a signature in JSON.
    Replace(String),
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WireTold {
    /// In JSON.
    exception: String,
    traceback: String,
    autoretried: bool,
}

/// In what the message of a retry is another one, values in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Changed {
    args: Option<String>,
    kwargs: Option<String>,
    headers: String,
    expires: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Due {
    After(Duration),
    At(SystemTime),
}

/// How many retries there are at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Most {
    AsDeclared,
    Endless,
    Times(u32),
}

impl WireError {
    /// What is told of an error of a task that has this automatic retry.
    pub(crate) fn tell(error: TaskError, auto: Option<&AutoRetry>) -> Result<Self, EncodeError> {
        Ok(match error.into_kind() {
            Kind::Failed(failure) => Self::Failed(WireTold::tell(&failure, auto)?),
            Kind::Retry(retry) => Self::Retry {
                when: retry.when.map(|when| match when {
                    When::After(delay) => Due::After(delay),
                    When::At(time) => Due::At(time),
                }),
                most: match retry.max_retries {
                    None => Most::AsDeclared,
                    Some(None) => Most::Endless,
                    Some(Some(times)) => Most::Times(times),
                },
                because: match &retry.because {
                    Some(failure) => Some(WireTold::tell(failure, auto)?),
                    None => None,
                },
                changes: Changed::tell(&retry.changes)?,
            },
            Kind::Reject { requeue, reason } => Self::Reject {
                requeue: requeue == Requeue::Yes,
                reason,
            },
            Kind::Ignore => Self::Ignore,
            Kind::Replace(canvas) => Self::Replace(json(&canvas_to_wire(&canvas)?)?),
            // What the worker's own tasks end with, and these are not isolated.
            Kind::Join(_) => Self::Ignore,
        })
    }

    /// The error that was told.
    pub(crate) fn understand(self) -> Result<TaskError, DecodeError> {
        Ok(TaskError::from_kind(match self {
            Self::Failed(told) => Kind::Failed(told.understand()?),
            Self::Retry {
                when,
                most,
                because,
                changes,
            } => Kind::Retry(Retry {
                when: when.map(|due| match due {
                    Due::After(delay) => When::After(delay),
                    Due::At(time) => When::At(time),
                }),
                max_retries: match most {
                    Most::AsDeclared => None,
                    Most::Endless => Some(None),
                    Most::Times(times) => Some(Some(times)),
                },
                because: because.map(WireTold::understand).transpose()?,
                changes: match changes {
                    Some(changed) => changed.understand()?,
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

impl WireTold {
    fn tell(failure: &Failure, auto: Option<&AutoRetry>) -> Result<Self, EncodeError> {
        Ok(Self {
            exception: json(&failure.exception)?,
            traceback: failure.traceback(),
            autoretried: auto.is_some_and(|auto| failure.is_retried_by(auto)),
        })
    }

    fn understand(self) -> Result<Failure, DecodeError> {
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

impl Changed {
    /// Nothing where nothing is different.
    fn tell(changes: &Changes) -> Result<Option<Self>, EncodeError> {
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

    fn understand(self) -> Result<Changes, DecodeError> {
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

    fn cross(error: TaskError, auto: Option<AutoRetry>) -> Kind {
        let told = WireError::tell(error, auto.as_ref()).unwrap();
        let bytes = serde_json::to_vec(&told).unwrap();
        let told: WireError = serde_json::from_slice(&bytes).unwrap();
        told.understand().unwrap().into_kind()
    }

    #[test]
    fn a_failure_keeps_what_python_sees_of_it() {
        let arguments = [Value::Bytes(vec![0, 255]), Value::Float(f64::INFINITY)];
        let exception = Exception::new("m", "E", "").with_args(arguments);
        let Kind::Failed(failure) = cross(TaskError::failed(exception.clone()), None) else {
            panic!("not a failure")
        };
        assert_eq!(failure.exception, exception);
        assert_eq!(failure.traceback(), format!("{exception}\n"));
    }

    #[test]
    fn the_type_behind_a_failure_decides_where_it_is() {
        let auto = AutoRetry::on::<std::num::ParseIntError>();
        let parse = || TaskError::from("x".parse::<i64>().unwrap_err());
        let io = || TaskError::from(std::io::Error::other("x"));
        for (error, told, expected) in [
            (parse(), Some(auto), true),
            (io(), Some(auto), false),
            (parse(), None, false),
        ] {
            let Kind::Failed(failure) = cross(error, told) else {
                panic!("not a failure")
            };
            assert_eq!(failure.is_retried_by(&auto), expected);
        }
    }

    #[test]
    fn retries_and_refusals_cross() {
        let retry = TaskError::retry()
            .after(Duration::from_secs(5))
            .at_most(7)
            .because(std::io::Error::other("busy"));
        let Kind::Retry(retry) = cross(retry, None) else {
            panic!("not a retry")
        };
        assert!(matches!(retry.when, Some(When::After(delay)) if delay.as_secs() == 5));
        assert_eq!(retry.max_retries, Some(Some(7)));
        let because = retry.because.unwrap();
        assert_eq!(because.exception.exc_message, [Value::from("busy")]);

        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
        let Kind::Retry(retry) = cross(TaskError::retry().at(time), None) else {
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
        let Kind::Retry(retry) = cross(TaskError::from_kind(Kind::Retry(expected)), None) else {
            panic!("not a retry")
        };
        assert_eq!(retry.changes, changes);

        let rejected = cross(TaskError::reject("no", Requeue::Yes), None);
        assert!(matches!(
            rejected,
            Kind::Reject { requeue: Requeue::Yes, reason } if reason == "no"
        ));
        assert!(matches!(cross(TaskError::ignore(), None), Kind::Ignore));
    }
}
