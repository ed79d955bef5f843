//! The headers of a message.

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
/// They are stored in their original form (a JSON text from Redis, a table from
/// AMQP, typed headers from a sender) and decoded on access, so that passing a
/// message on costs nothing.
#[derive(Clone, Debug)]
pub struct Headers(HeadersRepr);

#[derive(Clone, Debug)]
enum HeadersRepr {
    Empty,
    Task(Box<TaskHeaders<'static>>),
    Json(Box<JsonHeaders>),
    /// A table, always a [`Value::Map`], from which types deserialize without a
    /// copy.
    Map(Value),
}

impl Headers {
    /// Creates empty headers, as messages of protocol 1 have.
    pub fn empty() -> Self {
        Self(HeadersRepr::Empty)
    }

    /// Creates the headers of a task that is to be sent.
    pub fn from_task(headers: TaskHeaders<'static>) -> Self {
        Self(HeadersRepr::Task(Box::new(headers)))
    }

    /// Creates headers from the text of a JSON object. The text is shared and
    /// not copied.
    ///
    /// # Errors
    ///
    /// Fails if the text is not exactly one JSON object in UTF-8.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "the headers keep their share of the text"
    )]
    pub fn from_json(text: Bytes) -> Result<Self, DecodeError> {
        let headers = JsonHeaders::read(&text);
        let headers = headers.map_err(|error| error.in_field("headers"))?;
        Ok(Self::from_indexed_json(headers))
    }

    /// Creates headers from the indexed headers of an envelope.
    #[inline]
    pub(crate) fn from_indexed_json(headers: Box<JsonHeaders>) -> Self {
        if headers.is_empty() {
            return Self::empty();
        }
        Self(HeadersRepr::Json(headers))
    }

    /// Creates headers from a table, the form of AMQP.
    pub fn from_map(map: Map) -> Self {
        if map.is_empty() {
            return Self::empty();
        }
        Self(HeadersRepr::Map(Value::Map(map)))
    }

    /// Returns whether there are no headers.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            HeadersRepr::Empty => true,
            HeadersRepr::Task(_) => false,
            HeadersRepr::Json(headers) => headers.is_empty(),
            HeadersRepr::Map(value) => value.as_map().is_none_or(Map::is_empty),
        }
    }

    /// Returns the headers of a task of protocol 2, or `None` if there is no
    /// header `task`, as in messages of protocol 1, events and replies.
    ///
    /// # Errors
    ///
    /// Fails if `id` is missing, or if a header has another type than in
    /// Celery. [`DecodeError::field`] names the header.
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

    /// Returns an error that names the header that could not be decoded. In
    /// messages other than tasks, some headers have other types (`expires` is a
    /// number in control messages), so headers without `task` are not an error.
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
    /// Fails if the headers cannot be decoded.
    pub fn find(&self, name: &str) -> Result<Option<Raw<'_>>, DecodeError> {
        match &self.0 {
            HeadersRepr::Empty => Ok(None),
            HeadersRepr::Task(headers) => find_in_task(headers, name),
            HeadersRepr::Json(headers) => headers.find(name),
            HeadersRepr::Map(value) => Ok(value.get(name).cloned().map(Raw::from_value)),
        }
    }

    /// Returns the value of a header that Celery defines.
    #[inline]
    pub(crate) fn find_known(&self, header: Header) -> Result<Option<Raw<'_>>, DecodeError> {
        match &self.0 {
            HeadersRepr::Json(headers) => headers.find_known(header),
            _ => self.find(header.name()),
        }
    }

    /// Sets one header and replaces an existing one.
    ///
    /// # Errors
    ///
    /// Fails if the existing headers cannot be decoded.
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
    /// Fails if the existing headers cannot be decoded.
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
    /// Fails if the headers cannot be decoded.
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
    /// Fails if JSON cannot represent a value.
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

/// Headers are equal if their entries are equal, in whichever form they are
/// stored.
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

/// Writes the JSON that `Serialize` writes, without serializing the known keys.
fn write_task(headers: &TaskHeaders<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.reserve(640);
    out.push(b'{');
    for (name, field) in headers.written() {
        // The names that Celery defines need no escapes.
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
    fn headers_are_equal_in_every_form() {
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
    fn written_json_equals_serialized_json() {
        let mut fast = Vec::new();
        write_task(&sent(), &mut fast).unwrap();
        assert_eq!(fast, Serializer::Json.encode(&sent()).unwrap());
    }

    #[test]
    fn header_is_set_and_removed_in_every_form() {
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
    fn wrong_header_type_error_names_the_header() {
        let text = r#"{"task": "t", "id": "i", "eta": 5}"#;
        let headers = Headers::from_json(Bytes::from_static(text.as_bytes())).unwrap();
        let error = headers.task().unwrap_err();
        assert_eq!(error.field(), Some("headers.eta"));
    }

    #[test]
    fn missing_id_error_names_the_header() {
        let headers = Headers::from_json(Bytes::from_static(br#"{"task": "t"}"#)).unwrap();
        assert_eq!(headers.task().unwrap_err().field(), Some("headers.id"));
    }

    #[test]
    fn headers_without_task_are_not_a_task() {
        let control = br#"{"clock": 5, "expires": 1700000000.5}"#;
        let headers = Headers::from_json(Bytes::from_static(control)).unwrap();
        assert_eq!(headers.task(), Ok(None));
        assert_eq!(Headers::empty().task(), Ok(None));
    }

    #[test]
    fn text_other_than_an_object_is_rejected() {
        for text in ["[]", "null", "", "{}{}", "{\"a\":}", "\u{1}"] {
            assert!(
                Headers::from_json(text.as_bytes().to_vec().into()).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn last_of_equal_headers_wins() {
        let text = br#" { "task":"t" , "eta":5,"mine":1,"id":"i","eta":"e","m\u0069ne":2 } "#;
        let headers = Headers::from_json(Bytes::from_static(text)).unwrap();
        let task = headers.task().unwrap().unwrap();
        assert_eq!((task.eta.as_deref(), task.extra.len()), (Some("e"), 2));
        let mine = headers.find("mine").unwrap().unwrap();
        assert_eq!(mine.as_json(), Some("2"));
        assert!(matches!(task.task, Cow::Borrowed("t")));
    }

    #[test]
    fn null_task_name_is_rejected() {
        let text = br#"{"task": null, "id": "i"}"#;
        let headers = Headers::from_json(Bytes::from_static(text)).unwrap();
        assert_eq!(headers.task().unwrap_err().field(), Some("headers.task"));
    }

    #[test]
    fn escaped_header_name_is_found() {
        let text = br#"{"\u0063ompression": "x"}"#;
        let headers = Headers::from_json(Bytes::from_static(text)).unwrap();
        assert!(headers.find("compression").unwrap().is_some());
    }
}
