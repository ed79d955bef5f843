//! The headers of a task message: what can be known without its body.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::error::DecodeError;
use crate::raw::Raw;
use crate::text::{Text, owned};
use crate::time;

/// The headers of a task, as protocol version 2 carries them.
///
/// Protocol 1 keeps the same facts in the body; read from there, they appear
/// here too. Everything but `task` and `id` may be missing or null in a message.
/// What Celery does not define is kept in `extra` and written back.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TaskHeaders<'a> {
    /// The language of the sender: `py`, `rust`.
    pub lang: Cow<'a, str>,
    /// The name of the task.
    pub task: Cow<'a, str>,
    /// The id of this call, and the key of its result.
    pub id: Cow<'a, str>,
    /// A name to show in logs instead of the task's.
    pub shadow: Option<Cow<'a, str>>,
    /// Not to be run before this time, in ISO 8601.
    pub eta: Option<Cow<'a, str>>,
    /// Not to be run after this time, in ISO 8601.
    pub expires: Option<Cow<'a, str>>,
    /// The id of the group it belongs to.
    pub group: Option<Cow<'a, str>>,
    /// Its place in the group, which orders the results of a chord.
    pub group_index: Option<i64>,
    /// How many times it has been tried before.
    pub retries: u32,
    /// How long it may run.
    pub timelimit: TimeLimits,
    /// The id of the first task of the workflow.
    pub root_id: Option<Cow<'a, str>>,
    /// The id of the task that sent this one.
    pub parent_id: Option<Cow<'a, str>>,
    /// The positional arguments as Python prints them, shortened; for display.
    pub argsrepr: Option<Cow<'a, str>>,
    /// The keyword arguments as Python prints them, shortened; for display.
    pub kwargsrepr: Option<Cow<'a, str>>,
    /// The node that sent it: `gen4711@host`.
    pub origin: Option<Cow<'a, str>>,
    /// Whether its result is thrown away; `None` leaves that to the task.
    pub ignore_result: Option<bool>,
    /// How many times a task of this id has replaced itself.
    pub replaced_task_nesting: u32,
    /// The names of the stamps.
    pub stamped_headers: Option<Raw<'a>>,
    /// The stamps by name; `None` is written as the empty map.
    pub stamps: Option<Raw<'a>>,
    /// The content type of the body's compression.
    pub compression: Option<Cow<'a, str>>,
    /// All other headers, in the order of the message.
    pub extra: Vec<(Cow<'a, str>, Raw<'a>)>,
}

impl<'a> TaskHeaders<'a> {
    /// The headers of a first call of `task`, which is its own root.
    pub fn new(task: impl Into<Cow<'a, str>>, id: impl Into<Cow<'a, str>>) -> Self {
        let id = id.into();
        Self {
            lang: Cow::Borrowed("rust"),
            task: task.into(),
            root_id: Some(id.clone()),
            id,
            ..Self::unset()
        }
    }

    /// Every header absent.
    pub(crate) fn unset() -> Self {
        Self {
            lang: Cow::Borrowed(""),
            task: Cow::Borrowed(""),
            id: Cow::Borrowed(""),
            shadow: None,
            eta: None,
            expires: None,
            group: None,
            group_index: None,
            retries: 0,
            timelimit: TimeLimits::default(),
            root_id: None,
            parent_id: None,
            argsrepr: None,
            kwargsrepr: None,
            origin: None,
            ignore_result: None,
            replaced_task_nesting: 0,
            stamped_headers: None,
            stamps: None,
            compression: None,
            extra: Vec::new(),
        }
    }

    /// When the task may run.
    ///
    /// # Errors
    ///
    /// When `eta` is not a time.
    pub fn eta_time(&self) -> Result<Option<SystemTime>, DecodeError> {
        instant(self.eta.as_deref(), "headers.eta")
    }

    /// When the task may no longer run.
    ///
    /// # Errors
    ///
    /// When `expires` is not a time.
    pub fn expires_time(&self) -> Result<Option<SystemTime>, DecodeError> {
        instant(self.expires.as_deref(), "headers.expires")
    }

    /// A header that Celery does not define.
    pub fn extra(&self, name: &str) -> Option<&Raw<'a>> {
        let found = self.extra.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }

    /// The same headers without borrows.
    pub fn into_owned(self) -> TaskHeaders<'static> {
        TaskHeaders {
            lang: owned(self.lang),
            task: owned(self.task),
            id: owned(self.id),
            shadow: self.shadow.map(owned),
            eta: self.eta.map(owned),
            expires: self.expires.map(owned),
            group: self.group.map(owned),
            group_index: self.group_index,
            retries: self.retries,
            timelimit: self.timelimit,
            root_id: self.root_id.map(owned),
            parent_id: self.parent_id.map(owned),
            argsrepr: self.argsrepr.map(owned),
            kwargsrepr: self.kwargsrepr.map(owned),
            origin: self.origin.map(owned),
            ignore_result: self.ignore_result,
            replaced_task_nesting: self.replaced_task_nesting,
            stamped_headers: self.stamped_headers.map(Raw::into_owned),
            stamps: self.stamps.map(Raw::into_owned),
            compression: self.compression.map(owned),
            extra: owned_entries(self.extra),
        }
    }

    /// The same headers, lent.
    pub fn borrowed(&self) -> TaskHeaders<'_> {
        TaskHeaders {
            lang: lent(&self.lang),
            task: lent(&self.task),
            id: lent(&self.id),
            shadow: self.shadow.as_ref().map(lent),
            eta: self.eta.as_ref().map(lent),
            expires: self.expires.as_ref().map(lent),
            group: self.group.as_ref().map(lent),
            group_index: self.group_index,
            retries: self.retries,
            timelimit: self.timelimit,
            root_id: self.root_id.as_ref().map(lent),
            parent_id: self.parent_id.as_ref().map(lent),
            argsrepr: self.argsrepr.as_ref().map(lent),
            kwargsrepr: self.kwargsrepr.as_ref().map(lent),
            origin: self.origin.as_ref().map(lent),
            ignore_result: self.ignore_result,
            replaced_task_nesting: self.replaced_task_nesting,
            stamped_headers: self.stamped_headers.clone(),
            stamps: self.stamps.clone(),
            compression: self.compression.as_ref().map(lent),
            extra: self
                .extra
                .iter()
                .map(|(key, raw)| (lent(key), raw.clone()))
                .collect(),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for TaskHeaders<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = Found::deserialize(deserializer)?;
        match (found.has_task, found.has_id) {
            (true, true) => Ok(found.headers),
            (false, _) => Err(D::Error::missing_field("task")),
            (true, false) => Err(D::Error::missing_field("id")),
        }
    }
}

/// Writes all headers that Python writes, in its order, unset ones as null.
impl Serialize for TaskHeaders<'_> {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let count = self.written().count() + self.extra.len();
        let mut map = serializer.serialize_map(Some(count))?;
        for (name, field) in self.written() {
            map.serialize_entry(name, &field)?;
        }
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Hard and soft time limits in seconds, the header `timelimit`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimeLimits {
    /// The task is killed after this time.
    pub hard: Option<f64>,
    /// The task is told to stop after this time.
    pub soft: Option<f64>,
}

impl Serialize for TimeLimits {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Seconds(self.hard), Seconds(self.soft)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TimeLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (hard, soft) = Option::deserialize(deserializer)?.unwrap_or_default();
        Ok(Self { hard, soft })
    }
}

/// Whole seconds are written as an integer, as Python writes what it was given.
struct Seconds(Option<f64>);

impl Serialize for Seconds {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: beyond, f64 skips integers
        match self.0 {
            None => serializer.serialize_none(),
            Some(seconds) if seconds.fract() == 0.0 && seconds.abs() < EXACT => {
                serializer.serialize_i64(seconds as i64)
            }
            Some(seconds) => serializer.serialize_f64(seconds),
        }
    }
}

/// The headers that Celery defines, in the order in which Python writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Lang,
    Task,
    Id,
    Shadow,
    Eta,
    Expires,
    Group,
    GroupIndex,
    Retries,
    TimeLimit,
    RootId,
    ParentId,
    ArgsRepr,
    KwargsRepr,
    Origin,
    IgnoreResult,
    ReplacedTaskNesting,
    StampedHeaders,
    Stamps,
    /// Added by the serializing layer, and only when a body is compressed.
    Compression,
}

const TABLE: [(&str, Header); 20] = [
    ("lang", Header::Lang),
    ("task", Header::Task),
    ("id", Header::Id),
    ("shadow", Header::Shadow),
    ("eta", Header::Eta),
    ("expires", Header::Expires),
    ("group", Header::Group),
    ("group_index", Header::GroupIndex),
    ("retries", Header::Retries),
    ("timelimit", Header::TimeLimit),
    ("root_id", Header::RootId),
    ("parent_id", Header::ParentId),
    ("argsrepr", Header::ArgsRepr),
    ("kwargsrepr", Header::KwargsRepr),
    ("origin", Header::Origin),
    ("ignore_result", Header::IgnoreResult),
    ("replaced_task_nesting", Header::ReplacedTaskNesting),
    ("stamped_headers", Header::StampedHeaders),
    ("stamps", Header::Stamps),
    ("compression", Header::Compression),
];

impl Header {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::named_near(name, 0)
    }

    /// Finds a header, trying first the one at `place` of the table: senders
    /// write them in Python's order, so that the first look is mostly enough.
    #[inline]
    fn named_near(name: &str, place: usize) -> Option<Self> {
        if let Some((_, header)) = TABLE.get(place).filter(|row| row.0 == name) {
            return Some(*header);
        }
        let (_, header) = TABLE.iter().find(|row| row.0 == name)?;
        Some(*header)
    }
}

/// What is written under one header.
#[derive(Clone, Copy)]
pub(crate) enum Field<'b> {
    Null,
    Text(&'b str),
    Integer(i64),
    Flag(bool),
    Limits(TimeLimits),
    Raw(&'b Raw<'b>),
    EmptyMap,
}

impl<'b> Field<'b> {
    fn text(text: &'b Option<Cow<'_, str>>) -> Self {
        text.as_deref().map_or(Self::Null, Self::Text)
    }
}

impl Serialize for Field<'_> {
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
    /// The headers of Celery's own that are written, in their order.
    pub(crate) fn written(&self) -> impl Iterator<Item = (&'static str, Field<'_>)> {
        let compressed = self.compression.is_some();
        let unset = move |header| header == Header::Compression && !compressed;
        TABLE
            .iter()
            .filter(move |(_, header)| !unset(*header))
            .map(|(name, header)| (*name, self.field(*header)))
    }

    pub(crate) fn field(&self, header: Header) -> Field<'_> {
        match header {
            Header::Lang => Field::Text(&self.lang),
            Header::Task => Field::Text(&self.task),
            Header::Id => Field::Text(&self.id),
            Header::Shadow => Field::text(&self.shadow),
            Header::Eta => Field::text(&self.eta),
            Header::Expires => Field::text(&self.expires),
            Header::Group => Field::text(&self.group),
            Header::GroupIndex => self.group_index.map_or(Field::Null, Field::Integer),
            Header::Retries => Field::Integer(self.retries.into()),
            Header::TimeLimit => Field::Limits(self.timelimit),
            Header::RootId => Field::text(&self.root_id),
            Header::ParentId => Field::text(&self.parent_id),
            Header::ArgsRepr => Field::text(&self.argsrepr),
            Header::KwargsRepr => Field::text(&self.kwargsrepr),
            Header::Origin => Field::text(&self.origin),
            Header::IgnoreResult => self.ignore_result.map_or(Field::Null, Field::Flag),
            Header::ReplacedTaskNesting => Field::Integer(self.replaced_task_nesting.into()),
            Header::StampedHeaders => self
                .stamped_headers
                .as_ref()
                .map_or(Field::Null, Field::Raw),
            Header::Stamps => self.stamps.as_ref().map_or(Field::EmptyMap, Field::Raw),
            Header::Compression => Field::text(&self.compression),
        }
    }
}

/// A mapping read as headers, before it is known to be a task's.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub(crate) headers: TaskHeaders<'a>,
    has_task: bool,
    has_id: bool,
}

impl<'a> Found<'a> {
    /// The headers of a task; `None` when `task` is missing.
    pub(crate) fn task(self) -> Result<Option<TaskHeaders<'a>>, DecodeError> {
        match (self.has_task, self.has_id) {
            (true, true) => Ok(Some(self.headers)),
            (false, _) => Ok(None),
            (true, false) => Err(DecodeError::new("a task message must have one").in_field("id")),
        }
    }

    /// Takes one header from the message.
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
            Header::Retries => headers.retries = optional(map)?,
            Header::TimeLimit => headers.timelimit = map.next_value()?,
            Header::RootId => headers.root_id = optional_text(map)?,
            Header::ParentId => headers.parent_id = optional_text(map)?,
            Header::ArgsRepr => headers.argsrepr = display_text(map)?,
            Header::KwargsRepr => headers.kwargsrepr = display_text(map)?,
            Header::Origin => headers.origin = optional_text(map)?,
            Header::IgnoreResult => headers.ignore_result = map.next_value()?,
            Header::ReplacedTaskNesting => headers.replaced_task_nesting = optional(map)?,
            Header::StampedHeaders => headers.stamped_headers = map.next_value()?,
            Header::Stamps => headers.stamps = map.next_value()?,
            Header::Compression => headers.compression = optional_text(map)?,
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Found<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FoundVisitor)
    }
}

struct FoundVisitor;

impl<'de> Visitor<'de> for FoundVisitor {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of headers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Found {
            headers: TaskHeaders::unset(),
            has_task: false,
            has_id: false,
        };
        let mut place = 0;
        while let Some(Text(name)) = map.next_key()? {
            match Header::named_near(&name, place) {
                Some(header) => {
                    found.take(header, &mut map)?;
                    place = header as usize + 1;
                }
                None => {
                    let value = map.next_value()?;
                    found.headers.extra.push((name, value));
                }
            }
        }
        Ok(found)
    }
}

fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Cow<'de, str>, A::Error> {
    let Text(text) = map.next_value()?;
    Ok(text)
}

fn optional_text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    let text: Option<Text<'de>> = map.next_value()?;
    Ok(text.map(|Text(text)| text))
}

/// A text that is only shown. Python copies the lone surrogates of arguments
/// into it; what cannot be read counts as absent, so that the task still can.
fn display_text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    let raw: Raw<'de> = map.next_value()?;
    let text = raw.decode::<Option<Text<'de>>>().unwrap_or_default();
    Ok(text.map(|Text(text)| text))
}

/// A number for which other senders write null: rusty-celery's `retries`.
fn optional<'de, A: MapAccess<'de>>(map: &mut A) -> Result<u32, A::Error> {
    let number: Option<u32> = map.next_value()?;
    Ok(number.unwrap_or_default())
}

fn instant(text: Option<&str>, field: &str) -> Result<Option<SystemTime>, DecodeError> {
    let Some(text) = text else { return Ok(None) };
    let time = time::parse(text).map_err(|error| error.in_field(field))?;
    Ok(Some(time))
}

fn lent<'b>(text: &'b Cow<'_, str>) -> Cow<'b, str> {
    Cow::Borrowed(text)
}

fn owned_entries(entries: Vec<(Cow<'_, str>, Raw<'_>)>) -> Vec<(Cow<'static, str>, Raw<'static>)> {
    let own = |(name, value): (Cow<'_, str>, Raw<'_>)| (owned(name), value.into_owned());
    entries.into_iter().map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Serializer;

    #[test]
    fn table_follows_the_enum() {
        for (place, (name, header)) in TABLE.iter().enumerate() {
            assert_eq!(*header as usize, place);
            assert_eq!(Header::named(name), Some(*header));
        }
    }

    #[test]
    fn new_headers_are_written_as_python_writes_them() {
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

    #[test]
    fn nulls_are_read_as_unset() {
        let json = br#"{"task":"t","id":"i","lang":null,"retries":null,"timelimit":null,
            "replaced_task_nesting":null,"stamps":null,"ignore_result":null,"eta":null}"#;
        let headers: TaskHeaders<'_> = Serializer::Json.decode(json).unwrap();
        let mut expected = TaskHeaders::new("t", "i");
        expected.lang = "".into();
        expected.root_id = None;
        assert_eq!(headers, expected);
    }

    #[test]
    fn names_are_found_in_any_order() {
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
    fn whole_time_limits_are_written_as_integers() {
        let limits = TimeLimits {
            hard: Some(30.0),
            soft: Some(20.5),
        };
        assert_eq!(Serializer::Json.encode(&limits).unwrap(), b"[30,20.5]");
    }
}
