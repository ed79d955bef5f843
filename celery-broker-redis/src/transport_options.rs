//! Celery's `broker_transport_options`, by name.

use std::time::Duration;

use celery_runtime::{ServiceError, ServiceErrorKind};
use serde_json::{Map, Value};

use crate::config::{DEFAULT_RESTORE_INTERVAL, QueueOrder, RedisOptions, Sentinel};

/// Applies `given` to `options`. Null selects the default of any option.
pub(crate) fn apply(
    options: &mut RedisOptions,
    given: &Map<String, Value>,
    is_sentinel: bool,
) -> Result<(), ServiceError> {
    for (name, value) in given {
        let Some((_, set)) = OPTIONS.iter().find(|(known, _)| known == name) else {
            return Err(wrong(name, &unknown(name)));
        };
        if !value.is_null() {
            set(options, value).map_err(|expected| {
                wrong(
                    name,
                    &format!("expected {expected}, found {}", shown(value)),
                )
            })?;
        }
    }
    match &options.sentinel {
        None if !is_sentinel => Ok(()),
        Some(sentinel) if !is_sentinel || !sentinel.master.is_empty() => {
            if !is_sentinel {
                options.sentinel = None;
            }
            Ok(())
        }
        _ => Err(wrong(
            "master_name",
            "sentinel:// requires the name of the monitored master",
        )),
    }
}

/// A description of the expected value.
type Expected = &'static str;

type Setter = fn(&mut RedisOptions, &Value) -> Result<(), Expected>;

/// Every option of kombu's Redis transport. Those of the last block are
/// accepted and have no effect.
const OPTIONS: &[(&str, Setter)] = &[
    ("client_name", |o, v| {
        put(&mut o.client_name, text(v).map(Some))
    }),
    ("fanout_patterns", |o, v| {
        put(&mut o.layout.fanout_patterns, flag(v))
    }),
    ("fanout_prefix", |o, v| {
        put(&mut o.layout.fanout_prefix, fanout_prefix(v))
    }),
    ("global_keyprefix", |o, v| {
        put(&mut o.layout.prefix, text(v))
    }),
    ("health_check_interval", |o, v| {
        put(&mut o.limits.health_check, positive(v))
    }),
    ("master_name", |o, v| put(&mut sentinel(o).master, text(v))),
    ("max_connections", |o, v| {
        put(&mut o.limits.connections, count(v))
    }),
    ("priority_steps", |o, v| put(&mut o.layout.steps, steps(v))),
    ("queue_order_strategy", |o, v| {
        put(&mut o.layout.order, order(v))
    }),
    // Of this crate.
    ("rescue_after", |o, v| {
        put(&mut o.layout.rescue_after, rescue_after(v))
    }),
    ("sentinel_kwargs", |o, v| sentinel_kwargs(o, v)),
    ("sep", |o, v| put(&mut o.layout.separator, text(v))),
    ("socket_connect_timeout", |o, v| {
        put(&mut o.limits.connect, positive(v))
    }),
    ("socket_timeout", |o, v| {
        put(&mut o.limits.response, positive(v))
    }),
    ("unacked_index_key", |o, v| {
        put(&mut o.layout.unacked_index, text(v))
    }),
    ("unacked_key", |o, v| put(&mut o.layout.unacked, text(v))),
    ("unacked_mutex_expire", |o, v| {
        put(&mut o.layout.unacked_mutex_expire, positive(v))
    }),
    ("unacked_mutex_key", |o, v| {
        put(&mut o.layout.unacked_mutex, text(v))
    }),
    ("unacked_restore_interval", |o, v| {
        put(&mut o.layout.restore_interval, restore_interval(v))
    }),
    ("unacked_restore_limit", |o, v| {
        put(&mut o.layout.restore_limit, count(v))
    }),
    ("unacked_restore_throttle", |o, v| {
        put(&mut o.layout.restore_throttle, restore_throttle(v))
    }),
    ("visibility_timeout", |o, v| {
        put(&mut o.layout.visibility_timeout, visibility_timeout(v))
    }),
    // Without unacked entries a worker's deliveries would be lost with it.
    ("ack_emulation", |_, v| {
        if flag(v)? {
            Ok(())
        } else {
            Err("true: deliveries are always recorded until they are acknowledged")
        }
    }),
    ("body_encoding", ignored),
    ("deadletter_queue", ignored),
    ("interval_max", ignored),
    ("interval_start", ignored),
    ("interval_step", ignored),
    ("max_retries", ignored),
    ("min_other_sentinels", ignored),
    ("polling_interval", ignored),
    ("retry_on_timeout", ignored),
    ("retry_policy", ignored),
    ("sentinel_fanout_compat", ignored),
    ("socket_keepalive", ignored),
    ("socket_keepalive_options", ignored),
];

fn ignored(_: &mut RedisOptions, _: &Value) -> Result<(), Expected> {
    Ok(())
}

fn put<T>(field: &mut T, value: Result<T, Expected>) -> Result<(), Expected> {
    *field = value?;
    Ok(())
}

fn text(value: &Value) -> Result<String, Expected> {
    value.as_str().map(str::to_owned).ok_or("a text")
}

fn flag(value: &Value) -> Result<bool, Expected> {
    value.as_bool().ok_or("true or false")
}

fn count(value: &Value) -> Result<usize, Expected> {
    let number = value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok());
    number
        .filter(|number| *number > 0)
        .ok_or("a number above 0")
}

fn seconds(value: &Value) -> Result<Duration, Expected> {
    let seconds = value
        .as_f64()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or("a number of seconds, 0 or more")
}

/// A shorter one cannot be kept: deliveries are renewed at most ten times a second.
fn visibility_timeout(value: &Value) -> Result<Duration, Expected> {
    seconds(value)
        .ok()
        .filter(|time| *time >= Duration::from_millis(500))
        .ok_or("a number of seconds, at least 0.5")
}

fn rescue_after(value: &Value) -> Result<Duration, Expected> {
    seconds(value)
        .ok()
        .filter(|time| time.is_zero() || *time >= Duration::from_secs(1))
        .ok_or("0 or a number of seconds, at least 1")
}

fn positive(value: &Value) -> Result<Duration, Expected> {
    seconds(value)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or("a number of seconds above 0")
}

fn restore_interval(value: &Value) -> Result<Duration, Expected> {
    match value.as_f64() {
        Some(seconds) if seconds <= 0.0 => Ok(DEFAULT_RESTORE_INTERVAL),
        _ => positive(value),
    }
}

/// kombu reads 0 as 1: each call restores.
fn restore_throttle(value: &Value) -> Result<u32, Expected> {
    let number = value.as_u64().and_then(|number| number.try_into().ok());
    number
        .map(|number: u32| number.max(1))
        .ok_or("a number from 0 to 4294967295")
}

fn steps(value: &Value) -> Result<Vec<u8>, Expected> {
    const EXPECTED: Expected = "a list of numbers from 0 to 9, at least one";
    let numbers = value.as_array().ok_or(EXPECTED)?;
    let step = |number: &Value| {
        number
            .as_u64()
            .filter(|step| *step <= 9)
            .map(|step| step as u8)
    };
    let mut steps: Vec<u8> = numbers
        .iter()
        .map(step)
        .collect::<Option<_>>()
        .ok_or(EXPECTED)?;
    steps.sort_unstable();
    steps.dedup();
    if steps.is_empty() {
        Err(EXPECTED)
    } else {
        Ok(steps)
    }
}

fn order(value: &Value) -> Result<QueueOrder, Expected> {
    match value.as_str() {
        Some("round_robin") => Ok(QueueOrder::RoundRobin),
        Some("sorted") => Ok(QueueOrder::Sorted),
        Some("priority") => Ok(QueueOrder::Priority),
        _ => Err("round_robin, sorted or priority"),
    }
}

fn fanout_prefix(value: &Value) -> Result<String, Expected> {
    match value {
        Value::Bool(true) => Ok("/{db}.".to_owned()),
        Value::Bool(false) => Ok(String::new()),
        Value::String(prefix) => Ok(prefix.clone()),
        _ => Err("true, false or a text"),
    }
}

fn sentinel(options: &mut RedisOptions) -> &mut Sentinel {
    options.sentinel.get_or_insert_with(|| Sentinel {
        master: String::new(),
        user: None,
        password: None,
    })
}

fn sentinel_kwargs(options: &mut RedisOptions, value: &Value) -> Result<(), Expected> {
    let kwargs = value.as_object().ok_or("an object")?;
    let find = |name: &str| kwargs.get(name).and_then(Value::as_str).map(str::to_owned);
    let sentinel = sentinel(options);
    sentinel.user = find("username");
    sentinel.password = find("password");
    Ok(())
}

fn wrong(name: &str, cause: &str) -> ServiceError {
    let object = format!("the transport option {name}");
    ServiceError::new(ServiceErrorKind::Invalid, "use", object, cause)
}

fn unknown(name: &str) -> String {
    let nearest = OPTIONS
        .iter()
        .map(|(known, _)| (strsim::jaro_winkler(known, name), known))
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    match nearest {
        Some((similarity, known)) if similarity > 0.8 => {
            format!("unknown option; did you mean {known}?")
        }
        _ => "unknown option".to_owned(),
    }
}

/// Formats a value for a message. An object may contain a password.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        plain => plain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(options: &Value) -> Result<RedisOptions, ServiceError> {
        RedisOptions::parse("redis://h", options.as_object().expect("an object"))
    }

    #[test]
    fn transport_options_are_applied() {
        let options = parse(&json!({
            "visibility_timeout": 2.5,
            "priority_steps": [9, 0, 5, 5],
            "queue_order_strategy": "priority",
            "fanout_prefix": false,
            "max_connections": null,
            "polling_interval": 1,
        }))
        .unwrap();
        assert_eq!(
            options.layout.visibility_timeout,
            Duration::from_millis(2500)
        );
        assert_eq!(options.layout.steps, [0, 5, 9]);
        assert_eq!(options.layout.order, QueueOrder::Priority);
        assert_eq!(options.layout.fanout_prefix, "");
        assert_eq!(options.limits.connections, 10);
    }

    #[test]
    fn restore_period_is_interval_times_throttle_as_in_kombu() {
        for (given, seconds) in [
            (json!({}), 100.0),
            (json!({"unacked_restore_interval": 0.5}), 5.0),
            (
                json!({"unacked_restore_interval": 2, "unacked_restore_throttle": 3}),
                6.0,
            ),
            (json!({"unacked_restore_throttle": 0}), 10.0),
            (
                json!({"unacked_restore_interval": -1, "unacked_restore_throttle": 1}),
                10.0,
            ),
        ] {
            let period = parse(&given).unwrap().layout.restore_period();
            assert_eq!(period, Duration::from_secs_f64(seconds), "{given}");
        }
    }

    #[test]
    fn unknown_option_suggests_the_nearest_name() {
        let error = parse(&json!({"visibilty_timeout": 5})).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("did you mean visibility_timeout?"),
            "{error}"
        );
        let error = parse(&json!({"zzz": 5})).unwrap_err();
        assert!(error.to_string().ends_with("unknown option"), "{error}");
    }

    #[test]
    fn invalid_value_is_rejected() {
        for (name, value) in [
            ("visibility_timeout", json!("soon")),
            ("visibility_timeout", json!(-1)),
            ("visibility_timeout", json!(1e300)),
            ("priority_steps", json!([])),
            ("priority_steps", json!([10])),
            ("queue_order_strategy", json!("random")),
            ("max_connections", json!(0)),
            ("unacked_restore_throttle", json!(-1)),
            ("ack_emulation", json!(false)),
            ("sentinel_kwargs", json!("password")),
        ] {
            let error = parse(&json!({name: value})).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn master_name_without_sentinels_is_ignored() {
        assert!(
            parse(&json!({"master_name": "m"}))
                .unwrap()
                .sentinel
                .is_none()
        );
    }
}
