//! Unique tasks: [`Unique`].

use std::time::Duration;

use celery_protocol::{DecodeError, Map, Payload, Serializer, Value};
use uuid::Uuid;

use crate::task::params::Params;

/// A rule that prevents concurrent executions of a task, across all workers that share a
/// [`Store`](crate::Store).
///
/// ```
/// use std::time::Duration;
/// use celery_runtime::{Task, Unique};
///
/// // At most one import per file at a time; a second one waits.
/// const IMPORT: Task<(String, bool), ()> = Task::new("tasks.import_file")
///     .params(&["path", "force=false"])
///     .unique(Unique::by(&["path"]).or_wait());
/// // At most one mail per day; others are dropped.
/// const DIGEST: Task<(), ()> = Task::new("tasks.digest")
///     .unique(Unique::task().for_period(Duration::from_secs(86_400)).or_drop());
/// # let _ = (IMPORT, DIGEST);
/// ```
///
/// The worker takes a lock before the task starts; tasks sent by Python are therefore included. The
/// lock has a lease, which the worker renews while the task runs. After the worker has died, the
/// lock expires at the end of the lease. If a running worker loses its connection to the store for
/// longer than the lease, two instances may run concurrently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unique {
    scope: Scope,
    pub(crate) span: LockPeriod,
    pub(crate) conflict: Conflict,
    pub(crate) lease: Duration,
}

/// The part of a call that must be unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Task,
    Arguments,
    Parameters(&'static [&'static str]),
}

/// The time for which the lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockPeriod {
    /// From the start of the task to its end.
    Running,
    /// From sending to the end of the task, at most for this time.
    Queued(Duration),
    /// For this time from sending.
    Period(Duration),
}

/// What happens to a second instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    Wait,
    Drop,
    Fail,
}

impl Unique {
    /// Allows one instance of the task, whatever its arguments.
    pub const fn task() -> Self {
        Self {
            scope: Scope::Task,
            span: LockPeriod::Running,
            conflict: Conflict::Wait,
            lease: Duration::from_secs(30),
        }
    }

    /// Allows one instance per set of arguments. Positional, keyword and default arguments are
    /// equivalent.
    pub const fn arguments() -> Self {
        Self {
            scope: Scope::Arguments,
            ..Self::task()
        }
    }

    /// Allows one instance per value of these parameters.
    pub const fn by(parameters: &'static [&'static str]) -> Self {
        Self {
            scope: Scope::Parameters(parameters),
            ..Self::task()
        }
    }

    /// Holds the lock while the task runs; the default.
    #[must_use]
    pub const fn while_running(self) -> Self {
        Self {
            span: LockPeriod::Running,
            ..self
        }
    }

    /// Holds the lock from sending by a Rust client (or, for a task sent by Python, from its
    /// receipt by a worker) to the end of the task, at most for `limit`. The limit is needed
    /// because a message may be deleted from its queue.
    ///
    /// A Python worker does not release the lock of a task that a Rust client has sent. Therefore
    /// the next client or worker that finds the lock taken reads the result of its holder, and
    /// takes the lock over if the holder has ended: if its state is SUCCESS, FAILURE or REVOKED.
    /// This needs a result backend that all processes share, which `rpc://` is not; the lock of a
    /// task that ignores its result is held for all of `limit` after it ran in a Python worker.
    #[must_use]
    pub const fn while_queued(self, limit: Duration) -> Self {
        Self {
            span: LockPeriod::Queued(limit),
            ..self
        }
    }

    /// Holds the lock for `period` from sending by a Rust client (or, for a task sent by Python,
    /// from its start), even if the task ends before.
    #[must_use]
    pub const fn for_period(self, period: Duration) -> Self {
        Self {
            span: LockPeriod::Period(period),
            ..self
        }
    }

    /// Makes a second instance wait; the default. It takes no slot of the worker while it waits.
    #[must_use]
    pub const fn or_wait(self) -> Self {
        Self {
            conflict: Conflict::Wait,
            ..self
        }
    }

    /// Drops a second instance: its state is REVOKED. A client does not send it, and returns the
    /// result of the first instance instead.
    #[must_use]
    pub const fn or_drop(self) -> Self {
        Self {
            conflict: Conflict::Drop,
            ..self
        }
    }

    /// Fails a second instance with `NotUnique`. A client does not send it, and returns
    /// [`SendError::NotUnique`](crate::SendError::NotUnique).
    #[must_use]
    pub const fn or_fail(self) -> Self {
        Self {
            conflict: Conflict::Fail,
            ..self
        }
    }

    /// Sets the lease of the lock: the time after which the lock of a dead worker expires; 30 s by
    /// default.
    #[must_use]
    pub const fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// Returns the key of the lock for this call.
    ///
    /// # Errors
    ///
    /// Fails if the payload cannot be decoded.
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
            // Such a call fails when it runs.
            Err(_) => Map::new(),
        };
        let mut chosen: Vec<(&str, &Value)> = arguments
            .iter()
            .filter_map(|(name, value)| Some((name.as_str()?, value)))
            .filter(|(name, _)| scope.is_none_or(|names| names.contains(name)))
            .collect();
        chosen.sort_by_key(|(name, _)| *name);
        let text = Serializer::Json
            .encode(&canonical(&chosen))
            .map_err(|error| DecodeError::new(error.to_string()))?;
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, &text);
        Ok(format!("unique-{task}-{digest}"))
    }

    /// Returns the time to live of the lock when it is taken.
    pub(crate) fn first_ttl(&self) -> Duration {
        match self.span {
            LockPeriod::Running => self.lease,
            LockPeriod::Queued(time) | LockPeriod::Period(time) => time,
        }
    }

    /// Returns whether the client takes the lock.
    pub(crate) fn begins_when_sent(&self) -> bool {
        !matches!(self.span, LockPeriod::Running)
    }
}

/// Returns the arguments as pairs, with the keys of all maps sorted, so that equal arguments have
/// equal encodings.
fn canonical(chosen: &[(&str, &Value)]) -> Value {
    let pairs = chosen
        .iter()
        .map(|(name, value)| Value::Array(vec![Value::from(*name), with_sorted_keys(value)]));
    Value::Array(pairs.collect())
}

fn with_sorted_keys(value: &Value) -> Value {
    match value {
        Value::Array(values) => Value::Array(values.iter().map(with_sorted_keys).collect()),
        Value::Map(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| format!("{key:?}"));
            let mut ordered = Map::new();
            for (key, value) in entries {
                ordered.insert(key.clone(), with_sorted_keys(value));
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
    fn key_is_equal_for_positional_and_keyword_arguments() {
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
    fn key_depends_only_on_scope() {
        let by_x = Unique::by(&["x"]);
        assert_eq!(key(by_x, (1, 2), ()), key(by_x, (1, 3), ()));
        assert_ne!(key(by_x, (1, 2), ()), key(by_x, (2, 2), ()));
        assert_eq!(key(Unique::task(), (1,), ()), "unique-t");
    }
}
