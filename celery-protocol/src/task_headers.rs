//! The headers of a task message: what can be known without its body.

mod limits;
mod read;
mod write;

use std::borrow::Cow;
use std::time::SystemTime;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::codec::json::Spelling;
use crate::error::DecodeError;
use crate::raw::Raw;
use crate::text::owned;
use crate::time;

pub use self::limits::TimeLimits;
pub(crate) use self::read::Found;
pub(crate) use self::write::Field;

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
            shadow: lent_if_set(&self.shadow),
            eta: lent_if_set(&self.eta),
            expires: lent_if_set(&self.expires),
            group: lent_if_set(&self.group),
            group_index: self.group_index,
            retries: self.retries,
            timelimit: self.timelimit,
            root_id: lent_if_set(&self.root_id),
            parent_id: lent_if_set(&self.parent_id),
            argsrepr: lent_if_set(&self.argsrepr),
            kwargsrepr: lent_if_set(&self.kwargsrepr),
            origin: lent_if_set(&self.origin),
            ignore_result: self.ignore_result,
            replaced_task_nesting: self.replaced_task_nesting,
            stamped_headers: self.stamped_headers.clone(),
            stamps: self.stamps.clone(),
            compression: lent_if_set(&self.compression),
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

static TABLE: [(Spelling, Header); Header::COUNT] = [
    (Spelling::new("\"lang\":"), Header::Lang),
    (Spelling::new("\"task\":"), Header::Task),
    (Spelling::new("\"id\":"), Header::Id),
    (Spelling::new("\"shadow\":"), Header::Shadow),
    (Spelling::new("\"eta\":"), Header::Eta),
    (Spelling::new("\"expires\":"), Header::Expires),
    (Spelling::new("\"group\":"), Header::Group),
    (Spelling::new("\"group_index\":"), Header::GroupIndex),
    (Spelling::new("\"retries\":"), Header::Retries),
    (Spelling::new("\"timelimit\":"), Header::TimeLimit),
    (Spelling::new("\"root_id\":"), Header::RootId),
    (Spelling::new("\"parent_id\":"), Header::ParentId),
    (Spelling::new("\"argsrepr\":"), Header::ArgsRepr),
    (Spelling::new("\"kwargsrepr\":"), Header::KwargsRepr),
    (Spelling::new("\"origin\":"), Header::Origin),
    (Spelling::new("\"ignore_result\":"), Header::IgnoreResult),
    (
        Spelling::new("\"replaced_task_nesting\":"),
        Header::ReplacedTaskNesting,
    ),
    (
        Spelling::new("\"stamped_headers\":"),
        Header::StampedHeaders,
    ),
    (Spelling::new("\"stamps\":"), Header::Stamps),
    (Spelling::new("\"compression\":"), Header::Compression),
];

impl Header {
    pub(crate) const COUNT: usize = Self::Compression as usize + 1;

    pub(crate) fn name(self) -> &'static str {
        TABLE[self as usize].0.name()
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let (_, header) = TABLE.iter().find(|(spelling, _)| spelling.is(name))?;
        Some(*header)
    }

    /// Finds a header, trying first the one at `place` of the table: senders
    /// write them in Python's order, so that the first look is mostly enough.
    #[inline]
    fn named_near(name: &str, place: usize) -> Option<Self> {
        match TABLE.get(place) {
            Some((spelling, header)) if spelling.is(name) => Some(*header),
            _ => Self::named(name),
        }
    }

    /// All headers by their names, in Python's order.
    #[inline]
    pub(crate) fn table() -> &'static [(Spelling, Self)] {
        &TABLE
    }
}

fn instant(text: Option<&str>, field: &str) -> Result<Option<SystemTime>, DecodeError> {
    let Some(text) = text else { return Ok(None) };
    let time = time::parse(text).map_err(|error| error.in_field(field))?;
    Ok(Some(time))
}

fn lent(text: &str) -> Cow<'_, str> {
    Cow::Borrowed(text)
}

fn lent_if_set<'b>(text: &'b Option<Cow<'_, str>>) -> Option<Cow<'b, str>> {
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
    fn table_follows_the_enum() {
        for (place, (name, header)) in TABLE.iter().enumerate() {
            assert_eq!(*header as usize, place);
            assert_eq!(Header::named(header.name()), Some(*header));
            assert_eq!(name.text(), format!("\"{}\":", header.name()));
        }
    }
}
