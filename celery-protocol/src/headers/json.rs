//! Headers as a JSON text with an index of the entries.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;

use crate::codec::json::{self, JsonReader, KeyMatch, ValueKind};
use crate::cow_str::CowStr;
use crate::error::{DecodeError, DecodeErrorKind};
use crate::raw::Raw;
use crate::task_headers::{Header, TaskHeaders, TimeLimits};

/// The text of a JSON object with an index of its entries.
///
/// Finding the end of the text requires skipping every entry, so their
/// positions are recorded at the same time, and later lookups do not scan the
/// text again.
#[derive(Clone, Debug)]
pub(crate) struct JsonHeaders {
    text: Bytes,
    index: HeaderIndex,
}

impl JsonHeaders {
    /// Indexes a text that contains exactly one JSON object.
    pub(super) fn read(text: &Bytes) -> Result<Box<Self>, DecodeError> {
        let mut reader = JsonReader::new(json::text(text)?);
        let read = if reader.at_map() {
            Self::read_next(&mut reader, text).and_then(|headers| {
                reader.end()?;
                Ok(headers)
            })
        } else {
            Err(DecodeError::new("expected a mapping"))
        };
        read.map_err(|error| json::in_json(error.at_byte(reader.offset())))
    }

    /// Indexes the JSON object at the position of the reader, whose text is
    /// `text`. The index is large, so it is filled in its final place on the
    /// heap.
    #[inline]
    pub(crate) fn read_next(
        reader: &mut JsonReader<'_>,
        text: &Bytes,
    ) -> Result<Box<Self>, DecodeError> {
        if u32::try_from(text.len()).is_err() {
            let limit = u32::MAX as usize;
            return Err(DecodeErrorKind::TooLarge { limit }.into());
        }
        reader.at_map();
        let start = reader.offset();
        let mut headers = Box::new(Self {
            text: Bytes::new(),
            index: HeaderIndex::default(),
        });
        headers.index.read(reader, start)?;
        headers.text = text.slice(start..reader.offset());
        Ok(headers)
    }

    pub(super) fn text(&self) -> &Bytes {
        &self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.index.count == 0
    }

    /// Returns the value of one header. The last one wins, as in Python's dict.
    pub(super) fn find(&self, name: &str) -> Result<Option<Raw<'_>>, DecodeError> {
        if let Some(header) = Header::from_name(name) {
            return self.find_known(header);
        }
        for entry in self.index.others.iter().rev() {
            let (key, value) = json::entry(json::text(entry.of(&self.text))?)?;
            if key == name {
                return Ok(Some(Raw::json(value)));
            }
        }
        Ok(None)
    }

    /// Returns the value of a header that Celery defines.
    #[inline]
    pub(super) fn find_known(&self, header: Header) -> Result<Option<Raw<'_>>, DecodeError> {
        match self.index.kinds[header as usize] {
            ValueKind::Absent => Ok(None),
            _ => json::text(self.index.known[header as usize].of(&self.text))
                .map(|text| Some(Raw::json(text))),
        }
    }

    /// Returns the headers of a task, or `None` if `task` is missing.
    #[inline]
    pub(super) fn task(&self) -> Result<Option<TaskHeaders<'_>>, DecodeError> {
        if let ValueKind::Absent = self.index.kinds[Header::Task as usize] {
            return Ok(None);
        }
        let text = json::text(&self.text)?;
        KnownHeaders {
            text,
            index: &self.index,
        }
        .task()
        .map(Some)
    }
}

/// The headers that Celery defines, with the text already checked to be UTF-8.
#[derive(Clone, Copy)]
struct KnownHeaders<'a> {
    text: &'a str,
    index: &'a HeaderIndex,
}

impl<'a> KnownHeaders<'a> {
    #[inline]
    fn task(self) -> Result<TaskHeaders<'a>, DecodeError> {
        if let ValueKind::Absent = self.kind(Header::Id) {
            return Err(DecodeError::new("a task message must have this header").in_field("id"));
        }
        Ok(TaskHeaders {
            lang: self.text_of(Header::Lang)?.unwrap_or_default(),
            task: self.required(Header::Task)?,
            id: self.required(Header::Id)?,
            shadow: self.text_of(Header::Shadow)?,
            eta: self.text_of(Header::Eta)?,
            expires: self.text_of(Header::Expires)?,
            group: self.text_of(Header::Group)?,
            group_index: self.decode(Header::GroupIndex)?,
            retries: self.count(Header::Retries)?,
            timelimit: self.limits()?,
            root_id: self.text_of(Header::RootId)?,
            parent_id: self.text_of(Header::ParentId)?,
            // Both are only for display, so an unreadable one does not fail the
            // task.
            argsrepr: self.text_of(Header::ArgsRepr).unwrap_or_default(),
            kwargsrepr: self.text_of(Header::KwargsRepr).unwrap_or_default(),
            origin: self.text_of(Header::Origin)?,
            ignore_result: self.flag(Header::IgnoreResult)?,
            replaced_task_nesting: self.count(Header::ReplacedTaskNesting)?,
            stamped_headers: self.raw(Header::StampedHeaders),
            stamps: self.raw(Header::Stamps),
            compression: self.text_of(Header::Compression)?,
            extra: self.others()?,
        })
    }

    #[inline]
    fn kind(self, header: Header) -> ValueKind {
        self.index.kinds[header as usize]
    }

    /// Returns the JSON text of a value, empty if the header is absent.
    #[inline]
    fn value(self, header: Header) -> &'a str {
        let Span { start, end } = self.index.known[header as usize];
        &self.text[start as usize..end as usize]
    }

    #[inline]
    fn text_of(self, header: Header) -> Result<Option<Cow<'a, str>>, DecodeError> {
        match self.kind(header) {
            ValueKind::Absent | ValueKind::Null => Ok(None),
            ValueKind::PlainText => {
                let Span { start, end } = self.index.known[header as usize];
                let within = start as usize + 1..end as usize - 1;
                Ok(Some(Cow::Borrowed(&self.text[within])))
            }
            ValueKind::Other => self.decoded_text_of(header),
        }
    }

    fn decoded_text_of(self, header: Header) -> Result<Option<Cow<'a, str>>, DecodeError> {
        let text: Option<CowStr<'a>> = self.decode(header)?;
        Ok(text.map(|CowStr(text)| text))
    }

    #[inline]
    fn required(self, header: Header) -> Result<Cow<'a, str>, DecodeError> {
        let text = self.text_of(header)?;
        text.ok_or_else(|| {
            DecodeError::new("expected a string, found null").in_field(header.name())
        })
    }

    #[inline]
    fn decode<T: Deserialize<'a>>(self, header: Header) -> Result<Option<T>, DecodeError> {
        match self.kind(header) {
            ValueKind::Absent | ValueKind::Null => Ok(None),
            _ => match json::read_text(self.value(header)) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(error.in_field(header.name())),
            },
        }
    }

    /// Returns a number. Most numbers in headers are zero.
    #[inline]
    fn count(self, header: Header) -> Result<u32, DecodeError> {
        match self.value(header) {
            "0" => Ok(0),
            _ => Ok(self.decode(header)?.unwrap_or_default()),
        }
    }

    #[inline]
    fn flag(self, header: Header) -> Result<Option<bool>, DecodeError> {
        match self.value(header) {
            "false" => Ok(Some(false)),
            _ => self.decode(header),
        }
    }

    #[inline]
    fn limits(self) -> Result<TimeLimits, DecodeError> {
        match self.value(Header::TimeLimit) {
            // Most messages have no time limits.
            "[null, null]" | "[null,null]" => Ok(TimeLimits::default()),
            _ => Ok(self.decode(Header::TimeLimit)?.unwrap_or_default()),
        }
    }

    #[inline]
    fn raw(self, header: Header) -> Option<Raw<'a>> {
        match self.kind(header) {
            ValueKind::Absent | ValueKind::Null => None,
            _ => Some(Raw::json(self.value(header))),
        }
    }

    #[inline]
    fn others(self) -> Result<Vec<(Cow<'a, str>, Raw<'a>)>, DecodeError> {
        let mut others = Vec::with_capacity(self.index.others.len());
        for Span { start, end } in &self.index.others {
            let (name, value) = json::entry(&self.text[*start as usize..*end as usize])?;
            others.push((name, Raw::json(value)));
        }
        Ok(others)
    }
}

/// The positions of the entries of an object, relative to its start.
#[derive(Clone, Debug, Default)]
struct HeaderIndex {
    /// The values of the headers that Celery defines, in the order of their
    /// table.
    known: [Span; Header::COUNT],
    /// The kinds of those values.
    kinds: [ValueKind; Header::COUNT],
    /// The other entries, each with key and value.
    others: Vec<Span>,
    count: usize,
}

impl HeaderIndex {
    #[inline]
    fn read(&mut self, reader: &mut JsonReader<'_>, origin: usize) -> Result<(), DecodeError> {
        let mut position = 0;
        reader.entries(|reader| {
            let remaining = Header::table().get(position..).unwrap_or_default();
            reader.skip_common_entries(remaining, |header, value, kind| {
                self.known[header as usize] = Span::new(value.start - origin, value.end - origin);
                self.kinds[header as usize] = kind;
                self.count += 1;
                position += 1;
            });
            let start = reader.offset() - origin;
            let name = reader.expected_key(Header::table(), &mut position)?;
            let (value, kind) = reader.skip()?;
            let end = reader.offset() - origin;
            self.count += 1;
            match name {
                KeyMatch::Known(header) => {
                    self.known[header as usize] = Span::new(value - origin, end);
                    self.kinds[header as usize] = kind;
                }
                KeyMatch::Other(_) => self.others.push(Span::new(start, end)),
            }
            Ok(())
        })
    }
}

/// A range of the text, which is shorter than 4 GiB.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    #[inline]
    fn new(start: usize, end: usize) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    #[inline]
    fn of(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }
}
