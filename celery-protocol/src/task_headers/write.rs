//! Serialization of task headers.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use super::{Header, TABLE, TaskHeaders, TimeLimits};
use crate::codec::{Serializer, json};
use crate::error::EncodeError;
use crate::raw::Raw;

/// The value of one header, to be serialized.
#[derive(Clone, Copy)]
pub(crate) enum HeaderValue<'b> {
    Null,
    Text(&'b str),
    Integer(i64),
    Flag(bool),
    Limits(TimeLimits),
    Raw(&'b Raw<'b>),
    EmptyMap,
}

impl<'b> HeaderValue<'b> {
    fn text(text: &'b Option<Cow<'_, str>>) -> Self {
        text.as_deref().map_or(Self::Null, Self::Text)
    }
}

impl HeaderValue<'_> {
    /// Writes the value at the end of `out`. In JSON, the most frequent values
    /// are written without a serializer.
    #[inline]
    pub(crate) fn write(
        self,
        serializer: Serializer,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        match (serializer, self) {
            (Serializer::Json, Self::Null) => out.extend_from_slice(b"null"),
            (Serializer::Json, Self::Integer(0)) => out.push(b'0'),
            (Serializer::Json, Self::EmptyMap) => out.extend_from_slice(b"{}"),
            (Serializer::Json, Self::Text(text)) => json::write_str(out, text),
            (
                Serializer::Json,
                Self::Limits(TimeLimits {
                    hard: None,
                    soft: None,
                }),
            ) => {
                out.extend_from_slice(b"[null,null]");
            }
            _ => return serializer.encode_into(out, &self),
        }
        Ok(())
    }
}

impl Serialize for HeaderValue<'_> {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_none(),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Integer(integer) => serializer.serialize_i64(*integer),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            Self::Limits(limits) => limits.serialize(serializer),
            Self::Raw(raw) => raw.serialize(serializer),
            Self::EmptyMap => serializer.serialize_map(Some(0))?.end(),
        }
    }
}

impl TaskHeaders<'_> {
    /// Returns the headers that Celery defines and that are written, in
    /// Python's order.
    pub(crate) fn written(&self) -> impl Iterator<Item = (&'static str, HeaderValue<'_>)> {
        let compressed = self.compression.is_some();
        let unset = move |header| header == Header::Compression && !compressed;
        TABLE
            .iter()
            .filter(move |(_, header)| !unset(*header))
            .map(|(_, header)| (header.name(), self.header_value(*header)))
    }

    pub(crate) fn header_value(&self, header: Header) -> HeaderValue<'_> {
        match header {
            Header::Lang => HeaderValue::Text(&self.lang),
            Header::Task => HeaderValue::Text(&self.task),
            Header::Id => HeaderValue::Text(&self.id),
            Header::Shadow => HeaderValue::text(&self.shadow),
            Header::Eta => HeaderValue::text(&self.eta),
            Header::Expires => HeaderValue::text(&self.expires),
            Header::Group => HeaderValue::text(&self.group),
            Header::GroupIndex => self
                .group_index
                .map_or(HeaderValue::Null, HeaderValue::Integer),
            Header::Retries => HeaderValue::Integer(self.retries.into()),
            Header::TimeLimit => HeaderValue::Limits(self.timelimit),
            Header::RootId => HeaderValue::text(&self.root_id),
            Header::ParentId => HeaderValue::text(&self.parent_id),
            Header::ArgsRepr => HeaderValue::text(&self.argsrepr),
            Header::KwargsRepr => HeaderValue::text(&self.kwargsrepr),
            Header::Origin => HeaderValue::text(&self.origin),
            Header::IgnoreResult => self
                .ignore_result
                .map_or(HeaderValue::Null, HeaderValue::Flag),
            Header::ReplacedTaskNesting => HeaderValue::Integer(self.replaced_task_nesting.into()),
            Header::StampedHeaders => self
                .stamped_headers
                .as_ref()
                .map_or(HeaderValue::Null, HeaderValue::Raw),
            Header::Stamps => self
                .stamps
                .as_ref()
                .map_or(HeaderValue::EmptyMap, HeaderValue::Raw),
            Header::Compression => HeaderValue::text(&self.compression),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_headers_are_written_in_pythons_form() {
        let headers = TaskHeaders::new("tasks.add", "id-1");
        let json = Serializer::Json.encode(&headers).unwrap();
        let expected = concat!(
            r#"{"lang":"rust","task":"tasks.add","id":"id-1","shadow":null,"eta":null,"#,
            r#""expires":null,"group":null,"group_index":null,"retries":0,"#,
            r#""timelimit":[null,null],"root_id":"id-1","parent_id":null,"argsrepr":null,"#,
            r#""kwargsrepr":null,"origin":null,"ignore_result":null,"#,
            r#""replaced_task_nesting":0,"stamped_headers":null,"stamps":{}}"#,
        );
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }
}
