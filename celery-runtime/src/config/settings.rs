//! Celery's settings by name: one row each.

use std::time::Duration;

use celery_protocol::{Accept, Compression, Serializer};
use serde_json::{Map, Value};

use crate::boundary::ExchangeKind;
use crate::config::queues::{QueueType, exchange_kind, read_queues};
use crate::config::{Config, OnUnknown, TaskProtocol};
use crate::routing::Routes;

/// A setting and what setting it does. `None` marks one that Celery has and
/// that has no effect here.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) apply: Option<Apply>,
}

type Apply = fn(&mut Config, Input<'_>) -> Result<(), String>;

const fn row(name: &'static str, apply: Apply) -> Setting {
    Setting {
        name,
        apply: Some(apply),
    }
}

const fn ignored(name: &'static str) -> Setting {
    Setting { name, apply: None }
}

pub(super) const SETTINGS: &[Setting] = &[
    row("accept_content", |config, input| {
        let names = input.texts()?;
        config.accept_content = Accept::from_names(names).map_err(|error| error.to_string())?;
        Ok(())
    }),
    row("broker_connection_max_retries", |config, input| {
        input.optional_count(&mut config.broker_connection_max_retries)
    }),
    row("broker_connection_timeout", |config, input| {
        input.duration(&mut config.broker_connection_timeout)
    }),
    row("broker_heartbeat", |config, input| {
        input.optional_duration(&mut config.broker_heartbeat)?;
        // Celery writes 0 for "off", too.
        config.broker_heartbeat = config.broker_heartbeat.filter(|beat| !beat.is_zero());
        Ok(())
    }),
    row("broker_login_method", |config, input| {
        input.optional_text(&mut config.broker_login_method)
    }),
    row(
        "broker_native_delayed_delivery_queue_type",
        |config, input| input.queue_type(&mut config.broker_native_delayed_delivery_queue_type),
    ),
    row("broker_transport_options", |config, input| {
        input.map(&mut config.broker_transport_options)
    }),
    row("broker_url", |config, input| {
        config.broker_url = input.nullable(Input::urls)?;
        Ok(())
    }),
    row("broker_use_ssl", |config, input| {
        config.broker_use_ssl = input.nullable(Input::ssl)?.flatten();
        Ok(())
    }),
    row("control_exchange", |config, input| {
        config.control.exchange = input.text()?;
        Ok(())
    }),
    row("control_queue_expires", |config, input| {
        input.duration(&mut config.control.expires)
    }),
    row("control_queue_ttl", |config, input| {
        input.optional_duration(&mut config.control.ttl)
    }),
    row("deadline", |config, input| {
        input.duration(&mut config.operation_timeout)
    }),
    row("event_exchange", |config, input| {
        config.events.exchange = input.text()?;
        Ok(())
    }),
    row("event_queue_expires", |config, input| {
        input.duration(&mut config.events.expires)
    }),
    row("event_queue_prefix", |config, input| {
        config.events.prefix = input.text()?;
        Ok(())
    }),
    row("event_queue_ttl", |config, input| {
        input.optional_duration(&mut config.events.ttl)
    }),
    row("on_unknown", |config, input| {
        config.on_unknown = on_unknown(&input.text()?)?;
        Ok(())
    }),
    row("result_backend", |config, input| {
        input.optional_text(&mut config.result_backend)
    }),
    row("result_backend_transport_options", |config, input| {
        input.map(&mut config.result_backend_transport_options)
    }),
    row("result_chord_expires", |config, input| {
        input.optional_duration(&mut config.result_chord_expires)
    }),
    row("result_chord_join_timeout", |config, input| {
        input.optional_duration(&mut config.result_chord_join_timeout)
    }),
    row("result_chord_retry_interval", |config, input| {
        input.duration(&mut config.result_chord_retry_interval)
    }),
    row("result_expires", |config, input| {
        input.optional_duration(&mut config.result_expires)?;
        // Celery writes 0 for "never", too.
        config.result_expires = config.result_expires.filter(|expiry| !expiry.is_zero());
        Ok(())
    }),
    row("result_extended", |config, input| {
        input.flag(&mut config.result_extended)
    }),
    row("result_persistent", |config, input| {
        config.result_persistent = input.nullable(Input::truth)?.unwrap_or(false);
        Ok(())
    }),
    row("result_serializer", |config, input| {
        input.serializer(&mut config.result_serializer)
    }),
    row("shutdown_grace", |config, input| {
        input.duration(&mut config.shutdown_grace)
    }),
    row("task_acks_late", |config, input| {
        input.optional_flag(&mut config.task.acks_late)
    }),
    row("task_acks_on_failure", |config, input| {
        input.optional_flag(&mut config.task_acks_on_failure)
    }),
    row("task_acks_on_failure_or_timeout", |config, input| {
        input.optional_flag(&mut config.task.acks_on_failure)
    }),
    row("task_acks_on_timeout", |config, input| {
        input.optional_flag(&mut config.task.acks_on_timeout)
    }),
    row("task_allow_error_cb_on_chord_header", |config, input| {
        input.flag(&mut config.task_allow_error_cb_on_chord_header)
    }),
    row("task_compression", |config, input| {
        let name = input.nullable(Input::text)?;
        config.task_compression = name
            .map(|name| {
                Compression::from_name(&name).ok_or_else(|| format!("no compression {name:?}"))
            })
            .transpose()?;
        Ok(())
    }),
    row(
        "task_create_missing_queue_exchange_type",
        |config, input| {
            config.queues.missing_exchange_kind = input.nullable(Input::exchange_kind)?;
            Ok(())
        },
    ),
    row("task_create_missing_queue_type", |config, input| {
        input.queue_type(&mut config.queues.missing_type)
    }),
    row("task_create_missing_queues", |config, input| {
        input.flag(&mut config.queues.create_missing)
    }),
    row("task_default_delivery_mode", |config, input| {
        config.task_default_delivery_mode = input.delivery_mode()?;
        Ok(())
    }),
    row("task_default_exchange", |config, input| {
        input.optional_text(&mut config.queues.default_exchange)
    }),
    row("task_default_exchange_type", |config, input| {
        config.queues.default_exchange_kind = input.exchange_kind()?;
        Ok(())
    }),
    row("task_default_priority", |config, input| {
        config.task.priority = input.nullable(Input::level)?;
        Ok(())
    }),
    row("task_default_queue", |config, input| {
        config.queues.default_queue = input.text()?;
        Ok(())
    }),
    row("task_default_queue_type", |config, input| {
        input.queue_type(&mut config.queues.default_type)
    }),
    row("task_default_rate_limit", |config, input| {
        config.worker.default_rate_limit = input.nullable(Input::rate)?;
        Ok(())
    }),
    row("task_default_retry_delay", |config, input| {
        input.optional_duration(&mut config.task.retry_delay)
    }),
    row("task_default_routing_key", |config, input| {
        input.optional_text(&mut config.queues.default_routing_key)
    }),
    row("task_ignore_result", |config, input| {
        input.optional_flag(&mut config.task.ignore_result)
    }),
    row("task_max_retries", |config, input| {
        config.task.max_retries = Some(input.nullable(Input::count)?);
        Ok(())
    }),
    row("task_protocol", |config, input| {
        config.task_protocol = match input.count()? {
            1 => TaskProtocol::V1,
            2 => TaskProtocol::V2,
            other => return Err(format!("there is no protocol {other}, only 1 and 2")),
        };
        Ok(())
    }),
    row("task_queue_max_priority", |config, input| {
        config.queues.max_priority = input.nullable(Input::level)?;
        Ok(())
    }),
    row("task_queues", |config, input| {
        config.queues.listed = input.nullable(Input::queues)?.unwrap_or_default();
        Ok(())
    }),
    row("task_reject_on_worker_lost", |config, input| {
        input.optional_flag(&mut config.task.reject_on_worker_lost)
    }),
    row("task_routes", |config, input| {
        config.task_routes = Routes::from_json(&input.json()?)?;
        Ok(())
    }),
    row("task_send_sent_event", |config, input| {
        input.flag(&mut config.task_send_sent_event)
    }),
    row("task_serializer", |config, input| {
        input.serializer(&mut config.task_serializer)
    }),
    row("task_soft_time_limit", |config, input| {
        input.optional_duration(&mut config.task.soft_time_limit)
    }),
    row("task_store_errors_even_if_ignored", |config, input| {
        input.optional_flag(&mut config.task.store_errors)
    }),
    row("task_time_limit", |config, input| {
        input.optional_duration(&mut config.task.time_limit)
    }),
    row("task_track_started", |config, input| {
        input.optional_flag(&mut config.task.track_started)
    }),
    row(
        "worker_cancel_long_running_tasks_on_connection_loss",
        |config, input| input.flag(&mut config.worker.cancel_on_connection_loss),
    ),
    row("worker_concurrency", |config, input| {
        config.worker_concurrency = (input.count()? as usize).max(1);
        Ok(())
    }),
    // What it asks for is always so here: prefetch is counted per consumer,
    // which is what quorum queues need.
    row("worker_detect_quorum_queues", |_, input| {
        input.truth().map(drop)
    }),
    row("worker_deduplicate_successful_tasks", |config, input| {
        input.flag(&mut config.worker.deduplicate)
    }),
    row("worker_direct", |config, input| {
        input.flag(&mut config.worker_direct)
    }),
    row("worker_disable_prefetch", |config, input| {
        input.flag(&mut config.worker.disable_prefetch)
    }),
    row("worker_disable_rate_limits", |config, input| {
        input.flag(&mut config.worker.disable_rate_limits)
    }),
    row("worker_durable_revokes", |config, input| {
        input.optional_duration(&mut config.worker.durable_revokes)
    }),
    // What stays in hand counts against the window at any time, also after a
    // connection was lost.
    row("worker_enable_prefetch_count_reduction", |_, input| {
        input.truth().map(drop)
    }),
    row("worker_enable_remote_control", |config, input| {
        input.flag(&mut config.worker.remote_control)
    }),
    row("worker_enable_soft_shutdown_on_idle", |config, input| {
        input.flag(&mut config.worker.soft_shutdown_on_idle)
    }),
    row("worker_hostname", |config, input| {
        input.optional_text(&mut config.worker_hostname)
    }),
    row("worker_max_memory_per_child", |config, input| {
        input.optional_count(&mut config.worker_max_memory_per_child)?;
        config.worker_max_memory_per_child =
            config.worker_max_memory_per_child.filter(|kib| *kib > 0);
        Ok(())
    }),
    row("worker_max_tasks_per_child", |config, input| {
        input.optional_count(&mut config.worker_max_tasks_per_child)?;
        config.worker_max_tasks_per_child =
            config.worker_max_tasks_per_child.filter(|tasks| *tasks > 0);
        Ok(())
    }),
    row("worker_prefetch_multiplier", |config, input| {
        config.worker_prefetch_multiplier = input.count()? as usize;
        Ok(())
    }),
    row("worker_send_task_events", |config, input| {
        input.flag(&mut config.worker.task_events)
    }),
    row("worker_soft_shutdown_timeout", |config, input| {
        input.duration(&mut config.worker.soft_shutdown_timeout)
    }),
    row("worker_state_db", |config, input| {
        config.worker.state_file = input.nullable(Input::text)?.map(Into::into);
        Ok(())
    }),
    ignored("beat_schedule"),
    ignored("broker_connection_retry_on_startup"),
    ignored("broker_pool_limit"),
    ignored("enable_utc"),
    ignored("event_serializer"),
    ignored("imports"),
    ignored("include"),
    ignored("redis_max_connections"),
    ignored("task_annotations"),
    ignored("task_inherit_parent_priority"),
    ignored("task_publish_retry"),
    ignored("timezone"),
    ignored("worker_pool"),
];

/// The setting of that name.
pub(super) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The setting whose name is most like `name`.
pub(super) fn nearest(name: &str) -> &'static str {
    SETTINGS
        .iter()
        .max_by(|one, other| {
            let likeness = |setting: &Setting| strsim::jaro_winkler(setting.name, name);
            likeness(one).total_cmp(&likeness(other))
        })
        .map_or("broker_url", |setting| setting.name)
}

/// The value of a setting. From the environment everything is text, so each
/// reader understands the text form, too.
#[derive(Clone, Copy)]
pub(super) struct Input<'a>(pub(super) &'a Value);

impl Input<'_> {
    fn text(self) -> Result<String, String> {
        match self.0 {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("expected text, found {other}")),
        }
    }

    /// The value itself, or the JSON in its text.
    fn json(self) -> Result<Value, String> {
        match self.0 {
            Value::String(text) => serde_json::from_str(text)
                .map_err(|error| format!("expected JSON, found {text:?}: {error}")),
            value => Ok(value.clone()),
        }
    }

    /// A list, a JSON list, or names with commas between them.
    fn texts(self) -> Result<Vec<String>, String> {
        let list = match self.0 {
            Value::String(text) if !text.trim_start().starts_with('[') => {
                return Ok(text.split(',').map(|name| name.trim().to_owned()).collect());
            }
            _ => self.json()?,
        };
        let items = list.as_array().ok_or("expected a list of names")?;
        items.iter().map(|item| Input(item).text()).collect()
    }

    fn truth(self) -> Result<bool, String> {
        match self.0 {
            Value::Bool(flag) => Ok(*flag),
            Value::Number(number) if number.as_u64() == Some(0) => Ok(false),
            Value::Number(number) if number.as_u64() == Some(1) => Ok(true),
            Value::String(text) => match text.to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" | "on" => Ok(true),
                "0" | "false" | "no" | "off" | "" => Ok(false),
                _ => Err(format!("expected true or false, found {text:?}")),
            },
            other => Err(format!("expected true or false, found {other}")),
        }
    }

    fn number(self) -> Result<f64, String> {
        let number = match self.0 {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number
            .filter(|number: &f64| number.is_finite() && *number >= 0.0)
            .ok_or_else(|| format!("expected a number that is not negative, found {}", self.0))
    }

    fn count(self) -> Result<u32, String> {
        let number = self.number()?;
        if number.fract() != 0.0 || number > f64::from(u32::MAX) {
            return Err(format!("expected a whole number, found {number}"));
        }
        Ok(number as u32)
    }

    /// `null`, or `none` and nothing in text, as `None`.
    fn nullable<T>(self, read: fn(Self) -> Result<T, String>) -> Result<Option<T>, String> {
        match self.0 {
            Value::Null => Ok(None),
            Value::String(text)
                if text.is_empty()
                    || text.eq_ignore_ascii_case("none")
                    || text.eq_ignore_ascii_case("null") =>
            {
                Ok(None)
            }
            _ => read(self).map(Some),
        }
    }

    fn seconds(self) -> Result<Duration, String> {
        Duration::try_from_secs_f64(self.number()?).map_err(|error| error.to_string())
    }

    fn optional_text(self, target: &mut Option<String>) -> Result<(), String> {
        *target = self.nullable(Self::text)?;
        Ok(())
    }

    fn flag(self, target: &mut bool) -> Result<(), String> {
        *target = self.truth()?;
        Ok(())
    }

    fn optional_flag(self, target: &mut Option<bool>) -> Result<(), String> {
        *target = self.nullable(Self::truth)?;
        Ok(())
    }

    fn optional_count(self, target: &mut Option<u32>) -> Result<(), String> {
        *target = self.nullable(Self::count)?;
        Ok(())
    }

    fn duration(self, target: &mut Duration) -> Result<(), String> {
        *target = self.seconds()?;
        Ok(())
    }

    fn optional_duration(self, target: &mut Option<Duration>) -> Result<(), String> {
        *target = self.nullable(Self::seconds)?;
        Ok(())
    }

    /// A rate limit, which may be a number.
    fn rate(self) -> Result<String, String> {
        let text = match self.0 {
            Value::Number(number) => number.to_string(),
            _ => self.text()?,
        };
        crate::task::RateLimit::check(&text)?;
        Ok(text)
    }

    /// A priority.
    fn level(self) -> Result<u8, String> {
        let level = self.count()?;
        u8::try_from(level).map_err(|_| format!("expected at most 255, found {level}"))
    }

    /// One URL, or a list of them as the one text that stands for a list.
    fn urls(self) -> Result<String, String> {
        match self.0 {
            Value::Array(_) => self.texts().map(|urls| urls.join(";")),
            _ => self.text(),
        }
    }

    /// `true` or `false`, or what TLS shall use.
    fn ssl(self) -> Result<Option<Map<String, Value>>, String> {
        if let Ok(on) = self.truth() {
            return Ok(on.then(Map::new));
        }
        let mut options = Map::new();
        self.map(&mut options)?;
        Ok(Some(options))
    }

    /// A list of queues, or names with commas between them.
    fn queues(self) -> Result<Vec<crate::config::queues::Listed>, String> {
        match self.0 {
            Value::String(text) if !text.trim_start().starts_with(['[', '{']) => {
                let names = self.texts()?.into_iter().map(Value::String);
                read_queues(&names.collect())
            }
            _ => read_queues(&self.json()?),
        }
    }

    fn exchange_kind(self) -> Result<ExchangeKind, String> {
        exchange_kind(&self.text()?)
    }

    fn queue_type(self, target: &mut QueueType) -> Result<(), String> {
        *target = match self.text()?.as_str() {
            "classic" => QueueType::Classic,
            "quorum" => QueueType::Quorum,
            other => return Err(format!("expected classic or quorum, found {other:?}")),
        };
        Ok(())
    }

    fn delivery_mode(self) -> Result<u8, String> {
        if let Ok(mode @ 1..=2) = self.level() {
            return Ok(mode);
        }
        match self.0.as_str() {
            Some("transient") => Ok(1),
            Some("persistent") => Ok(2),
            _ => Err(format!(
                "expected 1 (transient) or 2 (persistent), found {}",
                self.0
            )),
        }
    }

    fn serializer(self, target: &mut Serializer) -> Result<(), String> {
        let name = self.text()?;
        *target = Serializer::from_name(&name)
            .ok_or_else(|| format!("no serializer {name:?}; there are json, msgpack and yaml"))?;
        Ok(())
    }

    fn map(self, target: &mut Map<String, Value>) -> Result<(), String> {
        match self.json()? {
            Value::Object(map) => *target = map,
            other => return Err(format!("expected a map, found {other}")),
        }
        Ok(())
    }
}

fn on_unknown(text: &str) -> Result<OnUnknown, String> {
    match text.split_once(':') {
        None if text == "keep" => Ok(OnUnknown::Keep),
        None if text == "reject" => Ok(OnUnknown::Reject),
        None if text == "requeue" => Ok(OnUnknown::Requeue(Duration::from_secs(10))),
        Some(("requeue", delay)) => {
            let delay = Value::String(delay.to_owned());
            Input(&delay).seconds().map(OnUnknown::Requeue)
        }
        _ => Err(format!(
            "expected keep, reject or requeue:<seconds>, found {text:?}"
        )),
    }
}
