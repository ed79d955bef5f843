//! The message of a broker: headers, properties and an undecoded body.

use std::borrow::Cow;

use bytes::Bytes;

use crate::codec::{Accept, Serializer};
use crate::compression::Compression;
use crate::error::{DecodeError, EncodeError};
use crate::headers::Headers;
use crate::payload::Payload;
use crate::raw::Raw;
use crate::task_headers::{Header, TaskHeaders};
use crate::value::Map;

/// A message of any broker.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// The headers, which contain the metadata of a task of protocol 2.
    pub headers: Headers,
    /// The properties for the transport.
    pub properties: Properties,
    /// The serialized body, compressed if there is a header `compression`.
    pub body: Bytes,
}

impl Message {
    /// Creates a message from its parts.
    pub fn new(headers: Headers, properties: Properties, body: impl Into<Bytes>) -> Self {
        Self {
            headers,
            properties,
            body: body.into(),
        }
    }

    /// Creates the message of a task of protocol 2, whose body was encoded by
    /// [`encode_body`](crate::encode_body) with the same serializer.
    ///
    /// The properties contain the content type of the serializer and the task
    /// id as `correlation_id`, as in Celery.
    pub fn task(
        headers: TaskHeaders<'static>,
        serializer: Serializer,
        body: impl Into<Bytes>,
    ) -> Self {
        let mut properties = Properties::of(serializer);
        properties.correlation_id = Some(headers.id.clone().into_owned());
        Self::new(Headers::from_task(headers), properties, body)
    }

    /// Compresses the body and sets the header `compression`.
    ///
    /// # Errors
    ///
    /// Fails if the feature of the compression is off, or if the headers cannot
    /// be decoded.
    pub fn compress(&mut self, compression: Compression) -> Result<(), EncodeError> {
        let body = compression.compress(&self.body)?;
        let name = compression.content_type();
        let set = self.headers.set("compression", name.into());
        set.map_err(|error| EncodeError::new(error.to_string()).in_field("headers"))?;
        self.body = body.into();
        Ok(())
    }

    /// Returns the decompressed body with the serializer of its content type.
    /// The bytes are borrowed if the body is not compressed.
    ///
    /// # Errors
    ///
    /// Fails if `accept` refuses the content type
    /// ([`is_refused`](DecodeError::is_refused)), if the body is larger than
    /// `limit` bytes ([`is_too_large`](DecodeError::is_too_large)), or if it
    /// cannot be decompressed.
    pub fn payload(&self, accept: &Accept, limit: usize) -> Result<Payload<'_>, DecodeError> {
        let serializer = accept.check(&self.properties.content_type);
        let serializer = serializer.map_err(|error| error.in_field("body"))?;
        let bytes = match self.compression()? {
            Some(compression) => {
                let bytes = compression.decompress(&self.body, limit);
                Cow::Owned(bytes.map_err(|error| error.in_field("body"))?)
            }
            None => Cow::Borrowed(check_size(&self.body, limit)?),
        };
        Ok(Payload::new(serializer, bytes, &self.headers))
    }

    fn compression(&self) -> Result<Option<Compression>, DecodeError> {
        const HEADER: &str = "headers.compression";
        let raw: Raw<'_> = match self.headers.find_known(Header::Compression)? {
            Some(raw) if !raw.is_null() => raw,
            _ => return Ok(None),
        };
        let name: Cow<'_, str> = raw.decode().map_err(|error| error.in_field(HEADER))?;
        match Compression::from_content_type(&name) {
            Some(compression) => Ok(Some(compression)),
            None => Err(DecodeError::unknown("compression", &name).in_field(HEADER)),
        }
    }
}

fn check_size(body: &[u8], limit: usize) -> Result<&[u8], DecodeError> {
    if body.len() <= limit {
        return Ok(body);
    }
    let error = DecodeError::from(crate::error::DecodeErrorKind::TooLarge { limit });
    Err(error.in_field("body"))
}

/// The properties of a message, under their names in AMQP.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Properties {
    /// The content type of the serializer.
    pub content_type: Cow<'static, str>,
    /// `utf-8` or `binary`.
    pub content_encoding: Cow<'static, str>,
    /// The id of the task, or of the request that a reply belongs to.
    pub correlation_id: Option<String>,
    /// The queue to which the backend `rpc://` sends the result.
    pub reply_to: Option<String>,
    /// 2 for messages that survive a restart of the broker, otherwise 1.
    pub delivery_mode: Option<u8>,
    /// The priority. Redis delivers the lowest number first, AMQP the highest.
    pub priority: Option<u8>,
    /// The number of milliseconds after which the broker may drop the message,
    /// as a text.
    pub expiration: Option<String>,
    /// The exchange and routing key of the message.
    pub delivery_info: DeliveryInfo,
    /// The tag by which virtual transports identify a message.
    pub delivery_tag: Option<String>,
    /// All other properties.
    pub extra: Map,
}

impl Properties {
    /// Creates the properties of a persistent message in the given serializer.
    pub fn of(serializer: Serializer) -> Self {
        Self {
            content_type: serializer.content_type().into(),
            content_encoding: serializer.content_encoding().into(),
            correlation_id: None,
            reply_to: None,
            delivery_mode: Some(2),
            priority: None,
            expiration: None,
            delivery_info: DeliveryInfo::default(),
            delivery_tag: None,
            extra: Map::new(),
        }
    }
}

impl Default for Properties {
    fn default() -> Self {
        Self::of(Serializer::Json)
    }
}

/// The exchange and routing key of a message, and whether it was delivered
/// before.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct DeliveryInfo {
    /// The exchange; empty for the default one.
    pub exchange: String,
    /// The routing key; on the default exchange, the name of the queue.
    pub routing_key: String,
    /// Whether an earlier delivery was not acknowledged.
    pub redelivered: bool,
    /// All other entries.
    pub extra: Map,
}

impl DeliveryInfo {
    /// Creates the delivery info of a message that was sent to `exchange` with
    /// `routing_key`.
    pub fn new(exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        Self {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::encode_body;
    use crate::embed::Embed;

    const LIMIT: usize = 1 << 20;

    fn message() -> Message {
        let body = encode_body(Serializer::Json, &(2, 3), &(), &Embed::default()).unwrap();
        Message::task(
            TaskHeaders::new("tasks.add", "id-1"),
            Serializer::Json,
            body,
        )
    }

    #[test]
    fn task_message_has_properties_of_the_task() {
        let message = message();
        assert_eq!(message.properties.correlation_id.as_deref(), Some("id-1"));
        assert_eq!(message.properties.content_type, "application/json");
        assert_eq!(message.properties.delivery_mode, Some(2));
    }

    #[test]
    fn refused_content_type_is_named() {
        let mut message = message();
        message.properties.content_type = "application/x-python-serialize".into();
        let error = message.payload(&Accept::json(), LIMIT).unwrap_err();
        assert!(error.is_refused());
        assert_eq!(error.content_type(), Some("application/x-python-serialize"));
    }

    #[test]
    fn body_above_the_limit_is_rejected() {
        let error = message().payload(&Accept::json(), 10).unwrap_err();
        assert!(error.is_too_large());
        assert_eq!(error.field(), Some("body"));
    }

    #[test]
    fn unknown_compression_is_named() {
        let mut message = message();
        message
            .headers
            .set("compression", "application/x-lz4".into())
            .unwrap();
        let error = message.payload(&Accept::json(), LIMIT).unwrap_err();
        assert_eq!(error.field(), Some("headers.compression"));
        assert!(error.to_string().contains("application/x-lz4"), "{error}");
    }

    #[cfg(feature = "zlib")]
    #[test]
    fn compressed_body_is_read_within_the_limit() {
        let mut message = message();
        message.compress(Compression::Zlib).unwrap();
        let payload = message.payload(&Accept::json(), LIMIT).unwrap();
        assert_eq!(payload.body().unwrap().args.as_json(), Some("[2,3]"));
        assert!(
            message
                .payload(&Accept::json(), 10)
                .unwrap_err()
                .is_too_large()
        );
    }
}
