//! Tasks of which there is one at a time: [`Unique`].

use std::time::Duration;

use celery_protocol::{DecodeError, Map, Payload, Serializer, Value};
use uuid::Uuid;

use crate::task::params::Params;

/// One at a time, across all workers that share a [`Store`](crate::boundary::Store).
///
/// ```
/// use std::time::Duration;
/// use celery_runtime::{Task, Unique};
///
/// // One import of each file at a time; a second one waits for its turn.
/// const IMPORT: Task<(String, bool), ()> = Task::new("tasks.import_file")
///     .params(&["path", "force=false"])
///     .unique(Unique::by(&["path"]).or_wait());
/// // One mail for each day, however often it is asked for.
/// const DIGEST: Task<(), ()> = Task::new("tasks.digest")
///     .unique(Unique::task().for_period(Duration::from_secs(86_400)).or_drop());
/// # let _ = (IMPORT, DIGEST);
/// ```
///
/// The worker takes a lock before the task starts, so that tasks count that
/// Python sent. The lock is leased: it is renewed while the task runs, and is
/// free again when its worker has been dead for as long as the lease. Where a
/// worker is away from the store for longer than that, two may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unique {
    scope: Scope,
    pub(crate) span: Span,
    pub(crate) conflict: Conflict,
    pub(crate) lease: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Task,
    Arguments,
    Parameters(&'static [&'static str]),
}

/// From when to when there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    Running,
    /// From being sent to its end, but no longer than this.
    Queued(Duration),
    Period(Duration),
}

/// What becomes of the second one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    Wait,
    Drop,
    Fail,
}

impl Unique {
    /// One of the task, whatever its arguments.
    pub const fn task() -> Self {
        Self {
            scope: Scope::Task,
            span: Span::Running,
            conflict: Conflict::Wait,
            lease: Duration::from_secs(30),
        }
    }

    /// One for each set of arguments. Whether they were given by position, by
    /// name or by default makes no difference.
    pub const fn arguments() -> Self {
        Self {
            scope: Scope::Arguments,
            ..Self::task()
        }
    }

    /// One for each value of these parameters.
    pub const fn by(parameters: &'static [&'static str]) -> Self {
        Self {
            scope: Scope::Parameters(parameters),
            ..Self::task()
        }
    }

    /// While it runs, which is the default.
    #[must_use]
    pub const fn while_running(self) -> Self {
        Self {
            span: Span::Running,
            ..self
        }
    }

    /// From being sent by our client (or, when Python sent it, from being taken
    /// by a worker) until it has ended, and no longer than `most`, for a message
    /// may be deleted from its queue by hand.
    #[must_use]
    pub const fn while_queued(self, most: Duration) -> Self {
        Self {
            span: Span::Queued(most),
            ..self
        }
    }

    /// For this time from being sent by our client (or, when Python sent it,
    /// from its start), also after it has ended.
    #[must_use]
    pub const fn for_period(self, period: Duration) -> Self {
        Self {
            span: Span::Period(period),
            ..self
        }
    }

    /// The second one waits for its turn, which is the default. It does not hold
    /// a slot meanwhile.
    #[must_use]
    pub const fn or_wait(self) -> Self {
        Self {
            conflict: Conflict::Wait,
            ..self
        }
    }

    /// The second one is dropped: its state is REVOKED. A client that would
    /// send it gets the result of the first one instead.
    #[must_use]
    pub const fn or_drop(self) -> Self {
        Self {
            conflict: Conflict::Drop,
            ..self
        }
    }

    /// The second one fails with `NotUnique`; a client that would send it gets
    /// [`SendError::NotUnique`](crate::SendError::NotUnique).
    #[must_use]
    pub const fn or_fail(self) -> Self {
        Self {
            conflict: Conflict::Fail,
            ..self
        }
    }

    /// How long the lock of a dead worker is held; 30 s by default.
    #[must_use]
    pub const fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// The name of the lock for this message.
    pub(crate) fn key<'a>(
        &self,
        task: &str,
        params: &Params,
        payload: impl FnOnce() -> Result<Payload<'a>, DecodeError>,
    ) -> Result<String, DecodeError> {
        let scope = match self.scope {
            Scope::Task => return Ok(format!("unique-{task}")),
            Scope::Arguments => None,
            Scope::Parameters(names) => Some(names),
        };
        let payload = payload()?;
        let (_, body) = payload.task()?;
        let arguments = match params.bind(body.arguments()?) {
            Ok(bound) => bound
                .into_struct::<Map>()
                .map_err(|error| DecodeError::new(error.to_string()))?,
            // Such a call fails when it runs, alone or not.
            Err(_) => Map::new(),
        };
        let mut chosen: Vec<(&str, &Value)> = arguments
            .iter()
            .filter_map(|(name, value)| Some((name.as_str()?, value)))
            .filter(|(name, _)| scope.is_none_or(|names| names.contains(name)))
            .collect();
        chosen.sort_by_key(|(name, _)| *name);
        let text = Serializer::Json
            .encode(&sorted(&chosen))
            .map_err(|error| DecodeError::new(error.to_string()))?;
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, &text);
        Ok(format!("unique-{task}-{digest}"))
    }

    /// How long the lock is held without being renewed, when it is taken.
    pub(crate) fn first_ttl(&self) -> Duration {
        match self.span {
            Span::Running => self.lease,
            Span::Queued(most) | Span::Period(most) => most,
        }
    }

    /// Whether the client takes the lock already.
    pub(crate) fn begins_with_sending(&self) -> bool {
        !matches!(self.span, Span::Running)
    }
}

/// The values with the keys of all maps in order, so that equal arguments are
/// equal texts.
fn sorted(chosen: &[(&str, &Value)]) -> Value {
    let pairs = chosen
        .iter()
        .map(|(name, value)| Value::Array(vec![Value::from(*name), in_order(value)]));
    Value::Array(pairs.collect())
}

fn in_order(value: &Value) -> Value {
    match value {
        Value::Array(values) => Value::Array(values.iter().map(in_order).collect()),
        Value::Map(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| format!("{key:?}"));
            let mut ordered = Map::new();
            for (key, value) in entries {
                ordered.insert(key.clone(), in_order(value));
            }
            Value::Map(ordered)
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use celery_protocol::{Accept, Embed, Message, TaskHeaders, encode_body};
    use serde::Serialize;

    use super::*;

    fn key(unique: Unique, args: impl Serialize, kwargs: impl Serialize) -> String {
        let params = Params::parse("t", ["x", "y=2"]).unwrap();
        let body = encode_body(Serializer::Json, &args, &kwargs, &Embed::default()).unwrap();
        let message = Message::task(TaskHeaders::new("t", "id"), Serializer::Json, body);
        let key = unique.key("t", &params, || message.payload(&Accept::json(), 1 << 20));
        key.unwrap()
    }

    fn json(text: &str) -> serde_json::Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn it_does_not_matter_how_an_argument_is_given() {
        let one = key(Unique::arguments(), (1,), ());
        assert_eq!(key(Unique::arguments(), (1, 2), ()), one);
        let by_name = json(r#"{"y": 2, "x": 1}"#);
        assert_eq!(key(Unique::arguments(), [0; 0], by_name), one);
        assert_ne!(key(Unique::arguments(), (1, 3), ()), one);
        let maps = [r#"{"a": 1, "b": [2]}"#, r#"{"b": [2], "a": 1}"#];
        let [first, second] = maps.map(|map| key(Unique::arguments(), (json(map),), ()));
        assert_eq!(first, second);
    }

    #[test]
    fn only_what_was_chosen_counts() {
        let by_x = Unique::by(&["x"]);
        assert_eq!(key(by_x, (1, 2), ()), key(by_x, (1, 3), ()));
        assert_ne!(key(by_x, (1, 2), ()), key(by_x, (2, 2), ()));
        assert_eq!(key(Unique::task(), (1,), ()), "unique-t");
    }
}
