//! The options of one call: Celery's `apply_async`.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use celery_protocol::{Compression, Embed, Map, Raw, Serializer, Value};

/// What a call says beside task and arguments. Everything may be left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallOptions {
    pub(crate) task_id: Option<String>,
    pub(crate) eta: Option<Time>,
    pub(crate) expires: Option<Time>,
    pub(crate) queue: Option<String>,
    pub(crate) exchange: Option<String>,
    pub(crate) routing_key: Option<String>,
    pub(crate) priority: Option<u8>,
    pub(crate) serializer: Option<Serializer>,
    pub(crate) compression: Option<Compression>,
    pub(crate) headers: Map,
    pub(crate) soft_time_limit: Option<Duration>,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) shadow: Option<String>,
    pub(crate) ignore_result: Option<bool>,
    pub(crate) retries: u32,
    pub(crate) root_id: Option<String>,
    pub(crate) parent_id: Option<String>,
    /// Where its result is waited for, if not at the sender's.
    pub(crate) reply_to: Option<String>,
    pub(crate) group_id: Option<String>,
    pub(crate) group_index: Option<i64>,
    pub(crate) embed: Embed<'static>,
}

/// A point in time, or one counted from when the call is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Time {
    In(Duration),
    At(SystemTime),
}

impl Time {
    pub(crate) fn from(self, now: SystemTime) -> SystemTime {
        match self {
            Self::In(delay) => now + delay,
            Self::At(time) => time,
        }
    }

    fn to_wire(self) -> Value {
        match self {
            Self::In(delay) => in_seconds(delay),
            Self::At(time) => Value::Str(celery_protocol::time::format(time)),
        }
    }
}

impl CallOptions {
    /// Reads the `options` of a signature on the wire; those that this version
    /// does not know are left out.
    ///
    /// # Errors
    ///
    /// A sentence about the option that has a wrong type.
    pub(crate) fn from_wire(options: &Raw<'_>) -> Result<Self, String> {
        let mut call = Self::default();
        let entries = options.entries().map_err(|error| error.to_string())?;
        for (name, raw) in entries.iter().filter(|(_, raw)| !raw.is_null()) {
            call.set(name, raw)
                .map_err(|cause| format!("cannot read option {name} of a signature: {cause}"))?;
        }
        Ok(call)
    }

    fn set(&mut self, name: &str, raw: &Raw<'_>) -> Result<(), String> {
        match name {
            "priority" => self.priority = Some(read(raw)?),
            "retries" => self.retries = read(raw)?,
            "group_index" => self.group_index = Some(read(raw)?),
            "ignore_result" => self.ignore_result = Some(read(raw)?),
            "time_limit" => self.time_limit = Some(seconds(raw)?),
            "soft_time_limit" => self.soft_time_limit = Some(seconds(raw)?),
            "countdown" => self.eta = Some(Time::In(seconds(raw)?)),
            "eta" => self.eta = Some(Time::At(time(raw)?)),
            "expires" => self.expires = Some(moment(raw)?),
            "serializer" => self.serializer = Some(named(raw, Serializer::from_name)?),
            "compression" => self.compression = Some(named(raw, Compression::from_name)?),
            "headers" => self.headers = read(raw)?,
            "link" => self.embed.callbacks = list(raw)?,
            "link_error" => self.embed.errbacks = list(raw)?,
            name => {
                if let Some(slot) = self.text_option(name) {
                    *slot = Some(text(raw)?);
                }
            }
        }
        Ok(())
    }

    /// The options that are plain text, by name.
    fn text_option(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "task_id" => &mut self.task_id,
            "queue" => &mut self.queue,
            "exchange" => &mut self.exchange,
            "routing_key" => &mut self.routing_key,
            "shadow" => &mut self.shadow,
            "root_id" => &mut self.root_id,
            "parent_id" => &mut self.parent_id,
            "reply_to" => &mut self.reply_to,
            "group_id" => &mut self.group_id,
            _ => return None,
        })
    }

    /// Writes the options that a caller can set, by Celery's names.
    pub(crate) fn write_wire(&self, wire: &mut Map) {
        let text = |text: &Option<String>| text.as_deref().map(Value::from);
        let raw = |raw: &Option<Raw<'static>>| raw.as_ref()?.to_value().ok();
        let eta_name = match self.eta {
            Some(Time::In(_)) => "countdown",
            _ => "eta",
        };
        let headers = (!self.headers.is_empty()).then(|| Value::Map(self.headers.clone()));
        let entries = [
            ("task_id", text(&self.task_id)),
            ("queue", text(&self.queue)),
            ("exchange", text(&self.exchange)),
            ("routing_key", text(&self.routing_key)),
            ("shadow", text(&self.shadow)),
            (
                "priority",
                self.priority.map(|level| Value::Int(level.into())),
            ),
            (eta_name, self.eta.map(Time::to_wire)),
            ("expires", self.expires.map(Time::to_wire)),
            ("time_limit", self.time_limit.map(in_seconds)),
            ("soft_time_limit", self.soft_time_limit.map(in_seconds)),
            ("ignore_result", self.ignore_result.map(Value::Bool)),
            ("serializer", self.serializer.map(|one| one.name().into())),
            ("compression", self.compression.map(|one| one.name().into())),
            ("headers", headers),
            ("link", raw(&self.embed.callbacks)),
            ("link_error", raw(&self.embed.errbacks)),
        ];
        for (name, value) in entries {
            if let Some(value) = value {
                wire.insert(name, value);
            }
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(raw: &Raw<'_>) -> Result<T, String> {
    raw.decode().map_err(|error| error.to_string())
}

fn text(raw: &Raw<'_>) -> Result<String, String> {
    raw.decode::<Cow<'_, str>>()
        .map(Cow::into_owned)
        .map_err(|error| error.to_string())
}

fn seconds(raw: &Raw<'_>) -> Result<Duration, String> {
    Duration::try_from_secs_f64(read(raw)?).map_err(|error| error.to_string())
}

fn time(raw: &Raw<'_>) -> Result<SystemTime, String> {
    celery_protocol::time::parse(&text(raw)?).map_err(|error| error.to_string())
}

/// Seconds from when the call is sent, or a point in time.
fn moment(raw: &Raw<'_>) -> Result<Time, String> {
    match raw.decode::<f64>() {
        Ok(_) => seconds(raw).map(Time::In),
        Err(_) => time(raw).map(Time::At),
    }
}

fn named<T>(raw: &Raw<'_>, find: fn(&str) -> Option<T>) -> Result<T, String> {
    let name = text(raw)?;
    find(&name).ok_or_else(|| format!("there is none called {name:?}"))
}

fn in_seconds(time: Duration) -> Value {
    Value::Float(time.as_secs_f64())
}

/// `link` is a list of signatures, or one alone.
fn list(raw: &Raw<'_>) -> Result<Option<Raw<'static>>, String> {
    if raw.elements().is_ok() {
        return Ok(Some(raw.clone().into_owned()));
    }
    Raw::encode(raw.serializer(), &[raw])
        .map(Some)
        .map_err(|error| error.to_string())
}
