//! Remote control: requests to workers and their replies.
//!
//! A request is published to the fanout exchange `celery.pidbox` and reaches
//! the mailbox of every worker. The workers that the request addresses reply to
//! the exchange and routing key in the request, if it has them.

use crate::codec::{Accept, Serializer};
use crate::error::{DecodeError, EncodeError};
use crate::headers::Headers;
use crate::message::{Message, Properties};
use crate::value::{Map, Value};

/// The maximum size of the body of a request or reply, in bytes.
const MAX_BODY_SIZE: usize = 16 << 20;

/// A request to workers: a control or inspect command.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ControlRequest {
    /// The name of the command, such as `ping`.
    pub method: String,
    /// The arguments of the command.
    pub arguments: Map,
    /// The names of the addressed workers; all workers if empty.
    pub destination: Vec<String>,
    /// The pattern of the names of the addressed workers, used if there is no
    /// destination.
    pub pattern: Option<String>,
    /// The syntax of `pattern`: `glob` or `pcre`.
    pub matcher: Option<String>,
    /// An id that replies repeat, which assigns them to this request.
    pub ticket: Option<String>,
    /// The address for replies; without it, workers do not reply.
    pub reply_to: Option<ReplyAddress>,
    /// The sender's logical clock.
    pub clock: u64,
    /// The Unix time at which the sender stops waiting for replies; 0 if
    /// unknown.
    pub expires: f64,
}

/// The address for the replies to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplyAddress {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

/// The reply of one worker.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ControlReply {
    /// The name of the worker.
    pub node: String,
    /// The value of the reply.
    pub value: Value,
    /// The ticket of the request.
    pub ticket: Option<String>,
    /// The worker's logical clock.
    pub clock: u64,
}

impl ControlRequest {
    /// Creates a request to all workers without arguments and without a reply
    /// address.
    pub fn new(method: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            ..Self::default()
        }
    }

    /// Reads a request.
    ///
    /// # Errors
    ///
    /// Fails if the body is not JSON, or not a map with a text under `method`.
    pub fn read(message: &Message) -> Result<Self, DecodeError> {
        let body = decode_body(message)?;
        let Some(body) = body.as_map() else {
            return Err(DecodeError::new("a control message must be a map").in_field("body"));
        };
        let method = text(body, "method").ok_or_else(|| {
            DecodeError::new("a control message must have the name of the command")
                .in_field("body.method")
        })?;
        let arguments = match body.get("arguments") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Map(arguments)) => arguments.clone(),
            Some(_) => {
                let error = DecodeError::new("arguments must be a map");
                return Err(error.in_field("body.arguments"));
            }
        };
        let reply_to = body
            .get("reply_to")
            .and_then(Value::as_map)
            .map(ReplyAddress::read);
        Ok(Self {
            method,
            arguments,
            destination: texts(body.get("destination")),
            pattern: text(body, "pattern"),
            matcher: text(body, "matcher"),
            ticket: text(body, "ticket"),
            reply_to,
            clock: clock(message),
            expires: header(message, "expires")
                .and_then(|expires| expires.as_f64())
                .unwrap_or(0.0),
        })
    }

    /// Writes the request.
    ///
    /// # Errors
    ///
    /// Fails if JSON cannot represent an argument.
    pub fn write(&self) -> Result<Message, EncodeError> {
        let mut body = Map::new();
        body.insert("method", self.method.as_str());
        body.insert("arguments", Value::Map(self.arguments.clone()));
        let destination = match &*self.destination {
            [] => Value::Null,
            names => Value::Array(
                names
                    .iter()
                    .map(|name| Value::from(name.as_str()))
                    .collect(),
            ),
        };
        body.insert("destination", destination);
        body.insert("pattern", optional(self.pattern.as_deref()));
        body.insert("matcher", optional(self.matcher.as_deref()));
        if let Some(ticket) = &self.ticket {
            body.insert("ticket", ticket.as_str());
        }
        if let Some(address) = &self.reply_to {
            body.insert("reply_to", Value::Map(address.write()));
        }
        let mut headers = Map::new();
        headers.insert("clock", self.clock);
        headers.insert("expires", self.expires);
        json_message(headers, &Value::Map(body), 2)
    }
}

impl ReplyAddress {
    /// Creates the address of a queue that is bound to `exchange` with
    /// `routing_key`.
    pub fn new(exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        Self {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
        }
    }

    fn read(map: &Map) -> Self {
        let part = |name| text(map, name).unwrap_or_default();
        Self::new(part("exchange"), part("routing_key"))
    }

    fn write(&self) -> Map {
        let mut map = Map::new();
        map.insert("exchange", self.exchange.as_str());
        map.insert("routing_key", self.routing_key.as_str());
        map
    }
}

impl ControlReply {
    /// Creates the reply of the worker `node`.
    pub fn new(node: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            node: node.into(),
            value: value.into(),
            ticket: None,
            clock: 0,
        }
    }

    /// Reads a reply.
    ///
    /// # Errors
    ///
    /// Fails if the body is not JSON, or not a map from the name of a worker to
    /// its reply.
    pub fn read(message: &Message) -> Result<Self, DecodeError> {
        let body = decode_body(message)?;
        let mut entries = body.as_map().into_iter().flat_map(Map::iter);
        let (node, value) = entries.next().ok_or_else(|| {
            DecodeError::new(
                "a control reply must be a map from the name of the worker to its reply",
            )
            .in_field("body")
        })?;
        Ok(Self {
            node: node.as_str().unwrap_or_default().to_owned(),
            value: value.clone(),
            ticket: header(message, "ticket")
                .and_then(|ticket| ticket.as_str().map(ToOwned::to_owned)),
            clock: clock(message),
        })
    }

    /// Writes the reply.
    ///
    /// # Errors
    ///
    /// Fails if JSON cannot represent the reply.
    pub fn write(&self) -> Result<Message, EncodeError> {
        let mut body = Map::new();
        body.insert(self.node.as_str(), self.value.clone());
        let mut headers = Map::new();
        headers.insert("ticket", optional(self.ticket.as_deref()));
        headers.insert("clock", self.clock);
        json_message(headers, &Value::Map(body), 1)
    }
}

/// Creates a JSON message in the form in which kombu writes messages other than
/// tasks.
pub(crate) fn json_message(
    headers: Map,
    body: &Value,
    delivery_mode: u8,
) -> Result<Message, EncodeError> {
    let mut properties = Properties::of(Serializer::Json);
    properties.delivery_mode = Some(delivery_mode);
    properties.priority = Some(0);
    let body = Serializer::Json.encode(body)?;
    Ok(Message::new(Headers::from_map(headers), properties, body))
}

/// Decodes the body of a control message or event.
pub(crate) fn decode_body(message: &Message) -> Result<Value, DecodeError> {
    let payload = message.payload(&Accept::json(), MAX_BODY_SIZE)?;
    let body = payload.serializer().decode(payload.bytes());
    body.map_err(|error| error.in_field("body"))
}

fn clock(message: &Message) -> u64 {
    header(message, "clock")
        .and_then(|clock| clock.as_u64())
        .unwrap_or(0)
}

fn header(message: &Message, name: &str) -> Option<Value> {
    message.headers.find(name).ok()??.to_value().ok()
}

fn text(map: &Map, name: &str) -> Option<String> {
    map.get(name).and_then(Value::as_str).map(ToOwned::to_owned)
}

/// Returns a list of texts; a single text counts as a list of one.
fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::Str(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|one| one.as_str().map(ToOwned::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

fn optional(text: Option<&str>) -> Value {
    text.map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_read_back() {
        let mut request = ControlRequest::new("revoke");
        request.arguments.insert("task_id", "id-1");
        request.destination = vec!["w1@host".to_owned()];
        request.ticket = Some("ticket".to_owned());
        request.reply_to = Some(ReplyAddress::new("reply.celery.pidbox", "oid"));
        request.clock = 7;
        request.expires = 12.5;
        let written = request.write().unwrap();
        assert_eq!(ControlRequest::read(&written).unwrap(), request);
    }

    #[test]
    fn request_is_written_in_celerys_form() {
        let written = ControlRequest::new("ping").write().unwrap();
        assert_eq!(
            std::str::from_utf8(&written.body).unwrap(),
            r#"{"method":"ping","arguments":{},"destination":null,"pattern":null,"matcher":null}"#
        );
        assert_eq!(written.properties.priority, Some(0));
    }

    #[test]
    fn reply_is_read_back() {
        let mut reply = ControlReply::new("w1@host", Value::from("pong"));
        reply.ticket = Some("ticket".to_owned());
        reply.clock = 9;
        assert_eq!(ControlReply::read(&reply.write().unwrap()).unwrap(), reply);
    }

    #[test]
    fn malformed_request_error_names_the_field() {
        let read = |body: &'static [u8]| {
            let message = Message::new(Headers::empty(), Properties::default(), body);
            ControlRequest::read(&message).unwrap_err()
        };
        assert_eq!(read(b"[]").field(), Some("body"));
        assert_eq!(read(b"{}").field(), Some("body.method"));
        assert_eq!(read(b"{\"method\": 1}").field(), Some("body.method"));
        let arguments = read(b"{\"method\": \"ping\", \"arguments\": [1]}");
        assert_eq!(arguments.field(), Some("body.arguments"));
        assert_eq!(read(b"\xff").field(), Some("body"));
    }
}
