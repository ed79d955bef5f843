//! The properties inside an envelope.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::message::{DeliveryInfo, Properties};
use crate::text::Text;
use crate::value::{Map, Value};

/// Properties as they lie in an envelope, where the two content properties are
/// elsewhere and the encoding of the body is one more.
#[derive(Debug)]
pub(super) struct EnvelopeProperties<'a> {
    pub(super) properties: Properties,
    /// How the body is written into the envelope.
    pub(super) body_encoding: Option<Cow<'a, str>>,
}

impl Default for EnvelopeProperties<'_> {
    fn default() -> Self {
        let properties = Properties {
            delivery_mode: None,
            ..Properties::default()
        };
        Self {
            properties,
            body_encoding: None,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for EnvelopeProperties<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PropertiesVisitor)
    }
}

struct PropertiesVisitor;

impl<'de> Visitor<'de> for PropertiesVisitor {
    type Value = EnvelopeProperties<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of properties")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = EnvelopeProperties::default();
        let properties = &mut found.properties;
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                // The second spelling is celery-node's.
                "correlation_id" | "correlationId" => {
                    properties.correlation_id = map.next_value()?
                }
                "reply_to" | "replyTo" => properties.reply_to = map.next_value()?,
                "delivery_mode" => properties.delivery_mode = small(map.next_value()?),
                "priority" => properties.priority = small(map.next_value()?),
                "expiration" => properties.expiration = milliseconds(map.next_value()?),
                "delivery_info" => {
                    let info: Option<ReadInfo> = map.next_value()?;
                    properties.delivery_info = info.unwrap_or_default().0;
                }
                "delivery_tag" => properties.delivery_tag = map.next_value()?,
                "body_encoding" => {
                    let encoding: Option<Text<'de>> = map.next_value()?;
                    found.body_encoding = encoding.map(|Text(encoding)| encoding);
                }
                _ => {
                    let value: Value = map.next_value()?;
                    properties.extra.insert(&*name, value);
                }
            }
        }
        Ok(found)
    }
}

/// Numbers of one byte on AMQP; kombu clamps what is beyond.
fn small(number: Option<i64>) -> Option<u8> {
    number.map(|number| number.clamp(0, u8::MAX.into()) as u8)
}

/// Celery writes a text; a number says the same.
fn milliseconds(value: Value) -> Option<String> {
    match value {
        Value::Str(text) => Some(text),
        number => number.as_i64().map(|number| number.to_string()),
    }
}

#[derive(Default)]
struct ReadInfo(DeliveryInfo);

impl<'de> Deserialize<'de> for ReadInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InfoVisitor)
    }
}

struct InfoVisitor;

impl<'de> Visitor<'de> for InfoVisitor {
    type Value = ReadInfo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping with exchange and routing_key")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ReadInfo, A::Error> {
        let mut info = DeliveryInfo::default();
        let mut extra = Map::new();
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                "exchange" => info.exchange = or_default(map.next_value()?),
                "routing_key" => info.routing_key = or_default(map.next_value()?),
                "redelivered" => info.redelivered = or_default(map.next_value()?),
                _ => {
                    let value: Value = map.next_value()?;
                    extra.insert(&*name, value);
                }
            }
        }
        info.extra = extra;
        Ok(ReadInfo(info))
    }
}

fn or_default<T: Default>(value: Option<T>) -> T {
    value.unwrap_or_default()
}
