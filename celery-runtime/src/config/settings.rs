//! Celery's settings by name: one row of [`SETTINGS`] each.
//!
//! # How to add a setting
//!
//! 1. Add a field with its default to [`Config`], or to the struct of its subject:
//!    `WorkerSettings`, `QueueSettings`, `ControlSettings`, `EventSettings`, or
//!    `TaskOptions` for what a task can override.
//! 2. Add a row to [`SETTINGS`] with Celery's name, in alphabetical order. Its
//!    [`Setter`] reads the [`SettingValue`] with one of its methods and assigns the
//!    field. A setting that was [`ignored`] becomes a `row`.
//! 3. Files ([`Config::from_file`]), the environment ([`Config::from_env`]),
//!    [`Config::set`] and the suggestion for a misspelt name follow from the row.
//! 4. Read the field where it takes effect. If another crate needs it, add a public
//!    getter to [`Config`]. A setting that most programs use gets a method that sets
//!    it, too.
//! 5. Test the default and the text form in the tests of `files.rs`.

use std::time::Duration;

use celery_protocol::{Accept, Compression, Serializer};
use serde_json::{Map, Value};

use crate::boundary::ExchangeKind;
use crate::config::queues::{ListedQueue, QueueType, exchange_kind, read_queues};
use crate::config::{Config, OnUnknown, TaskProtocol};
use crate::routing::Routes;

/// A setting of Celery.
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// `None` if the setting has no effect here.
    pub(super) setter: Option<Setter>,
}

/// Assigns a value to the fields of a setting, or returns the expected form.
type Setter = fn(&mut Config, SettingValue<'_>) -> Result<(), String>;

const fn row(name: &'static str, setter: Setter) -> Setting {
    Setting {
        name,
        setter: Some(setter),
    }
}

const fn ignored(name: &'static str) -> Setting {
    Setting { name, setter: None }
}

/// All settings: first those with an effect, then the ignored ones.
pub(super) const SETTINGS: &[Setting] = &[
    row("accept_content", |config, value| {
        let names = value.texts()?;
        config.accept_content = Accept::from_names(names).map_err(|error| error.to_string())?;
        Ok(())
    }),
    row("broker_connection_max_retries", |config, value| {
        value.optional_count(&mut config.broker_connection_max_retries)
    }),
    row("broker_connection_timeout", |config, value| {
        value.duration(&mut config.broker_connection_timeout)
    }),
    row("broker_heartbeat", |config, value| {
        value.optional_duration(&mut config.broker_heartbeat)?;
        // Celery accepts 0 for "off", too.
        config.broker_heartbeat = config
            .broker_heartbeat
            .filter(|heartbeat| !heartbeat.is_zero());
        Ok(())
    }),
    row("broker_login_method", |config, value| {
        value.optional_text(&mut config.broker_login_method)
    }),
    row(
        "broker_native_delayed_delivery_queue_type",
        |config, value| value.queue_type(&mut config.broker_native_delayed_delivery_queue_type),
    ),
    row("broker_transport_options", |config, value| {
        value.map(&mut config.broker_transport_options)
    }),
    row("broker_url", |config, value| {
        config.broker_url = value.nullable(SettingValue::urls)?;
        Ok(())
    }),
    row("broker_use_ssl", |config, value| {
        config.broker_use_ssl = value.nullable(SettingValue::ssl)?.flatten();
        Ok(())
    }),
    row("control_exchange", |config, value| {
        config.control.exchange = value.text()?;
        Ok(())
    }),
    row("control_queue_expires", |config, value| {
        value.duration(&mut config.control.expires)
    }),
    row("control_queue_ttl", |config, value| {
        value.optional_duration(&mut config.control.ttl)
    }),
    row("deadline", |config, value| {
        value.duration(&mut config.operation_timeout)
    }),
    row("event_exchange", |config, value| {
        config.events.exchange = value.text()?;
        Ok(())
    }),
    row("event_queue_expires", |config, value| {
        value.duration(&mut config.events.expires)
    }),
    row("event_queue_prefix", |config, value| {
        config.events.prefix = value.text()?;
        Ok(())
    }),
    row("event_queue_ttl", |config, value| {
        value.optional_duration(&mut config.events.ttl)
    }),
    row("on_unknown", |config, value| {
        config.on_unknown = on_unknown(&value.text()?)?;
        Ok(())
    }),
    row("publish_wait", |config, value| {
        value.duration(&mut config.publish_wait)
    }),
    row("result_backend", |config, value| {
        value.optional_text(&mut config.result_backend)
    }),
    row("result_backend_transport_options", |config, value| {
        value.map(&mut config.result_backend_transport_options)
    }),
    row("result_chord_expires", |config, value| {
        value.optional_duration(&mut config.result_chord_expires)
    }),
    row("result_chord_join_timeout", |config, value| {
        value.optional_duration(&mut config.result_chord_join_timeout)
    }),
    row("result_chord_retry_interval", |config, value| {
        value.duration(&mut config.result_chord_retry_interval)
    }),
    row("result_expires", |config, value| {
        value.optional_duration(&mut config.result_expires)?;
        // Celery accepts 0 for "never", too.
        config.result_expires = config.result_expires.filter(|expiry| !expiry.is_zero());
        Ok(())
    }),
    row("result_extended", |config, value| {
        value.flag(&mut config.result_extended)
    }),
    row("result_persistent", |config, value| {
        config.result_persistent = value.nullable(SettingValue::truth)?.unwrap_or(false);
        Ok(())
    }),
    row("result_serializer", |config, value| {
        value.serializer(&mut config.result_serializer)
    }),
    row("shutdown_grace", |config, value| {
        value.duration(&mut config.shutdown_grace)
    }),
    row("task_acks_late", |config, value| {
        value.optional_flag(&mut config.task.acks_late)
    }),
    row("task_acks_on_failure", |config, value| {
        value.optional_flag(&mut config.task_acks_on_failure)
    }),
    row("task_acks_on_failure_or_timeout", |config, value| {
        value.optional_flag(&mut config.task.acks_on_failure)
    }),
    row("task_acks_on_timeout", |config, value| {
        value.optional_flag(&mut config.task.acks_on_timeout)
    }),
    row("task_allow_error_cb_on_chord_header", |config, value| {
        value.flag(&mut config.task_allow_error_cb_on_chord_header)
    }),
    row("task_compression", |config, value| {
        let name = value.nullable(SettingValue::text)?;
        config.task_compression = name
            .map(|name| {
                Compression::from_name(&name).ok_or_else(|| format!("no compression {name:?}"))
            })
            .transpose()?;
        Ok(())
    }),
    row(
        "task_create_missing_queue_exchange_type",
        |config, value| {
            config.queues.missing_exchange_kind = value.nullable(SettingValue::exchange_kind)?;
            Ok(())
        },
    ),
    row("task_create_missing_queue_type", |config, value| {
        value.queue_type(&mut config.queues.missing_type)
    }),
    row("task_create_missing_queues", |config, value| {
        value.flag(&mut config.queues.create_missing)
    }),
    row("task_default_delivery_mode", |config, value| {
        config.task_default_delivery_mode = value.delivery_mode()?;
        Ok(())
    }),
    row("task_default_exchange", |config, value| {
        value.optional_text(&mut config.queues.default_exchange)
    }),
    row("task_default_exchange_type", |config, value| {
        config.queues.default_exchange_kind = value.exchange_kind()?;
        Ok(())
    }),
    row("task_default_priority", |config, value| {
        config.task.priority = value.nullable(SettingValue::level)?;
        Ok(())
    }),
    row("task_default_queue", |config, value| {
        config.queues.default_queue = value.text()?;
        Ok(())
    }),
    row("task_default_queue_type", |config, value| {
        value.queue_type(&mut config.queues.default_type)
    }),
    row("task_default_rate_limit", |config, value| {
        config.worker.default_rate_limit = value.nullable(SettingValue::rate)?;
        Ok(())
    }),
    row("task_default_retry_delay", |config, value| {
        value.optional_duration(&mut config.task.retry_delay)
    }),
    row("task_default_routing_key", |config, value| {
        value.optional_text(&mut config.queues.default_routing_key)
    }),
    row("task_ignore_result", |config, value| {
        value.optional_flag(&mut config.task.ignore_result)
    }),
    row("task_max_retries", |config, value| {
        config.task.max_retries = Some(value.nullable(SettingValue::count)?);
        Ok(())
    }),
    row("task_protocol", |config, value| {
        config.task_protocol = match value.count()? {
            1 => TaskProtocol::V1,
            2 => TaskProtocol::V2,
            other => return Err(format!("there is no protocol {other}, only 1 and 2")),
        };
        Ok(())
    }),
    row("task_queue_max_priority", |config, value| {
        config.queues.max_priority = value.nullable(SettingValue::level)?;
        Ok(())
    }),
    row("task_queues", |config, value| {
        config.queues.listed = value.nullable(SettingValue::queues)?.unwrap_or_default();
        Ok(())
    }),
    row("task_reject_on_worker_lost", |config, value| {
        value.optional_flag(&mut config.task.reject_on_worker_lost)
    }),
    row("task_routes", |config, value| {
        config.task_routes = Routes::from_json(&value.json()?)?;
        Ok(())
    }),
    row("task_send_sent_event", |config, value| {
        value.flag(&mut config.task_send_sent_event)
    }),
    row("task_serializer", |config, value| {
        value.serializer(&mut config.task_serializer)
    }),
    row("task_soft_time_limit", |config, value| {
        value.optional_duration(&mut config.task.soft_time_limit)
    }),
    row("task_store_errors_even_if_ignored", |config, value| {
        value.optional_flag(&mut config.task.store_errors)
    }),
    row("task_time_limit", |config, value| {
        value.optional_duration(&mut config.task.time_limit)
    }),
    row("task_track_started", |config, value| {
        value.optional_flag(&mut config.task.track_started)
    }),
    row(
        "worker_cancel_long_running_tasks_on_connection_loss",
        |config, value| value.flag(&mut config.worker.cancel_on_connection_loss),
    ),
    row("worker_concurrency", |config, value| {
        config.worker_concurrency = (value.count()? as usize).max(1);
        Ok(())
    }),
    // The value has no effect: prefetch is always counted per consumer, as quorum
    // queues require.
    row("worker_detect_quorum_queues", |_, value| {
        value.truth().map(drop)
    }),
    row("worker_deduplicate_successful_tasks", |config, value| {
        value.flag(&mut config.worker.deduplicate)
    }),
    row("worker_direct", |config, value| {
        value.flag(&mut config.worker_direct)
    }),
    row("worker_disable_prefetch", |config, value| {
        value.flag(&mut config.worker.disable_prefetch)
    }),
    row("worker_disable_rate_limits", |config, value| {
        value.flag(&mut config.worker.disable_rate_limits)
    }),
    row("worker_durable_revokes", |config, value| {
        value.optional_duration(&mut config.worker.durable_revokes)
    }),
    // The value has no effect: unsettled deliveries always count against the
    // prefetch, also after a connection loss.
    row("worker_enable_prefetch_count_reduction", |_, value| {
        value.truth().map(drop)
    }),
    row("worker_enable_remote_control", |config, value| {
        value.flag(&mut config.worker.remote_control)
    }),
    row("worker_enable_soft_shutdown_on_idle", |config, value| {
        value.flag(&mut config.worker.soft_shutdown_on_idle)
    }),
    row("worker_hostname", |config, value| {
        value.optional_text(&mut config.worker_hostname)
    }),
    row("worker_max_memory_per_child", |config, value| {
        value.optional_count(&mut config.worker_max_memory_per_child)?;
        config.worker_max_memory_per_child =
            config.worker_max_memory_per_child.filter(|kib| *kib > 0);
        Ok(())
    }),
    row("worker_max_tasks_per_child", |config, value| {
        value.optional_count(&mut config.worker_max_tasks_per_child)?;
        config.worker_max_tasks_per_child =
            config.worker_max_tasks_per_child.filter(|tasks| *tasks > 0);
        Ok(())
    }),
    row("worker_prefetch_multiplier", |config, value| {
        config.worker_prefetch_multiplier = value.count()? as usize;
        Ok(())
    }),
    row("worker_send_task_events", |config, value| {
        value.flag(&mut config.worker.task_events)
    }),
    row("worker_soft_shutdown_timeout", |config, value| {
        value.duration(&mut config.worker.soft_shutdown_timeout)
    }),
    row("worker_state_db", |config, value| {
        config.worker.state_file = value.nullable(SettingValue::text)?.map(Into::into);
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

/// Returns the setting with this name.
pub(super) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// Returns the name of the setting that is most similar to `name`.
pub(super) fn nearest(name: &str) -> &'static str {
    SETTINGS
        .iter()
        .max_by(|one, other| {
            let similarity = |setting: &Setting| strsim::jaro_winkler(setting.name, name);
            similarity(one).total_cmp(&similarity(other))
        })
        .map_or("broker_url", |setting| setting.name)
}

/// The value of a setting. Values from the environment are text, so each method
/// accepts the text form, too.
#[derive(Clone, Copy)]
pub(super) struct SettingValue<'a>(pub(super) &'a Value);

impl SettingValue<'_> {
    fn text(self) -> Result<String, String> {
        match self.0 {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("expected text, found {other}")),
        }
    }

    /// Returns the value, or the JSON that its text contains.
    fn json(self) -> Result<Value, String> {
        match self.0 {
            Value::String(text) => serde_json::from_str(text)
                .map_err(|error| format!("expected JSON, found {text:?}: {error}")),
            value => Ok(value.clone()),
        }
    }

    /// Reads a list, a JSON list, or names separated by commas.
    fn texts(self) -> Result<Vec<String>, String> {
        let list = match self.0 {
            Value::String(text) if !text.trim_start().starts_with('[') => {
                return Ok(text.split(',').map(|name| name.trim().to_owned()).collect());
            }
            _ => self.json()?,
        };
        let items = list.as_array().ok_or("expected a list of names")?;
        items.iter().map(|item| SettingValue(item).text()).collect()
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

    /// Returns `None` for `null` and for the texts `none`, `null` and "".
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

    /// Reads a rate limit, which may be a number.
    fn rate(self) -> Result<String, String> {
        let text = match self.0 {
            Value::Number(number) => number.to_string(),
            _ => self.text()?,
        };
        crate::task::RateLimit::check(&text)?;
        Ok(text)
    }

    /// Reads a number from 0 to 255, such as a priority.
    fn level(self) -> Result<u8, String> {
        let level = self.count()?;
        u8::try_from(level).map_err(|_| format!("expected at most 255, found {level}"))
    }

    /// Reads a URL, or a list of URLs, which is joined with `;`.
    fn urls(self) -> Result<String, String> {
        match self.0 {
            Value::Array(_) => self.texts().map(|urls| urls.join(";")),
            _ => self.text(),
        }
    }

    /// Reads `true`, `false` or a map of TLS options; `true` is the empty map.
    fn ssl(self) -> Result<Option<Map<String, Value>>, String> {
        if let Ok(on) = self.truth() {
            return Ok(on.then(Map::new));
        }
        let mut options = Map::new();
        self.map(&mut options)?;
        Ok(Some(options))
    }

    /// Reads a list or map of queues, or names separated by commas.
    fn queues(self) -> Result<Vec<ListedQueue>, String> {
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
            SettingValue(&delay).seconds().map(OnUnknown::Requeue)
        }
        _ => Err(format!(
            "expected keep, reject or requeue:<seconds>, found {text:?}"
        )),
    }
}
