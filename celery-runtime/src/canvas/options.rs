//! The options of a call, those of Celery's `apply_async`: [`CallOptions`].

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use celery_protocol::{Compression, Embed, Map, Raw, Serializer, Value};

use crate::env::later;

/// The options of a call. All are optional.
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
    /// The reply queue, if it is not that of the sender.
    pub(crate) reply_to: Option<String>,
    pub(crate) group_id: Option<String>,
    pub(crate) group_index: Option<i64>,
    pub(crate) replaced_task_nesting: u32,
    /// The stamps of the task, by which it can be identified and revoked.
    pub(crate) stamps: Map,
    pub(crate) embed: Embed<'static>,
    /// Options of a decoded signature that this crate does not use.
    pub(crate) extra: Map,
}

/// A point in time, or a delay after the call is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Time {
    In(Duration),
    At(SystemTime),
}

impl Time {
    /// Returns the point in time for a call that is sent at `now`.
    pub(crate) fn from(self, now: SystemTime) -> SystemTime {
        match self {
            Self::In(delay) => later(now, delay),
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
    /// Decodes the `options` of a signature.
    ///
    /// # Errors
    ///
    /// Fails if an option has the wrong type; the error names it.
    pub(crate) fn from_wire(options: &Raw<'_>) -> Result<Self, String> {
        let mut call = Self::default();
        let entries = options.entries().map_err(|error| error.to_string())?;
        let set_options = || entries.iter().filter(|(_, raw)| !raw.is_null());
        let stamped = set_options().find(|(name, _)| name == "stamped_headers");
        let stamped: Vec<String> = match stamped {
            Some((name, raw)) => decode(raw).map_err(|cause| option_error(name, &cause))?,
            None => Vec::new(),
        };
        for (name, raw) in set_options() {
            let result = if stamped.iter().any(|stamp| stamp == name) {
                decode(raw).map(|value: Value| drop(call.stamps.insert(&**name, value)))
            } else {
                call.set(name, raw)
            };
            result.map_err(|cause| option_error(name, &cause))?;
        }
        Ok(call)
    }

    /// Sets one option by its name in Celery.
    ///
    /// # Errors
    ///
    /// Fails if the value has the wrong type.
    pub(crate) fn set(&mut self, name: &str, raw: &Raw<'_>) -> Result<(), String> {
        match name {
            "priority" => self.priority = Some(decode(raw)?),
            "retries" => self.retries = decode(raw)?,
            "group_index" => self.group_index = Some(decode(raw)?),
            "ignore_result" => self.ignore_result = Some(decode(raw)?),
            "time_limit" => self.time_limit = Some(seconds(raw)?),
            "soft_time_limit" => self.soft_time_limit = Some(seconds(raw)?),
            "countdown" => self.eta = Some(Time::In(seconds(raw)?)),
            "eta" => self.eta = Some(Time::At(time(raw)?)),
            "expires" => self.expires = Some(time_or_delay(raw)?),
            "serializer" => self.serializer = Some(by_name(raw, Serializer::from_name)?),
            "compression" => self.compression = Some(by_name(raw, Compression::from_name)?),
            "headers" => self.headers = decode(raw)?,
            "link" => self.embed.callbacks = list(raw)?,
            "link_error" => self.embed.errbacks = list(raw)?,
            "chain" => self.embed.chain = list(raw)?,
            "chord" => self.embed.chord = Some(raw.clone().into_owned()),
            "replaced_task_nesting" => self.replaced_task_nesting = decode(raw)?,
            "stamped_headers" => {}
            name => match self.text_option(name) {
                Some(slot) => *slot = Some(text(raw)?),
                None => {
                    self.extra.insert(name, decode::<Value>(raw)?);
                }
            },
        }
        Ok(())
    }

    /// Overrides these options by those that are set in `over`, as Celery does. A group and stamps
    /// that are set already are kept. Callbacks and errbacks are not merged.
    pub(crate) fn overlay(&mut self, over: &Self) {
        macro_rules! override_fields {
            ($($field:ident),*) => {$(
                if over.$field.is_some() {
                    self.$field.clone_from(&over.$field);
                }
            )*};
        }
        override_fields!(
            task_id,
            eta,
            expires,
            queue,
            exchange,
            routing_key,
            priority,
            serializer,
            compression,
            soft_time_limit,
            time_limit,
            shadow,
            ignore_result,
            root_id,
            parent_id,
            reply_to,
            group_index
        );
        if self.group_id.is_none() {
            self.group_id.clone_from(&over.group_id);
        }
        if over.retries > 0 {
            self.retries = over.retries;
        }
        if over.replaced_task_nesting > 0 {
            self.replaced_task_nesting = over.replaced_task_nesting;
        }
        if !over.headers.is_empty() {
            self.headers = over.headers.clone();
        }
        for (name, value) in over.extra.iter() {
            self.extra.insert(name.clone(), value.clone());
        }
        if self.stamps.is_empty() {
            self.stamps = over.stamps.clone();
        }
    }

    /// Returns the field of a text option by name.
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

    /// Adds the options to `wire` by their names in Celery, except those that are signatures.
    pub(crate) fn write_wire(&self, wire: &mut Map) {
        let text = |text: &Option<String>| text.as_deref().map(Value::from);
        let count = |count: u32| (count > 0).then(|| Value::Int(count.into()));
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
            (
                "serializer",
                self.serializer.map(|value| value.name().into()),
            ),
            (
                "compression",
                self.compression.map(|value| value.name().into()),
            ),
            ("headers", headers),
            ("retries", count(self.retries)),
            ("replaced_task_nesting", count(self.replaced_task_nesting)),
            ("reply_to", text(&self.reply_to)),
            ("root_id", text(&self.root_id)),
            ("parent_id", text(&self.parent_id)),
            ("group_id", text(&self.group_id)),
            ("group_index", self.group_index.map(Value::Int)),
        ];
        for (name, value) in entries {
            if let Some(value) = value {
                wire.insert(name, value);
            }
        }
        for (name, value) in self.extra.iter() {
            wire.insert(name.clone(), value.clone());
        }
        if !self.stamps.is_empty() {
            let names: Vec<_> = self.stamps.keys().cloned().collect();
            wire.insert("stamped_headers", names);
            for (name, value) in self.stamps.iter() {
                wire.insert(name.clone(), value.clone());
            }
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(raw: &Raw<'_>) -> Result<T, String> {
    raw.decode().map_err(|error| error.to_string())
}

fn text(raw: &Raw<'_>) -> Result<String, String> {
    raw.decode::<Cow<'_, str>>()
        .map(Cow::into_owned)
        .map_err(|error| error.to_string())
}

fn seconds(raw: &Raw<'_>) -> Result<Duration, String> {
    Duration::try_from_secs_f64(decode(raw)?).map_err(|error| error.to_string())
}

fn time(raw: &Raw<'_>) -> Result<SystemTime, String> {
    celery_protocol::time::parse(&text(raw)?).map_err(|error| error.to_string())
}

/// Decodes a delay in seconds, or a point in time.
fn time_or_delay(raw: &Raw<'_>) -> Result<Time, String> {
    match raw.decode::<f64>() {
        Ok(_) => seconds(raw).map(Time::In),
        Err(_) => time(raw).map(Time::At),
    }
}

fn by_name<T>(raw: &Raw<'_>, find: fn(&str) -> Option<T>) -> Result<T, String> {
    let name = text(raw)?;
    find(&name).ok_or_else(|| format!("unknown name {name:?}"))
}

fn option_error(name: &str, cause: &str) -> String {
    format!("cannot read option {name} of a signature: {cause}")
}

fn in_seconds(time: Duration) -> Value {
    Value::Float(time.as_secs_f64())
}

/// Decodes a list of signatures. A single signature is a list of one.
fn list(raw: &Raw<'_>) -> Result<Option<Raw<'static>>, String> {
    if raw.elements().is_ok() {
        return Ok(Some(raw.clone().into_owned()));
    }
    Raw::encode(raw.serializer(), &[raw])
        .map(Some)
        .map_err(|error| error.to_string())
}
