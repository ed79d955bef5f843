//! The headers of a message, in the form in which they arrived.

mod json;

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::value::MapDeserializer;
use serde::ser::{Serialize, Serializer as SerdeSerializer};

use crate::codec::Serializer;
use crate::error::{DecodeError, EncodeError};
use crate::raw::Raw;
use crate::task_headers::{Header, ParsedHeaders, TaskHeaders};
use crate::value::{Map, Value};

pub(crate) use self::json::JsonHeaders;

/// The headers of a message.
///
/// They stay as they came (a JSON text from Redis, a table from AMQP, typed
/// from a sender) until somebody asks, so that a message which is only passed
/// on costs nothing.
#[derive(Clone, Debug)]
pub struct Headers(HeadersRepr);

#[derive(Clone, Debug)]
enum HeadersRepr {
    Empty,
    Task(Box<TaskHeaders<'static>>),
    Json(Box<JsonHeaders>),
    /// Always a [`Value::Map`], which deserializes without a copy.
    Map(Value),
}

impl Headers {
    /// No headers, as protocol 1 has.
    pub fn empty() -> Self {
        Self(HeadersRepr::Empty)
    }

    /// Returns the headers of a task that is about to be sent.
    pub fn from_task(headers: TaskHeaders<'static>) -> Self {
        Self(HeadersRepr::Task(Box::new(headers)))
    }

    /// Headers as the text of a JSON object, which is kept and not copied.
    ///
    /// # Errors
    ///
    /// When the text is not one whole JSON object in UTF-8.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "the headers keep their share of the text"
    )]
    pub fn from_json(text: Bytes) -> Result<Self, DecodeError> {
        let headers = JsonHeaders::read(&text);
        let headers = headers.map_err(|error| error.in_field("headers"))?;
        Ok(Self::from_indexed_json(headers))
    }

    /// Headers as they were read from an envelope.
    #[inline]
    pub(crate) fn from_indexed_json(headers: Box<JsonHeaders>) -> Self {
        if headers.is_empty() {
            return Self::empty();
        }
        Self(HeadersRepr::Json(headers))
    }

    /// Headers as a table, which is how AMQP delivers them.
    pub fn from_map(map: Map) -> Self {
        if map.is_empty() {
            return Self::empty();
        }
        Self(HeadersRepr::Map(Value::Map(map)))
    }

    /// Returns whether there is no header.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            HeadersRepr::Empty => true,
            HeadersRepr::Task(_) => false,
            HeadersRepr::Json(headers) => headers.is_empty(),
            HeadersRepr::Map(value) => value.as_map().is_none_or(Map::is_empty),
        }
    }

    /// Returns the headers of a task of protocol 2; `None` when there is no
    /// header `task`, as in messages of protocol 1, events and replies.
    ///
    /// # Errors
    ///
    /// When `id` is missing, or a header has a type that Celery never gives
    /// it. [`DecodeError::field`] names the header.
    pub fn task(&self) -> Result<Option<TaskHeaders<'_>>, DecodeError> {
        let found = match &self.0 {
            HeadersRepr::Empty => return Ok(None),
            HeadersRepr::Task(headers) => return Ok(Some(headers.borrowed())),
            HeadersRepr::Json(headers) => headers.task(),
            HeadersRepr::Map(value) => match ParsedHeaders::deserialize(value) {
                Ok(found) => found.task(),
                Err(error) => return self.diagnose(error),
            },
        };
        found.map_err(|error| error.in_field("headers"))
    }

    /// Names the header that could not be read. Other messages than tasks give
    /// some of the names other types (`expires` is a number in control
    /// messages), so without `task` nothing is wrong.
    #[cold]
    fn diagnose(&self, error: DecodeError) -> Result<Option<TaskHeaders<'_>>, DecodeError> {
        if self.find("task")?.is_none() {
            return Ok(None);
        }
        for (name, value) in &self.to_map()? {
            let Some(name) = name.as_str() else { continue };
            let alone = MapDeserializer::<_, DecodeError>::new([(name, value)].into_iter());
            if let Err(error) = ParsedHeaders::deserialize(alone) {
                return Err(error.in_field(name).in_field("headers"));
            }
        }
        Err(error.in_field("headers"))
    }

    /// Returns the value of one header.
    ///
    /// # Errors
    ///
    /// When the headers cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<Raw<'_>>, DecodeError> {
        match &self.0 {
            HeadersRepr::Empty => Ok(None),
            HeadersRepr::Task(headers) => find_in_task(headers, name),
            HeadersRepr::Json(headers) => headers.find(name),
            HeadersRepr::Map(value) => Ok(value.get(name).cloned().map(Raw::from_value)),
        }
    }

    /// Returns the value of one of Celery's own headers.
    #[inline]
    pub(crate) fn find_known(&self, header: Header) -> Result<Option<Raw<'_>>, DecodeError> {
        match &self.0 {
            HeadersRepr::Json(headers) => headers.find_known(header),
            _ => self.find(header.name()),
        }
    }

    /// Sets one header, replacing the one that was there.
    ///
    /// # Errors
    ///
    /// When the headers that are there cannot be read.
    pub fn set(&mut self, name: &str, value: Value) -> Result<(), DecodeError> {
        if let HeadersRepr::Task(headers) = &mut self.0
            && Header::from_name(name).is_none()
        {
            let own = |(key, _): &(Cow<'_, str>, Raw<'_>)| key != name;
            headers.extra.retain(own);
            let entry = (Cow::Owned(name.to_owned()), Raw::from_value(value));
            headers.extra.push(entry);
            return Ok(());
        }
        let mut map = self.to_map()?;
        map.insert(name, value);
        *self = Self::from_map(map);
        Ok(())
    }

    /// Removes one header.
    ///
    /// # Errors
    ///
    /// When the headers that are there cannot be read.
    pub fn remove(&mut self, name: &str) -> Result<(), DecodeError> {
        let mut map = self.to_map()?;
        if map.remove(name).is_some() {
            *self = Self::from_map(map);
        }
        Ok(())
    }

    /// Returns all headers as a table.
    ///
    /// # Errors
    ///
    /// When the headers cannot be read.
    pub fn to_map(&self) -> Result<Map, DecodeError> {
        let value = match &self.0 {
            HeadersRepr::Empty => return Ok(Map::new()),
            HeadersRepr::Task(headers) => {
                let value = Value::from_serialize(headers.as_ref());
                value.map_err(|error| DecodeError::new(error.to_string()).in_field("headers"))?
            }
            HeadersRepr::Json(headers) => decode_json(headers.text())?,
            HeadersRepr::Map(value) => value.clone(),
        };
        match value {
            Value::Map(map) => Ok(map),
            _ => Err(DecodeError::new("expected a mapping").in_field("headers")),
        }
    }

    /// Writes all headers as a JSON object.
    ///
    /// # Errors
    ///
    /// When a value has no form in JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match &self.0 {
            HeadersRepr::Empty => out.extend_from_slice(b"{}"),
            HeadersRepr::Task(headers) => write_task(headers, out)?,
            HeadersRepr::Json(headers) => out.extend_from_slice(headers.text()),
            HeadersRepr::Map(value) => Serializer::Json.encode_into(out, value)?,
        }
        Ok(())
    }
}

impl Default for Headers {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<TaskHeaders<'static>> for Headers {
    fn from(headers: TaskHeaders<'static>) -> Self {
        Self::from_task(headers)
    }
}

impl From<Map> for Headers {
    fn from(map: Map) -> Self {
        Self::from_map(map)
    }
}

impl Serialize for Headers {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            HeadersRepr::Empty => Map::new().serialize(serializer),
            HeadersRepr::Task(headers) => headers.serialize(serializer),
            HeadersRepr::Json(headers) => match decode_json::<Raw<'_>>(headers.text()) {
                Ok(raw) => raw.serialize(serializer),
                Err(error) => Err(serde::ser::Error::custom(error)),
            },
            HeadersRepr::Map(value) => value.serialize(serializer),
        }
    }
}

/// Compares what the headers say, whatever their form.
impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        if let (HeadersRepr::Json(left), HeadersRepr::Json(right)) = (&self.0, &other.0)
            && left.text() == right.text()
        {
            return true;
        }
        match (self.to_map(), other.to_map()) {
            (Ok(left), Ok(right)) => left == right,
            _ => false,
        }
    }
}

fn decode_json<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T, DecodeError> {
    let value = Serializer::Json.decode(text);
    value.map_err(|error| error.in_field("headers"))
}

fn find_in_task<'a>(
    headers: &'a TaskHeaders<'static>,
    name: &str,
) -> Result<Option<Raw<'a>>, DecodeError> {
    let Some(header) = Header::from_name(name) else {
        return Ok(headers.extra(name).cloned());
    };
    if header == Header::Compression && headers.compression.is_none() {
        return Ok(None);
    }
    let raw = Raw::encode(Serializer::Json, &headers.header_value(header));
    let raw = raw.map_err(|error| DecodeError::new(error.to_string()).in_field(name))?;
    Ok(Some(raw))
}

/// Writes what `Serialize` writes, without a question per key.
fn write_task(headers: &TaskHeaders<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.reserve(640);
    out.push(b'{');
    for (name, field) in headers.written() {
        // Celery's own names need no escape.
        out.push(b'"');
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        field.write(Serializer::Json, out)?;
        out.push(b',');
    }
    for (name, value) in &headers.extra {
        Serializer::Json.encode_into(out, name.as_ref())?;
        out.push(b':');
        Serializer::Json.encode_into(out, value)?;
        out.push(b',');
    }
    out.pop();
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> TaskHeaders<'static> {
        let mut headers = TaskHeaders::new("tasks.add", "id-1");
        headers.argsrepr = Some("(2, 3)".into());
        headers.extra.push(("trace".into(), Raw::json("\"é\"")));
        headers
    }

    fn in_every_form() -> [Headers; 3] {
        let task = Headers::from_task(sent());
        let mut text = Vec::new();
        task.write_json(&mut text).unwrap();
        let map = Headers::from_map(task.to_map().unwrap());
        [task, Headers::from_json(text.into()).unwrap(), map]
    }

    #[test]
    fn every_form_says_the_same() {
        for headers in in_every_form() {
            let task = headers.task().unwrap().unwrap().into_owned();
            assert_eq!(Headers::from_task(task), Headers::from_task(sent()));
            assert_eq!(headers, Headers::from_task(sent()));
            let trace = headers.find("trace").unwrap().unwrap();
            assert_eq!(trace.decode::<String>().unwrap(), "é");
            assert_eq!(headers.find("compression").unwrap(), None);
            assert!(headers.find("eta").unwrap().unwrap().is_null());
        }
    }

    #[test]
    fn fast_and_general_writing_agree() {
        let mut fast = Vec::new();
        write_task(&sent(), &mut fast).unwrap();
        assert_eq!(fast, Serializer::Json.encode(&sent()).unwrap());
    }

    #[test]
    fn headers_can_be_set_and_removed() {
        for mut headers in in_every_form() {
            headers.set("redelivered", Value::Bool(true)).unwrap();
            headers.set("trace", Value::from("new")).unwrap();
            headers.set("retries", Value::from(2)).unwrap();
            headers.remove("argsrepr").unwrap();
            let task = headers.task().unwrap().unwrap();
            assert_eq!((task.retries, task.argsrepr.as_deref()), (2, None));
            assert_eq!(
                task.extra("trace").unwrap().decode::<String>().unwrap(),
                "new"
            );
            assert!(task.extra("redelivered").unwrap().decode::<bool>().unwrap());
        }
    }

    #[test]
    fn wrong_type_names_the_header() {
        let text = r#"{"task": "t", "id": "i", "eta": 5}"#;
        let headers = Headers::from_json(Bytes::from_static(text.as_bytes())).unwrap();
        let error = headers.task().unwrap_err();
        assert_eq!(error.field(), Some("headers.eta"));
    }

    #[test]
    fn missing_id_names_the_header() {
        let headers = Headers::from_json(Bytes::from_static(br#"{"task": "t"}"#)).unwrap();
        assert_eq!(headers.task().unwrap_err().field(), Some("headers.id"));
    }

    #[test]
    fn other_messages_are_no_tasks() {
        let control = br#"{"clock": 5, "expires": 1700000000.5}"#;
        let headers = Headers::from_json(Bytes::from_static(control)).unwrap();
        assert_eq!(headers.task(), Ok(None));
        assert_eq!(Headers::empty().task(), Ok(None));
    }

    #[test]
    fn text_must_be_an_object() {
        for text in ["[]", "null", "", "{}{}", "{\"a\":}", "\u{1}"] {
            assert!(
                Headers::from_json(text.as_bytes().to_vec().into()).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn last_of_equal_headers_counts() {
        let text = br#" { "task":"t" , "eta":5,"mine":1,"id":"i","eta":"e","m\u0069ne":2 } "#;
        let headers = Headers::from_json(Bytes::from_static(text)).unwrap();
        let task = headers.task().unwrap().unwrap();
        assert_eq!((task.eta.as_deref(), task.extra.len()), (Some("e"), 2));
        let mine = headers.find("mine").unwrap().unwrap();
        assert_eq!(mine.as_json(), Some("2"));
        assert!(matches!(task.task, Cow::Borrowed("t")));
    }

    #[test]
    fn null_is_no_name_of_a_task() {
        let text = br#"{"task": null, "id": "i"}"#;
        let headers = Headers::from_json(Bytes::from_static(text)).unwrap();
        assert_eq!(headers.task().unwrap_err().field(), Some("headers.task"));
    }

    #[test]
    fn escaped_name_is_found() {
        let text = br#"{"\u0063ompression": "x"}"#;
        let headers = Headers::from_json(Bytes::from_static(text)).unwrap();
        assert!(headers.find("compression").unwrap().is_some());
    }
}
