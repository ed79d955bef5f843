//! The properties inside an envelope.

use std::borrow::Cow;

use crate::codec::json::{EncodedKey, JsonReader, KeyMatch};
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
    /// Whether they were read before.
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
    /// Reads the properties from an envelope; null stands for none. Of equal
    /// entries the last one counts, with all that is in it.
    pub(super) fn read(&mut self, reader: &mut JsonReader<'a>) -> Result<(), DecodeError> {
        if self.is_read {
            *self = Self::default();
        }
        self.is_read = true;
        if reader.null()? {
            return Ok(());
        }
        let mut place = 0;
        reader.entries(|reader| match reader.expected_key(&NAMES, &mut place)? {
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
            // As celery-node spells them.
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

/// In Python's order.
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

/// In Python's order.
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

/// Numbers of one byte on AMQP; kombu clamps what is beyond.
#[inline]
fn clamped_u8(reader: &mut JsonReader<'_>) -> Result<Option<u8>, DecodeError> {
    let number = reader.integer_or_null()?;
    Ok(number.map(|number| number.clamp(0, u8::MAX.into()) as u8))
}

/// Celery writes a text; a number says the same.
fn expiration_text(value: Value) -> Option<String> {
    match value {
        Value::Str(text) => Some(text),
        number => number.as_i64().map(|number| number.to_string()),
    }
}

/// Reads `delivery_info`; null stands for an empty one.
fn read_delivery_info(
    reader: &mut JsonReader<'_>,
    info: &mut DeliveryInfo,
) -> Result<(), DecodeError> {
    *info = DeliveryInfo::default();
    if reader.null()? {
        return Ok(());
    }
    let mut place = 0;
    reader.entries(|reader| {
        match reader.expected_key(&INFO_NAMES, &mut place)? {
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
