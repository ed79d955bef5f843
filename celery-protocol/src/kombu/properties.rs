//! Decoding of the properties in an envelope.

use std::borrow::Cow;

use crate::codec::json::{EncodedKey, JsonReader, KeyMatch};
use crate::error::DecodeError;
use crate::message::{DeliveryInfo, Properties};
use crate::value::Value;

/// The properties in an envelope. They include the encoding of the body; the
/// content type and content encoding are separate entries of the envelope.
#[derive(Debug)]
pub(super) struct EnvelopeProperties<'a> {
    pub(super) properties: Properties,
    /// The encoding of the body in the envelope.
    pub(super) body_encoding: Option<Cow<'a, str>>,
    /// Whether properties were read already.
    is_read: bool,
}

impl Default for EnvelopeProperties<'_> {
    #[inline]
    fn default() -> Self {
        let properties = Properties {
            delivery_mode: None,
            ..Properties::default()
        };
        Self {
            properties,
            body_encoding: None,
            is_read: false,
        }
    }
}

impl<'a> EnvelopeProperties<'a> {
    /// Reads the properties of an envelope; null means no properties. If the
    /// entry occurs twice, the second one replaces the first completely.
    pub(super) fn read(&mut self, reader: &mut JsonReader<'a>) -> Result<(), DecodeError> {
        if self.is_read {
            *self = Self::default();
        }
        self.is_read = true;
        if reader.null()? {
            return Ok(());
        }
        let mut position = 0;
        reader.entries(|reader| match reader.expected_key(&NAMES, &mut position)? {
            KeyMatch::Known(property) => self.read_known(property, reader),
            KeyMatch::Other(name) => self.read_other(&name, reader),
        })
    }

    #[inline]
    fn read_known(
        &mut self,
        property: Property,
        reader: &mut JsonReader<'a>,
    ) -> Result<(), DecodeError> {
        let properties = &mut self.properties;
        match property {
            Property::CorrelationId => properties.correlation_id = text(reader)?,
            Property::ReplyTo => properties.reply_to = text(reader)?,
            Property::DeliveryMode => properties.delivery_mode = clamped_u8(reader)?,
            Property::DeliveryInfo => read_delivery_info(reader, &mut properties.delivery_info)?,
            Property::Priority => properties.priority = clamped_u8(reader)?,
            Property::BodyEncoding => self.body_encoding = reader.text()?,
            Property::DeliveryTag => properties.delivery_tag = text(reader)?,
        }
        Ok(())
    }

    fn read_other(&mut self, name: &str, reader: &mut JsonReader<'a>) -> Result<(), DecodeError> {
        let properties = &mut self.properties;
        match name {
            // The names that celery-node writes.
            "correlationId" => properties.correlation_id = text(reader)?,
            "replyTo" => properties.reply_to = text(reader)?,
            "expiration" => properties.expiration = expiration_text(reader.value()?),
            _ => {
                properties.extra.insert(name, reader.value::<Value>()?);
            }
        }
        Ok(())
    }
}

/// The properties that Python always writes.
#[derive(Clone, Copy, Debug)]
enum Property {
    CorrelationId,
    ReplyTo,
    DeliveryMode,
    DeliveryInfo,
    Priority,
    BodyEncoding,
    DeliveryTag,
}

/// The keys of the properties, in Python's order.
static NAMES: [(EncodedKey, Property); 7] = [
    (
        EncodedKey::new("\"correlation_id\":"),
        Property::CorrelationId,
    ),
    (EncodedKey::new("\"reply_to\":"), Property::ReplyTo),
    (
        EncodedKey::new("\"delivery_mode\":"),
        Property::DeliveryMode,
    ),
    (
        EncodedKey::new("\"delivery_info\":"),
        Property::DeliveryInfo,
    ),
    (EncodedKey::new("\"priority\":"), Property::Priority),
    (
        EncodedKey::new("\"body_encoding\":"),
        Property::BodyEncoding,
    ),
    (EncodedKey::new("\"delivery_tag\":"), Property::DeliveryTag),
];

/// The entries of `delivery_info` that Python always writes.
#[derive(Clone, Copy, Debug)]
enum DeliveryInfoEntry {
    Exchange,
    RoutingKey,
}

/// The keys of `delivery_info`, in Python's order.
static INFO_NAMES: [(EncodedKey, DeliveryInfoEntry); 2] = [
    (
        EncodedKey::new("\"exchange\":"),
        DeliveryInfoEntry::Exchange,
    ),
    (
        EncodedKey::new("\"routing_key\":"),
        DeliveryInfoEntry::RoutingKey,
    ),
];

#[inline]
fn text(reader: &mut JsonReader<'_>) -> Result<Option<String>, DecodeError> {
    Ok(reader.text()?.map(Cow::into_owned))
}

/// Reads a number of one byte; kombu clamps numbers outside the range.
#[inline]
fn clamped_u8(reader: &mut JsonReader<'_>) -> Result<Option<u8>, DecodeError> {
    let number = reader.integer_or_null()?;
    Ok(number.map(|number| number.clamp(0, u8::MAX.into()) as u8))
}

/// Returns the expiration as a text. Celery writes a text; a number is also
/// accepted.
fn expiration_text(value: Value) -> Option<String> {
    match value {
        Value::Str(text) => Some(text),
        number => number.as_i64().map(|number| number.to_string()),
    }
}

/// Reads `delivery_info`; null means an empty one.
fn read_delivery_info(
    reader: &mut JsonReader<'_>,
    info: &mut DeliveryInfo,
) -> Result<(), DecodeError> {
    *info = DeliveryInfo::default();
    if reader.null()? {
        return Ok(());
    }
    let mut position = 0;
    reader.entries(|reader| {
        match reader.expected_key(&INFO_NAMES, &mut position)? {
            KeyMatch::Known(DeliveryInfoEntry::Exchange) => {
                info.exchange = text(reader)?.unwrap_or_default()
            }
            KeyMatch::Known(DeliveryInfoEntry::RoutingKey) => {
                info.routing_key = text(reader)?.unwrap_or_default()
            }
            KeyMatch::Other(name) if name == "redelivered" => {
                let redelivered: Option<bool> = reader.value()?;
                info.redelivered = redelivered.unwrap_or_default();
            }
            KeyMatch::Other(name) => {
                info.extra.insert(&*name, reader.value::<Value>()?);
            }
        }
        Ok(())
    })
}
