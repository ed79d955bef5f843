//! Deserialization of task headers.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::{Header, TaskHeaders};
use crate::cow_str::CowStr;
use crate::error::DecodeError;
use crate::raw::Raw;

/// A mapping deserialized as headers, which may lack `task` or `id`.
#[derive(Debug)]
pub(crate) struct ParsedHeaders<'a> {
    pub(crate) headers: TaskHeaders<'a>,
    pub(super) has_task: bool,
    pub(super) has_id: bool,
}

impl<'a> ParsedHeaders<'a> {
    /// Returns the headers of a task, or `None` if `task` is missing.
    pub(crate) fn task(self) -> Result<Option<TaskHeaders<'a>>, DecodeError> {
        if !self.has_task {
            return Ok(None);
        }
        if !self.has_id {
            let message = "a task message must have this header";
            return Err(DecodeError::new(message).in_field("id"));
        }
        Ok(Some(self.headers))
    }

    /// Reads the value of one header.
    fn take<'de: 'a, A: MapAccess<'de>>(
        &mut self,
        header: Header,
        map: &mut A,
    ) -> Result<(), A::Error> {
        let headers = &mut self.headers;
        match header {
            Header::Lang => headers.lang = optional_text(map)?.unwrap_or_default(),
            Header::Task => {
                headers.task = text(map)?;
                self.has_task = true;
            }
            Header::Id => {
                headers.id = text(map)?;
                self.has_id = true;
            }
            Header::Shadow => headers.shadow = optional_text(map)?,
            Header::Eta => headers.eta = optional_text(map)?,
            Header::Expires => headers.expires = optional_text(map)?,
            Header::Group => headers.group = optional_text(map)?,
            Header::GroupIndex => headers.group_index = map.next_value()?,
            Header::Retries => headers.retries = optional_count(map)?,
            Header::TimeLimit => headers.timelimit = map.next_value()?,
            Header::RootId => headers.root_id = optional_text(map)?,
            Header::ParentId => headers.parent_id = optional_text(map)?,
            Header::ArgsRepr => headers.argsrepr = display_text(map)?,
            Header::KwargsRepr => headers.kwargsrepr = display_text(map)?,
            Header::Origin => headers.origin = optional_text(map)?,
            Header::IgnoreResult => headers.ignore_result = map.next_value()?,
            Header::ReplacedTaskNesting => headers.replaced_task_nesting = optional_count(map)?,
            Header::StampedHeaders => headers.stamped_headers = map.next_value()?,
            Header::Stamps => headers.stamps = map.next_value()?,
            Header::Compression => headers.compression = optional_text(map)?,
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ParsedHeaders<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ParsedHeadersVisitor)
    }
}

struct ParsedHeadersVisitor;

impl<'de> Visitor<'de> for ParsedHeadersVisitor {
    type Value = ParsedHeaders<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of headers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = ParsedHeaders {
            headers: TaskHeaders::unset(),
            has_task: false,
            has_id: false,
        };
        let mut position = 0;
        while let Some(name) = map.next_key_seed(HeaderNameSeed(position))? {
            match name {
                HeaderName::Known(header) => {
                    found.take(header, &mut map)?;
                    position = header as usize + 1;
                }
                HeaderName::Other(name) => {
                    let value = map.next_value()?;
                    found.headers.extra.push((name, value));
                }
            }
        }
        Ok(found)
    }
}

/// The name of a header.
enum HeaderName<'de> {
    Known(Header),
    Other(Cow<'de, str>),
}

/// Deserializes the name of a header. The number is the expected position in
/// the table.
struct HeaderNameSeed(usize);

impl<'de> DeserializeSeed<'de> for HeaderNameSeed {
    type Value = HeaderName<'de>;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for HeaderNameSeed {
    type Value = HeaderName<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a header")
    }

    #[inline]
    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(match Header::from_expected_name(name, self.0) {
            Some(header) => HeaderName::Known(header),
            None => HeaderName::Other(Cow::Borrowed(name)),
        })
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(match Header::from_expected_name(name, self.0) {
            Some(header) => HeaderName::Known(header),
            None => HeaderName::Other(Cow::Owned(name.to_owned())),
        })
    }
}

fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Cow<'de, str>, A::Error> {
    let CowStr(text) = map.next_value()?;
    Ok(text)
}

fn optional_text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    let text: Option<CowStr<'de>> = map.next_value()?;
    Ok(text.map(|CowStr(text)| text))
}

/// Reads a text that is only for display. Python copies lone surrogates of
/// arguments into it; an unreadable text counts as absent, so that the task can
/// still be read.
fn display_text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    let raw: Raw<'de> = map.next_value()?;
    let text = raw.decode::<Option<CowStr<'de>>>().unwrap_or_default();
    Ok(text.map(|CowStr(text)| text))
}

/// Reads a number that may be null: rusty-celery writes `retries` as null.
fn optional_count<'de, A: MapAccess<'de>>(map: &mut A) -> Result<u32, A::Error> {
    let number: Option<u32> = map.next_value()?;
    Ok(number.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Serializer;

    #[test]
    fn null_header_is_read_as_unset() {
        let json = br#"{"task":"t","id":"i","lang":null,"retries":null,"timelimit":null,
            "replaced_task_nesting":null,"stamps":null,"ignore_result":null,"eta":null}"#;
        let headers: TaskHeaders<'_> = Serializer::Json.decode(json).unwrap();
        let mut expected = TaskHeaders::new("t", "i");
        expected.lang = "".into();
        expected.root_id = None;
        assert_eq!(headers, expected);
    }

    #[test]
    fn headers_are_read_in_any_order() {
        let json = br#"{"retries":3,"id":"i","mine":{"a":[1]},"lang":"py","task":"t"}"#;
        let headers: TaskHeaders<'_> = Serializer::Json.decode(json).unwrap();
        assert_eq!(
            (&*headers.task, &*headers.id, headers.retries),
            ("t", "i", 3)
        );
        assert_eq!(
            headers.extra("mine").unwrap().as_json(),
            Some(r#"{"a":[1]}"#)
        );
        assert!(matches!(headers.task, Cow::Borrowed(_)));
    }

    #[test]
    fn unreadable_argsrepr_is_read_as_absent() {
        let json = br#"{"task":"t","id":"i","argsrepr":"['\ud800']","kwargsrepr":5}"#;
        let headers: TaskHeaders<'_> = Serializer::Json.decode(json).unwrap();
        assert_eq!((headers.argsrepr, headers.kwargsrepr), (None, None));
    }
}
