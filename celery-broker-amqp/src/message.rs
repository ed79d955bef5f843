//! Conversion between Celery's messages and AMQP's. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use celery_protocol::{DeliveryInfo, Headers, Map, Message, Properties, Value};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::table::{EncodeError, decode_table, encode_table, short_string};

/// The headers that RabbitMQ adds to the messages of a quorum queue: how often a
/// consumer has failed with it, and, from RabbitMQ 4 on, how often it was delivered.
const DELIVERY_COUNT_HEADERS: [&str; 2] = ["x-delivery-count", "x-acquired-count"];

/// The header that marks a message as published again to the end of its queue,
/// which the server counts as a new message.
const REQUEUED_HEADER: &str = "x-celery-requeued";

/// The longest expiration in milliseconds that RabbitMQ accepts, 49.7 days.
const MAX_EXPIRATION: u64 = u32::MAX as u64;

/// Encodes the properties and headers of a message.
///
/// # Errors
///
/// Returns an error if a header or property cannot be encoded in AMQP.
pub(crate) fn encode(message: &Message) -> Result<BasicProperties, EncodeError> {
    let source = &message.properties;
    let headers = message
        .headers
        .to_map()
        .map_err(|error| error.to_string())?;
    let mut properties = BasicProperties::default()
        .with_content_type(short_string(&source.content_type)?)
        .with_content_encoding(short_string(&source.content_encoding)?)
        .with_headers(encode_table(&headers)?)
        .with_delivery_mode(source.delivery_mode.unwrap_or(2));
    if let Some(priority) = source.priority {
        properties = properties.with_priority(priority);
    }
    if let Some(id) = &source.correlation_id {
        properties = properties.with_correlation_id(short_string(id)?);
    }
    if let Some(queue) = &source.reply_to {
        properties = properties.with_reply_to(short_string(queue)?);
    }
    // RabbitMQ refuses longer ones and closes the channel. Workers discard the expired
    // task by its header.
    let is_accepted = |text: &&String| text.parse::<u64>().is_ok_and(|time| time <= MAX_EXPIRATION);
    if let Some(milliseconds) = source.expiration.as_ref().filter(is_accepted) {
        properties = properties.with_expiration(short_string(milliseconds)?);
    }
    encode_extra(properties, &source.extra)
}

/// Encodes the properties that Celery does not use and other clients may.
fn encode_extra(
    mut properties: BasicProperties,
    extra: &Map,
) -> Result<BasicProperties, EncodeError> {
    let text = |name: &str| {
        extra
            .get(name)
            .and_then(Value::as_str)
            .map(short_string)
            .transpose()
    };
    if let Some(id) = text("message_id")? {
        properties = properties.with_message_id(id);
    }
    if let Some(kind) = text("type")? {
        properties = properties.with_type(kind);
    }
    if let Some(app) = text("app_id")? {
        properties = properties.with_app_id(app);
    }
    if let Some(time) = extra.get("timestamp").and_then(Value::as_u64) {
        properties = properties.with_timestamp(time);
    }
    Ok(properties)
}

/// Decodes a received message. Also returns how often RabbitMQ has delivered it
/// before, which only quorum queues count: the larger one of both counts.
pub(crate) fn decode(
    properties: &BasicProperties,
    mut info: DeliveryInfo,
    body: Bytes,
) -> (Message, Option<u32>) {
    let string = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    let empty = FieldTable::default();
    let mut headers = decode_table(properties.headers().as_ref().unwrap_or(&empty));
    let counts = DELIVERY_COUNT_HEADERS.map(|name| headers.remove(name));
    let count = counts.iter().flatten().filter_map(Value::as_u64).max();
    info.redelivered |= headers.remove(REQUEUED_HEADER).is_some();

    let mut target = Properties::default();
    // kombu's defaults for a message without these properties.
    target.content_type =
        string(properties.content_type()).map_or("application/data".into(), Into::into);
    target.content_encoding =
        string(properties.content_encoding()).map_or("utf-8".into(), Into::into);
    target.correlation_id = string(properties.correlation_id());
    target.reply_to = string(properties.reply_to());
    target.delivery_mode = *properties.delivery_mode();
    target.priority = *properties.priority();
    target.expiration = string(properties.expiration());
    target.delivery_info = info;
    target.extra = decode_extra(properties);
    let message = Message::new(Headers::from_map(headers), target, body);
    (
        message,
        count.map(|count| count.min(u32::MAX.into()) as u32),
    )
}

/// Returns the properties for publishing a message to the end of its queue, with
/// the mark that it was delivered before.
pub(crate) fn requeued(properties: &BasicProperties) -> BasicProperties {
    let requeued = copy_properties(properties, |name| !DELIVERY_COUNT_HEADERS.contains(&name));
    let mut headers = requeued.headers().clone().unwrap_or_default();
    headers.insert(REQUEUED_HEADER.into(), AMQPValue::Boolean(true));
    let requeued = requeued.with_headers(headers);
    match properties.expiration() {
        Some(expiration) => requeued.with_expiration(expiration.clone()),
        None => requeued,
    }
}

/// Returns the properties for publishing a deferred message.
///
/// They omit the dead-letter history, because RabbitMQ would treat a second
/// delay as a dead-letter cycle, and the expiration, which would count from the
/// start again: the worker uses the header `expires` instead.
pub(crate) fn deferred(properties: &BasicProperties) -> BasicProperties {
    copy_properties(properties, |name| {
        !(DELIVERY_COUNT_HEADERS.contains(&name)
            || name == "x-death"
            || name.starts_with("x-first-death-")
            || name.starts_with("x-last-death-"))
    })
}

/// Copies the properties with the headers that `keep` selects. The user id is
/// omitted, because RabbitMQ accepts it only from that user.
fn copy_properties(properties: &BasicProperties, keep: impl Fn(&str) -> bool) -> BasicProperties {
    let mut copy = BasicProperties::default();
    if let Some(headers) = properties.headers() {
        let headers = headers.inner().iter();
        let headers = headers.filter(|(name, _)| keep(name.as_str()));
        let headers: BTreeMap<_, _> = headers
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        copy = copy.with_headers(headers.into());
    }
    macro_rules! copy {
        ($($field:ident, $with:ident;)*) => {
            $(if let Some(value) = properties.$field() {
                copy = copy.$with(value.clone());
            })*
        };
    }
    copy! {
        content_type, with_content_type;
        content_encoding, with_content_encoding;
        delivery_mode, with_delivery_mode;
        priority, with_priority;
        correlation_id, with_correlation_id;
        reply_to, with_reply_to;
        message_id, with_message_id;
        timestamp, with_timestamp;
        kind, with_type;
        app_id, with_app_id;
        cluster_id, with_cluster_id;
    }
    copy
}

/// Decodes the properties that Celery does not use and other clients may.
fn decode_extra(properties: &BasicProperties) -> Map {
    let mut extra = Map::new();
    for (name, value) in [
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("app_id", properties.app_id()),
    ] {
        if let Some(value) = value {
            extra.insert(name, value.as_str());
        }
    }
    if let Some(time) = properties.timestamp() {
        extra.insert(
            "timestamp",
            Value::Int(i64::try_from(*time).unwrap_or(i64::MAX)),
        );
    }
    extra
}

#[cfg(test)]
mod tests {
    use celery_protocol::TaskHeaders;

    use super::*;

    fn message() -> Message {
        let mut properties = Properties::default();
        properties.correlation_id = Some("id-1".to_owned());
        properties.reply_to = Some("replies".to_owned());
        properties.priority = Some(3);
        properties.expiration = Some("60000".to_owned());
        properties.extra.insert("app_id", "app");
        let headers = Headers::from_task(TaskHeaders::new("tasks.add", "id-1"));
        Message::new(headers, properties, &b"[[], {}, {}]"[..])
    }

    /// The headers by name, because a table does not keep their order.
    fn by_name(message: &Message) -> BTreeMap<String, Value> {
        let headers = message.headers.to_map().unwrap();
        let name = |key: &Value| key.as_str().unwrap_or_default().to_owned();
        headers
            .iter()
            .map(|(key, value)| (name(key), value.clone()))
            .collect()
    }

    #[test]
    fn encoded_message_decodes_to_the_same_message() {
        let sent = message();
        let encoded = encode(&sent).unwrap();
        let (decoded, count) = decode(&encoded, DeliveryInfo::default(), sent.body.clone());
        assert_eq!(by_name(&decoded), by_name(&sent));
        assert_eq!(decoded.properties, sent.properties);
        assert_eq!(count, None);
    }

    #[test]
    fn delivery_count_is_the_larger_header_and_no_task_header() {
        for (delivered, acquired, expected) in [
            (Some(2), None, Some(2)),
            (Some(1), Some(3), Some(3)),
            (Some(4), Some(3), Some(4)),
            (None, Some(1), Some(1)),
            (None, None, None),
        ] {
            let mut sent = message();
            for (name, count) in DELIVERY_COUNT_HEADERS.iter().zip([delivered, acquired]) {
                if let Some(count) = count {
                    sent.headers.set(name, Value::Int(count)).unwrap();
                }
            }
            let encoded = encode(&sent).unwrap();
            let (decoded, count) = decode(&encoded, DeliveryInfo::default(), Bytes::new());
            assert_eq!(count, expected);
            assert_eq!(by_name(&decoded), by_name(&message()));
        }
    }

    #[test]
    fn requeued_message_is_redelivered_and_otherwise_unchanged() {
        let sent = message();
        let encoded = requeued(&encode(&sent).unwrap());
        let (decoded, _) = decode(&encoded, DeliveryInfo::default(), sent.body.clone());
        assert!(decoded.properties.delivery_info.redelivered);
        assert_eq!(by_name(&decoded), by_name(&sent));
        let with_mark = requeued(&encoded);
        assert_eq!(with_mark.headers(), encoded.headers());
    }

    #[test]
    fn message_without_properties_has_kombus_defaults() {
        let (decoded, _) = decode(
            &BasicProperties::default(),
            DeliveryInfo::default(),
            Bytes::new(),
        );
        assert_eq!(decoded.properties.content_type, "application/data");
        assert!(decoded.headers.is_empty());
    }
}
