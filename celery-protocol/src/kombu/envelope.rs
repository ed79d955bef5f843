//! Encoding and decoding of the envelope.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;

use crate::codec::Serializer;
use crate::codec::json::{self, EncodedKey, JsonReader, KeyMatch};
use crate::error::{DecodeError, EncodeError};
use crate::headers::{Headers, JsonHeaders};
use crate::kombu::base64;
use crate::kombu::properties::EnvelopeProperties;
use crate::message::{Message, Properties};
use crate::value::Value;

/// The destination of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnvelopeRoute<'a> {
    /// The exchange; empty for the default one.
    pub exchange: &'a str,
    /// The routing key; on the default exchange, the name of the queue.
    pub routing_key: &'a str,
}

/// Encodes a message as an envelope of kombu.
///
/// `delivery_tag` must be unique among all messages: consumers record an
/// unacknowledged message under this key.
///
/// # Errors
///
/// Fails if JSON cannot represent a header or property.
pub fn encode(
    message: &Message,
    route: EnvelopeRoute<'_>,
    delivery_tag: &str,
) -> Result<Vec<u8>, EncodeError> {
    let properties = &message.properties;
    let mut out = EnvelopeWriter::new(&message.body);
    out.raw("{\"body\":\"").base64(&message.body).raw("\"");
    out.member(",\"content-encoding\":", &properties.content_encoding)?;
    out.member(",\"content-type\":", &properties.content_type)?;
    out.raw(",\"headers\":");
    let headers = message.headers.write_json(&mut out.buffer);
    headers.map_err(|error| error.in_field("headers"))?;
    write_properties(&mut out, properties, route, delivery_tag)
        .map_err(|error| error.in_field("properties"))?;
    out.raw("}");
    Ok(out.buffer)
}

/// Writes the properties in Python's order. kombu's consumers require
/// `delivery_info`, `priority` and `delivery_tag`.
fn write_properties(
    out: &mut EnvelopeWriter,
    properties: &Properties,
    route: EnvelopeRoute<'_>,
    delivery_tag: &str,
) -> Result<(), EncodeError> {
    out.member(
        ",\"properties\":{\"correlation_id\":",
        &properties.correlation_id,
    )?;
    out.member(",\"reply_to\":", &properties.reply_to)?;
    out.member(
        ",\"delivery_mode\":",
        &properties.delivery_mode.unwrap_or(DELIVERY_MODE_PERSISTENT),
    )?;
    if let Some(expiration) = &properties.expiration {
        out.member(",\"expiration\":", expiration)?;
    }
    out.member(",\"delivery_info\":{\"exchange\":", route.exchange)?;
    out.member(",\"routing_key\":", route.routing_key)?;
    if properties.delivery_info.redelivered {
        out.raw(",\"redelivered\":true");
    }
    for (name, value) in &properties.delivery_info.extra {
        out.entry(name, value)?;
    }
    out.member("},\"priority\":", &properties.priority.unwrap_or_default())?;
    out.member(
        ",\"body_encoding\":\"base64\",\"delivery_tag\":",
        delivery_tag,
    )?;
    for (name, value) in &properties.extra {
        out.entry(name, value)?;
    }
    out.raw("}");
    Ok(())
}

const DELIVERY_MODE_PERSISTENT: u8 = 2;

/// A buffer with the methods to write an envelope.
struct EnvelopeWriter {
    buffer: Vec<u8>,
}

impl EnvelopeWriter {
    fn new(body: &[u8]) -> Self {
        // The size of the names, headers and properties of a typical task.
        const OVERHEAD: usize = 1024;
        let buffer = Vec::with_capacity(OVERHEAD + body.len().div_ceil(3) * 4);
        Self { buffer }
    }

    fn raw(&mut self, text: &str) -> &mut Self {
        self.buffer.extend_from_slice(text.as_bytes());
        self
    }

    fn base64(&mut self, body: &[u8]) -> &mut Self {
        base64::encode(body, &mut self.buffer);
        self
    }

    /// Writes the text before a value, and the value.
    fn member<T: Serialize + ?Sized>(
        &mut self,
        before: &str,
        value: &T,
    ) -> Result<(), EncodeError> {
        self.raw(before);
        Serializer::Json.encode_into(&mut self.buffer, value)
    }

    /// Writes an entry of a map. JSON requires that the name is a text.
    fn entry(&mut self, name: &Value, value: &Value) -> Result<(), EncodeError> {
        let Some(name) = name.as_str() else {
            return Err(EncodeError::new("the name of a property must be a text"));
        };
        self.member(",", name)?;
        self.member(":", value)
    }
}

/// Decodes an envelope.
///
/// The headers share the memory of `raw`, and so does a body without body
/// encoding. Envelopes of other producers are accepted: with `correlationId`
/// and `replyTo`, without `delivery_info`, without encodings. Unknown
/// properties are preserved, unknown entries beside `properties` are dropped.
///
/// # Errors
///
/// Fails if the envelope is malformed or has no body.
pub fn decode(raw: &Bytes) -> Result<Message, DecodeError> {
    let mut envelope = Envelope::default();
    if let Err(error) = envelope.read(raw) {
        return Err(error.in_field("envelope"));
    }
    let Some(body) = envelope.body else {
        return Err(DecodeError::new("an envelope must have this entry").in_field("envelope.body"));
    };
    let EnvelopeProperties {
        properties,
        body_encoding,
        ..
    } = envelope.properties;
    Ok(Message {
        body: decode_body(raw, body, body_encoding.as_deref())?,
        headers: envelope.headers,
        properties: Properties {
            content_type: content_type(envelope.content_type),
            content_encoding: content_encoding(envelope.content_encoding.as_deref()),
            ..properties
        },
    })
}

fn decode_body(
    raw: &Bytes,
    body: Cow<'_, str>,
    encoding: Option<&str>,
) -> Result<Bytes, DecodeError> {
    let failed = |error: DecodeError| error.in_field("envelope.body");
    match encoding {
        Some("base64") => match base64::decode(&body) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(failed(DecodeError::malformed(format!(
                "invalid base64: {error}"
            )))),
        },
        None => Ok(match body {
            Cow::Borrowed(text) => raw.slice_ref(text.as_bytes()),
            Cow::Owned(text) => text.into_bytes().into(),
        }),
        Some(other) => Err(failed(DecodeError::unknown("body encoding", other))),
    }
}

/// The entries of an envelope. The body and the headers are not decoded.
#[derive(Default)]
struct Envelope<'a> {
    body: Option<Cow<'a, str>>,
    content_type: Option<Cow<'a, str>>,
    content_encoding: Option<Cow<'a, str>>,
    headers: Headers,
    properties: EnvelopeProperties<'a>,
}

/// The entries of an envelope that Python writes.
#[derive(Clone, Copy)]
enum EnvelopeEntry {
    Body,
    ContentEncoding,
    ContentType,
    Headers,
    Properties,
}

/// The keys of the entries, in Python's order.
static NAMES: [(EncodedKey, EnvelopeEntry); 5] = [
    (EncodedKey::new("\"body\":"), EnvelopeEntry::Body),
    (
        EncodedKey::new("\"content-encoding\":"),
        EnvelopeEntry::ContentEncoding,
    ),
    (
        EncodedKey::new("\"content-type\":"),
        EnvelopeEntry::ContentType,
    ),
    (EncodedKey::new("\"headers\":"), EnvelopeEntry::Headers),
    (
        EncodedKey::new("\"properties\":"),
        EnvelopeEntry::Properties,
    ),
];

impl<'a> Envelope<'a> {
    #[inline]
    fn read(&mut self, raw: &'a Bytes) -> Result<(), DecodeError> {
        let mut reader = JsonReader::new(json::text(raw)?);
        let mut position = 0;
        let read = reader.entries(|reader| {
            match reader.expected_key(&NAMES, &mut position)? {
                KeyMatch::Known(EnvelopeEntry::Body) => self.body = reader.text()?,
                KeyMatch::Known(EnvelopeEntry::ContentType) => self.content_type = reader.text()?,
                KeyMatch::Known(EnvelopeEntry::ContentEncoding) => {
                    self.content_encoding = reader.text()?
                }
                KeyMatch::Known(EnvelopeEntry::Headers) => {
                    self.headers = read_headers(reader, raw)?
                }
                KeyMatch::Known(EnvelopeEntry::Properties) => self.properties.read(reader)?,
                KeyMatch::Other(_) => {
                    reader.skip()?;
                }
            }
            Ok(())
        });
        read.and_then(|()| reader.end())
            .map_err(|error| json::in_json(error.at_byte(reader.offset())))
    }
}

fn read_headers(reader: &mut JsonReader<'_>, raw: &Bytes) -> Result<Headers, DecodeError> {
    if reader.at_map() {
        return JsonHeaders::read_next(reader, raw).map(Headers::from_indexed_json);
    }
    if reader.null()? {
        return Ok(Headers::empty());
    }
    reader.skip()?;
    Err(DecodeError::new("expected a mapping").in_field("headers"))
}

/// Returns the content type of the body. Without one, kombu does not decode the
/// body; `application/data` has the same effect here, because no serializer
/// decodes it.
fn content_type(found: Option<Cow<'_, str>>) -> Cow<'static, str> {
    let Some(found) = found else {
        return Cow::Borrowed("application/data");
    };
    match Serializer::from_content_type(&found) {
        Some(serializer) => Cow::Borrowed(serializer.content_type()),
        None => Cow::Owned(found.into_owned()),
    }
}

fn content_encoding(found: Option<&str>) -> Cow<'static, str> {
    match found {
        None | Some("utf-8") => Cow::Borrowed("utf-8"),
        Some("binary") => Cow::Borrowed("binary"),
        Some(other) => Cow::Owned(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::encode_body;
    use crate::codec::Accept;
    use crate::embed::Embed;
    use crate::task_headers::TaskHeaders;

    const ROUTE: EnvelopeRoute<'_> = EnvelopeRoute {
        exchange: "",
        routing_key: "celery",
    };

    fn message() -> Message {
        let body = encode_body(Serializer::Json, &(2, 3), &(), &Embed::default()).unwrap();
        Message::task(
            TaskHeaders::new("tasks.add", "id-1"),
            Serializer::Json,
            body,
        )
    }

    fn read(text: &str) -> Result<Message, DecodeError> {
        decode(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn envelope_is_written_in_pythons_order() {
        let text = String::from_utf8(encode(&message(), ROUTE, "tag-1").unwrap()).unwrap();
        let (before, after) = text.split_once("\"headers\":{").unwrap();
        assert!(before.starts_with("{\"body\":\"W1sy"), "{before}");
        assert!(
            before
                .ends_with("\"content-encoding\":\"utf-8\",\"content-type\":\"application/json\",")
        );
        let expected = concat!(
            r#"},"properties":{"correlation_id":"id-1","reply_to":null,"delivery_mode":2,"#,
            r#""delivery_info":{"exchange":"","routing_key":"celery"},"priority":0,"#,
            r#""body_encoding":"base64","delivery_tag":"tag-1"}}"#,
        );
        assert!(after.ends_with(expected), "{after}");
    }

    #[test]
    fn message_is_read_back_from_its_envelope() {
        let mut sent = message();
        sent.properties.reply_to = Some("reply".into());
        sent.properties.expiration = Some("60000".into());
        sent.properties.priority = Some(9);
        sent.properties.extra.insert("mine", "é");
        sent.properties.delivery_info.redelivered = true;
        sent.properties.delivery_info.extra.insert("more", 1);
        let raw = Bytes::from(encode(&sent, ROUTE, "tag-1").unwrap());
        let read = decode(&raw).unwrap();
        sent.properties.delivery_info.routing_key = "celery".into();
        sent.properties.delivery_tag = Some("tag-1".into());
        assert_eq!(read, sent);
    }

    #[test]
    fn headers_and_inline_body_are_not_copied() {
        let raw =
            Bytes::from_static(br#"{"body": "[[],{},{}]", "headers": {"task": "t", "id": "i"}}"#);
        let message = decode(&raw).unwrap();
        let within = raw.as_ptr_range();
        assert!(within.contains(&message.body.as_ptr()));
        let headers = message.headers.task().unwrap().unwrap();
        assert!(within.contains(&headers.task.as_ptr()));
    }

    #[test]
    fn envelope_with_missing_entries_is_read() {
        let message =
            read(r#"{"body": "", "headers": null, "properties": null, "other": [1]}"#).unwrap();
        assert!(message.headers.is_empty() && message.body.is_empty());
        assert_eq!(message.properties.content_encoding, "utf-8");
        assert!(
            message
                .payload(&Accept::json(), 1)
                .unwrap_err()
                .is_refused()
        );

        let text = r#"{"body":"W10","properties":{"body_encoding":"base64","priority":-1,
            "delivery_mode":999,"expiration":60000,"delivery_info":null}}"#;
        let message = read(text).unwrap();
        assert_eq!(&message.body[..], b"[]");
        assert_eq!(message.properties.priority, Some(0));
        assert_eq!(message.properties.delivery_mode, Some(255));
        assert_eq!(message.properties.expiration.as_deref(), Some("60000"));
    }

    #[test]
    fn malformed_envelope_error_names_the_field() {
        let cases = [
            ("", "envelope"),
            ("[]", "envelope"),
            ("{}", "envelope.body"),
            (r#"{"body": 5}"#, "envelope"),
            (r#"{"body": "", "headers": []}"#, "envelope.headers"),
            (r#"{"body": "#, "envelope"),
            (
                r#"{"body": "*", "properties": {"body_encoding": "base64"}}"#,
                "envelope.body",
            ),
            (
                r#"{"body": "", "properties": {"body_encoding": "hex"}}"#,
                "envelope.body",
            ),
        ];
        for (text, field) in cases {
            assert_eq!(read(text).unwrap_err().field(), Some(field), "{text}");
        }
        assert!(decode(&Bytes::from_static(b"{\"body\": \"\xff\"}")).is_err());
    }
}
