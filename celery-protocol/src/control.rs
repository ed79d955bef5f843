//! Remote control: what is asked of workers and what they answer.
//!
//! A request goes to everybody who listens to the fanout exchange
//! `celery.pidbox`; who is meant answers, if it was asked to, to the exchange
//! and routing key that the request names.

use crate::codec::{Accept, Serializer};
use crate::error::{DecodeError, EncodeError};
use crate::headers::Headers;
use crate::message::{Message, Properties};
use crate::value::{Map, Value};

/// Most bytes of a request or reply that are read.
const MAX_BODY_SIZE: usize = 16 << 20;

/// A command to workers, or a question.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ControlRequest {
    /// The command's name, such as `ping`.
    pub method: String,
    /// Its arguments.
    pub arguments: Map,
    /// The names of the workers that are meant; everybody where empty.
    pub destination: Vec<String>,
    /// Which names are meant where there is no destination.
    pub pattern: Option<String>,
    /// How `pattern` is read: `glob` or `pcre`.
    pub matcher: Option<String>,
    /// What replies repeat, so that they are told apart.
    pub ticket: Option<String>,
    /// Where replies go; without it nobody answers.
    pub reply_to: Option<ReplyAddress>,
    /// The sender's logical clock.
    pub clock: u64,
    /// When the sender stops waiting, as Unix time; 0 where it does not say.
    pub expires: f64,
}

/// Where the reply to a request goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplyAddress {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

/// What one worker answers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ControlReply {
    /// The worker's name.
    pub node: String,
    /// The answer.
    pub value: Value,
    /// The ticket of the request.
    pub ticket: Option<String>,
    /// The worker's logical clock.
    pub clock: u64,
}

impl ControlRequest {
    /// Creates a request without arguments to every worker, for which no reply
    /// is wanted.
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
    /// When the body is not JSON, or not a map with a text `method`.
    pub fn read(message: &Message) -> Result<Self, DecodeError> {
        let body = decode_body(message)?;
        let Some(body) = body.as_map() else {
            return Err(DecodeError::new("a control message must be a map").in_field("body"));
        };
        let method = text(body, "method").ok_or_else(|| {
            DecodeError::new("the name of the command is missing").in_field("body.method")
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
    /// When an argument has no form in JSON.
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
    /// Returns the address of what is bound to `exchange` by `routing_key`.
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
    /// Returns what the worker `node` answers.
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
    /// When the body is not JSON, or not a map with one worker's answer.
    pub fn read(message: &Message) -> Result<Self, DecodeError> {
        let body = decode_body(message)?;
        let mut entries = body.as_map().into_iter().flat_map(Map::iter);
        let (node, value) = entries.next().ok_or_else(|| {
            DecodeError::new("a reply must be a map from one worker's name to its answer")
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
    /// When the answer has no form in JSON.
    pub fn write(&self) -> Result<Message, EncodeError> {
        let mut body = Map::new();
        body.insert(self.node.as_str(), self.value.clone());
        let mut headers = Map::new();
        headers.insert("ticket", optional(self.ticket.as_deref()));
        headers.insert("clock", self.clock);
        json_message(headers, &Value::Map(body), 1)
    }
}

/// Returns a message in JSON as kombu writes those that are not tasks.
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

/// Returns the body of such a message.
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

/// Returns a list of texts; one text alone is a list of one.
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
    fn a_request_is_read_as_it_was_written() {
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
    fn a_request_looks_like_celerys() {
        let written = ControlRequest::new("ping").write().unwrap();
        assert_eq!(
            std::str::from_utf8(&written.body).unwrap(),
            r#"{"method":"ping","arguments":{},"destination":null,"pattern":null,"matcher":null}"#
        );
        assert_eq!(written.properties.priority, Some(0));
    }

    #[test]
    fn a_reply_is_read_as_it_was_written() {
        let mut reply = ControlReply::new("w1@host", Value::from("pong"));
        reply.ticket = Some("ticket".to_owned());
        reply.clock = 9;
        assert_eq!(ControlReply::read(&reply.write().unwrap()).unwrap(), reply);
    }

    #[test]
    fn what_is_no_request_is_an_error_that_says_where() {
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
