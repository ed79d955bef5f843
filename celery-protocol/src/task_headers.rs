//! The typed headers of a task message.

mod limits;
mod read;
mod write;

use std::borrow::Cow;
use std::time::SystemTime;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::codec::json::EncodedKey;
use crate::cow_str::owned;
use crate::error::DecodeError;
use crate::raw::Raw;
use crate::time;

pub use self::limits::TimeLimits;
pub(crate) use self::read::ParsedHeaders;
pub(crate) use self::write::HeaderValue;

/// The headers of a task message of protocol 2.
///
/// Protocol 1 has the same entries in the body;
/// [`Payload::task`](crate::Payload::task) returns them in this type as well.
/// All headers except `task` and `id` may be missing or null in a message.
/// Headers that Celery does not define are stored in `extra` and written back.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TaskHeaders<'a> {
    /// The language of the sender: `py`, `rust`.
    pub lang: Cow<'a, str>,
    /// The name of the task.
    pub task: Cow<'a, str>,
    /// The id of this call, and the key of its result.
    pub id: Cow<'a, str>,
    /// The name that logs show instead of the name of the task.
    pub shadow: Option<Cow<'a, str>>,
    /// The earliest time at which the task may run, in ISO 8601.
    pub eta: Option<Cow<'a, str>>,
    /// The time after which the task is not started, in ISO 8601.
    pub expires: Option<Cow<'a, str>>,
    /// The id of the group that the task belongs to.
    pub group: Option<Cow<'a, str>>,
    /// The index of the task in the group, which determines the order of the
    /// results of a chord.
    pub group_index: Option<i64>,
    /// The number of previous attempts.
    pub retries: u32,
    /// The time limits of the task.
    pub timelimit: TimeLimits,
    /// The id of the first task of the workflow.
    pub root_id: Option<Cow<'a, str>>,
    /// The id of the task that sent this one.
    pub parent_id: Option<Cow<'a, str>>,
    /// The positional arguments as Python prints them, shortened; for display.
    pub argsrepr: Option<Cow<'a, str>>,
    /// The keyword arguments as Python prints them, shortened; for display.
    pub kwargsrepr: Option<Cow<'a, str>>,
    /// The name of the sender: `gen4711@host`.
    pub origin: Option<Cow<'a, str>>,
    /// Whether the result is discarded; with `None` the options of the task
    /// decide.
    pub ignore_result: Option<bool>,
    /// The number of times that a task with this id has replaced itself.
    pub replaced_task_nesting: u32,
    /// The names of the stamps.
    pub stamped_headers: Option<Raw<'a>>,
    /// The stamps by name; `None` is encoded as an empty map.
    pub stamps: Option<Raw<'a>>,
    /// The content type of the body's compression.
    pub compression: Option<Cow<'a, str>>,
    /// All other headers, in the order of the message.
    pub extra: Vec<(Cow<'a, str>, Raw<'a>)>,
}

impl<'a> TaskHeaders<'a> {
    /// Creates the headers of a task that belongs to no other workflow: its
    /// root id is its own id.
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

    /// Creates headers with every header absent.
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

    /// Returns the earliest time at which the task may run.
    ///
    /// # Errors
    ///
    /// Fails if `eta` is not a time.
    pub fn eta_time(&self) -> Result<Option<SystemTime>, DecodeError> {
        parse_time(self.eta.as_deref(), "headers.eta")
    }

    /// Returns the time after which the task is not started.
    ///
    /// # Errors
    ///
    /// Fails if `expires` is not a time.
    pub fn expires_time(&self) -> Result<Option<SystemTime>, DecodeError> {
        parse_time(self.expires.as_deref(), "headers.expires")
    }

    /// Returns the value of a header that Celery does not define.
    pub fn extra(&self, name: &str) -> Option<&Raw<'a>> {
        let found = self.extra.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }

    /// Converts into headers that do not borrow from the message.
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

    /// Returns headers that borrow from these.
    pub fn borrowed(&self) -> TaskHeaders<'_> {
        TaskHeaders {
            lang: borrowed_text(&self.lang),
            task: borrowed_text(&self.task),
            id: borrowed_text(&self.id),
            shadow: borrowed_option(&self.shadow),
            eta: borrowed_option(&self.eta),
            expires: borrowed_option(&self.expires),
            group: borrowed_option(&self.group),
            group_index: self.group_index,
            retries: self.retries,
            timelimit: self.timelimit,
            root_id: borrowed_option(&self.root_id),
            parent_id: borrowed_option(&self.parent_id),
            argsrepr: borrowed_option(&self.argsrepr),
            kwargsrepr: borrowed_option(&self.kwargsrepr),
            origin: borrowed_option(&self.origin),
            ignore_result: self.ignore_result,
            replaced_task_nesting: self.replaced_task_nesting,
            stamped_headers: self.stamped_headers.clone(),
            stamps: self.stamps.clone(),
            compression: borrowed_option(&self.compression),
            extra: self
                .extra
                .iter()
                .map(|(key, raw)| (borrowed_text(key), raw.clone()))
                .collect(),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for TaskHeaders<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = ParsedHeaders::deserialize(deserializer)?;
        if !found.has_task {
            return Err(D::Error::missing_field("task"));
        }
        if !found.has_id {
            return Err(D::Error::missing_field("id"));
        }
        Ok(found.headers)
    }
}

/// Serializes all headers that Python writes, in the same order, with unset
/// ones as null.
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
    /// Written only if the body is compressed.
    Compression,
}

static TABLE: [(EncodedKey, Header); Header::COUNT] = [
    (EncodedKey::new("\"lang\":"), Header::Lang),
    (EncodedKey::new("\"task\":"), Header::Task),
    (EncodedKey::new("\"id\":"), Header::Id),
    (EncodedKey::new("\"shadow\":"), Header::Shadow),
    (EncodedKey::new("\"eta\":"), Header::Eta),
    (EncodedKey::new("\"expires\":"), Header::Expires),
    (EncodedKey::new("\"group\":"), Header::Group),
    (EncodedKey::new("\"group_index\":"), Header::GroupIndex),
    (EncodedKey::new("\"retries\":"), Header::Retries),
    (EncodedKey::new("\"timelimit\":"), Header::TimeLimit),
    (EncodedKey::new("\"root_id\":"), Header::RootId),
    (EncodedKey::new("\"parent_id\":"), Header::ParentId),
    (EncodedKey::new("\"argsrepr\":"), Header::ArgsRepr),
    (EncodedKey::new("\"kwargsrepr\":"), Header::KwargsRepr),
    (EncodedKey::new("\"origin\":"), Header::Origin),
    (EncodedKey::new("\"ignore_result\":"), Header::IgnoreResult),
    (
        EncodedKey::new("\"replaced_task_nesting\":"),
        Header::ReplacedTaskNesting,
    ),
    (
        EncodedKey::new("\"stamped_headers\":"),
        Header::StampedHeaders,
    ),
    (EncodedKey::new("\"stamps\":"), Header::Stamps),
    (EncodedKey::new("\"compression\":"), Header::Compression),
];

impl Header {
    pub(crate) const COUNT: usize = Self::Compression as usize + 1;

    pub(crate) fn name(self) -> &'static str {
        TABLE[self as usize].0.name()
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let (_, header) = TABLE.iter().find(|(key, _)| key.has_name(name))?;
        Some(*header)
    }

    /// Finds a header by its name and compares the one at `position` of the table
    /// first, because senders write the headers in Python's order.
    #[inline]
    fn from_expected_name(name: &str, position: usize) -> Option<Self> {
        match TABLE.get(position) {
            Some((key, header)) if key.has_name(name) => Some(*header),
            _ => Self::from_name(name),
        }
    }

    /// Returns all headers with their names, in Python's order.
    #[inline]
    pub(crate) fn table() -> &'static [(EncodedKey, Self)] {
        &TABLE
    }
}

fn parse_time(text: Option<&str>, field: &str) -> Result<Option<SystemTime>, DecodeError> {
    let Some(text) = text else { return Ok(None) };
    let time = time::parse(text).map_err(|error| error.in_field(field))?;
    Ok(Some(time))
}

fn borrowed_text(text: &str) -> Cow<'_, str> {
    Cow::Borrowed(text)
}

fn borrowed_option<'b>(text: &'b Option<Cow<'_, str>>) -> Option<Cow<'b, str>> {
    text.as_deref().map(Cow::Borrowed)
}

fn owned_entries(entries: Vec<(Cow<'_, str>, Raw<'_>)>) -> Vec<(Cow<'static, str>, Raw<'static>)> {
    let own = |(name, value): (Cow<'_, str>, Raw<'_>)| (owned(name), value.into_owned());
    entries.into_iter().map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_table_has_the_order_of_the_enum() {
        for (position, (name, header)) in TABLE.iter().enumerate() {
            assert_eq!(*header as usize, position);
            assert_eq!(Header::from_name(header.name()), Some(*header));
            assert_eq!(name.text(), format!("\"{}\":", header.name()));
        }
    }
}
