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
            "task_id" => self.task_id = Some(text(raw)?),
            "queue" => self.queue = Some(text(raw)?),
            "exchange" => self.exchange = Some(text(raw)?),
            "routing_key" => self.routing_key = Some(text(raw)?),
            "shadow" => self.shadow = Some(text(raw)?),
            "root_id" => self.root_id = Some(text(raw)?),
            "parent_id" => self.parent_id = Some(text(raw)?),
            "group_id" => self.group_id = Some(text(raw)?),
            "group_index" => self.group_index = Some(read(raw)?),
            "priority" => self.priority = Some(read(raw)?),
            "retries" => self.retries = read(raw)?,
            "ignore_result" => self.ignore_result = Some(read(raw)?),
            "time_limit" => self.time_limit = Some(seconds(raw)?),
            "soft_time_limit" => self.soft_time_limit = Some(seconds(raw)?),
            "countdown" => self.eta = Some(Time::In(seconds(raw)?)),
            "eta" => self.eta = Some(Time::At(time(raw)?)),
            "expires" => {
                self.expires = Some(match raw.decode::<f64>() {
                    Ok(_) => Time::In(seconds(raw)?),
                    Err(_) => Time::At(time(raw)?),
                });
            }
            "serializer" => {
                let name = text(raw)?;
                self.serializer = Some(
                    Serializer::from_name(&name)
                        .ok_or_else(|| format!("no serializer {name:?}"))?,
                );
            }
            "compression" => {
                let name = text(raw)?;
                self.compression = Some(
                    Compression::from_name(&name)
                        .ok_or_else(|| format!("no compression {name:?}"))?,
                );
            }
            "headers" => match raw.to_value().map_err(|error| error.to_string())? {
                Value::Map(map) => self.headers = map,
                other => return Err(format!("expected a map, found {other:?}")),
            },
            "link" => self.embed.callbacks = list(raw)?,
            "link_error" => self.embed.errbacks = list(raw)?,
            _ => {}
        }
        Ok(())
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

/// `link` is a list of signatures, or one alone.
fn list(raw: &Raw<'_>) -> Result<Option<Raw<'static>>, String> {
    if raw.elements().is_ok() {
        return Ok(Some(raw.clone().into_owned()));
    }
    Raw::encode(raw.serializer(), &[raw])
        .map(Some)
        .map_err(|error| error.to_string())
}
