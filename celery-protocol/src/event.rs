//! Monitoring events of workers and clients.

use crate::control::{decode_body, json_message};
use crate::error::{DecodeError, EncodeError};
use crate::message::Message;
use crate::value::{Map, Value};

/// A monitoring event of a worker or a task.
///
/// ```
/// use celery_protocol::Event;
///
/// let mut event = Event::new("task-started", "celery@host");
/// event.fields.insert("uuid", "id-1");
/// let message = Event::write_all(std::slice::from_ref(&event))?;
/// assert_eq!(Event::read_all(&message)?, [event]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// The type of the event: `task-received`, `worker-online`, ...
    pub kind: String,
    /// The name of the worker or client.
    pub hostname: String,
    /// The number of hours by which the sender's time zone is behind UTC: -2 at
    /// UTC+2.
    pub utcoffset: f64,
    /// The process id of the sender.
    pub pid: u32,
    /// The sender's logical clock.
    pub clock: u64,
    /// The Unix time of the event.
    pub timestamp: f64,
    /// The other fields, which depend on the type. The id of the task is
    /// `uuid`.
    pub fields: Map,
}

impl Event {
    /// Creates an event without fields.
    pub fn new(kind: impl Into<String>, hostname: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            hostname: hostname.into(),
            ..Self::default()
        }
    }

    /// Returns the id of the task, if this is a task event.
    pub fn task_id(&self) -> Option<&str> {
        self.fields.get("uuid").and_then(Value::as_str)
    }

    /// Returns the routing key of a message with only this event:
    /// `task.started` for `task-started`.
    pub fn routing_key(&self) -> String {
        self.kind.replace('-', ".")
    }

    /// Reads the events of a message, whose body is one event or a list of
    /// events.
    ///
    /// # Errors
    ///
    /// Fails if the body is neither, or if an event has no `type`.
    pub fn read_all(message: &Message) -> Result<Vec<Self>, DecodeError> {
        match decode_body(message)? {
            Value::Array(events) => events.into_iter().map(Self::from_value).collect(),
            event => Ok(vec![Self::from_value(event)?]),
        }
    }

    /// Writes events of one sender: a single event as a map, several events as
    /// a list.
    ///
    /// # Errors
    ///
    /// Fails if JSON cannot represent a field.
    pub fn write_all(events: &[Self]) -> Result<Message, EncodeError> {
        let body = match events {
            [one] => one.to_value(),
            several => Value::Array(several.iter().map(Self::to_value).collect()),
        };
        Self::message(events, &body)
    }

    /// Writes events of one sender as a list, even a single event. Workers send
    /// task events in this form.
    ///
    /// # Errors
    ///
    /// Fails if JSON cannot represent a field.
    pub fn write_batch(events: &[Self]) -> Result<Message, EncodeError> {
        let body = Value::Array(events.iter().map(Self::to_value).collect());
        Self::message(events, &body)
    }

    fn message(events: &[Self], body: &Value) -> Result<Message, EncodeError> {
        let mut headers = Map::new();
        let hostname = events.first().map_or("", |event| event.hostname.as_str());
        headers.insert("hostname", hostname);
        json_message(headers, body, 1)
    }

    fn from_value(value: Value) -> Result<Self, DecodeError> {
        let Value::Map(mut fields) = value else {
            return Err(DecodeError::new("an event must be a map").in_field("body"));
        };
        let Some(Value::Str(kind)) = fields.remove("type") else {
            return Err(DecodeError::new("an event must have a type").in_field("body.type"));
        };
        let hostname = match fields.remove("hostname") {
            Some(Value::Str(hostname)) => hostname,
            _ => String::new(),
        };
        let mut number = |name| fields.remove(name).and_then(|value| value.as_f64());
        let utcoffset = number("utcoffset").unwrap_or(0.0);
        let timestamp = number("timestamp").unwrap_or(0.0);
        let mut whole = |name| fields.remove(name).and_then(|value| value.as_u64());
        let pid = whole("pid").and_then(|pid| u32::try_from(pid).ok());
        Ok(Self {
            kind,
            hostname,
            utcoffset,
            pid: pid.unwrap_or(0),
            clock: whole("clock").unwrap_or(0),
            timestamp,
            fields,
        })
    }

    /// Converts into a map with the fields in Celery's order.
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        map.insert("hostname", self.hostname.as_str());
        map.insert("utcoffset", self.utcoffset);
        map.insert("pid", i64::from(self.pid));
        map.insert("clock", self.clock);
        for (name, value) in self.fields.iter() {
            map.insert(name.clone(), value.clone());
        }
        map.insert("timestamp", self.timestamp);
        map.insert("type", self.kind.as_str());
        Value::Map(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Headers, Properties};

    #[test]
    fn event_fields_are_written_in_celerys_order() {
        let mut event = Event::new("task-started", "w1@host");
        event.fields.insert("uuid", "id-1");
        event.clock = 3;
        event.pid = 8;
        event.timestamp = 1.5;
        let message = Event::write_batch(&[event]).unwrap();
        assert_eq!(
            std::str::from_utf8(&message.body).unwrap(),
            r#"[{"hostname":"w1@host","utcoffset":0.0,"pid":8,"clock":3,"uuid":"id-1","timestamp":1.5,"type":"task-started"}]"#
        );
    }

    #[test]
    fn event_list_and_single_event_are_read() {
        let read = |body: &'static [u8]| {
            Event::read_all(&Message::new(Headers::empty(), Properties::default(), body))
        };
        let kinds = |body| -> Vec<_> { read(body).unwrap().into_iter().map(|e| e.kind).collect() };
        assert_eq!(kinds(b"{\"type\": \"a\"}"), ["a"]);
        assert_eq!(kinds(b"[{\"type\": \"a\"}, {\"type\": \"b\"}]"), ["a", "b"]);
        assert_eq!(read(b"[1]").unwrap_err().field(), Some("body"));
        assert_eq!(read(b"{}").unwrap_err().field(), Some("body.type"));
    }
}
