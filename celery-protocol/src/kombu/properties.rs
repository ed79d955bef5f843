//! The properties inside an envelope.

use std::borrow::Cow;

use crate::codec::json::Reader;
use crate::error::DecodeError;
use crate::message::{DeliveryInfo, Properties};
use crate::value::Value;

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

impl<'a> EnvelopeProperties<'a> {
    /// Reads the properties from an envelope; null stands for none.
    pub(super) fn read(&mut self, reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        *self = Self::default();
        if reader.null()? {
            return Ok(());
        }
        let mut place = 0;
        reader.entries(|reader| {
            let name = reader.name_near(&NAMES, &mut place)?;
            self.read_one(&name, reader)
        })
    }

    #[inline]
    fn read_one(&mut self, name: &str, reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        let properties = &mut self.properties;
        match name {
            // The second spelling is celery-node's.
            "correlation_id" | "correlationId" => properties.correlation_id = text(reader)?,
            "reply_to" | "replyTo" => properties.reply_to = text(reader)?,
            "delivery_mode" => properties.delivery_mode = small(reader.value()?),
            "priority" => properties.priority = small(reader.value()?),
            "expiration" => properties.expiration = milliseconds(reader.value()?),
            "delivery_info" => properties.delivery_info = delivery_info(reader)?,
            "delivery_tag" => properties.delivery_tag = text(reader)?,
            "body_encoding" => self.body_encoding = reader.text()?,
            _ => {
                properties.extra.insert(name, reader.value::<Value>()?);
            }
        }
        Ok(())
    }
}

/// In Python's order.
const NAMES: [&str; 7] = [
    "\"correlation_id\":",
    "\"reply_to\":",
    "\"delivery_mode\":",
    "\"delivery_info\":",
    "\"priority\":",
    "\"body_encoding\":",
    "\"delivery_tag\":",
];

const INFO_NAMES: [&str; 2] = ["\"exchange\":", "\"routing_key\":"];

fn text(reader: &mut Reader<'_>) -> Result<Option<String>, DecodeError> {
    Ok(reader.text()?.map(Cow::into_owned))
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

fn delivery_info(reader: &mut Reader<'_>) -> Result<DeliveryInfo, DecodeError> {
    let mut info = DeliveryInfo::default();
    if reader.null()? {
        return Ok(info);
    }
    let mut place = 0;
    reader.entries(|reader| {
        match &*reader.name_near(&INFO_NAMES, &mut place)? {
            "exchange" => info.exchange = text(reader)?.unwrap_or_default(),
            "routing_key" => info.routing_key = text(reader)?.unwrap_or_default(),
            "redelivered" => {
                let redelivered: Option<bool> = reader.value()?;
                info.redelivered = redelivered.unwrap_or_default();
            }
            name => {
                info.extra.insert(name, reader.value::<Value>()?);
            }
        }
        Ok(())
    })?;
    Ok(info)
}
