//! Headers as a JSON text, and where in it each of them is.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;

use crate::codec::json::{self, Reader};
use crate::error::{DecodeError, DecodeErrorKind};
use crate::raw::Raw;
use crate::task_headers::{Header, TaskHeaders, TimeLimits};
use crate::text::Text;

/// The text of a JSON object with an index of its entries.
///
/// The end of the text is only found by passing over every entry, so their
/// places are noted on the way, and nothing is looked for twice.
#[derive(Clone, Debug)]
pub(crate) struct JsonHeaders {
    text: Bytes,
    index: Index,
}

impl JsonHeaders {
    /// Takes a text that is one JSON object and nothing else.
    pub(super) fn read(text: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(json::text(text)?);
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

    /// Reads the JSON object that comes next in `text`, which the reader reads.
    #[inline]
    pub(crate) fn read_next(reader: &mut Reader<'_>, text: &Bytes) -> Result<Self, DecodeError> {
        if u32::try_from(text.len()).is_err() {
            let limit = u32::MAX as usize;
            return Err(DecodeErrorKind::TooLarge { limit }.into());
        }
        reader.at_map();
        let start = reader.offset();
        let mut index = Index::default();
        index.read(reader, start)?;
        Ok(Self {
            text: text.slice(start..reader.offset()),
            index,
        })
    }

    pub(super) fn text(&self) -> &Bytes {
        &self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.index.count == 0
    }

    /// The value of one header. The last one wins, as in Python's dict.
    pub(super) fn find(&self, name: &str) -> Result<Option<Raw<'_>>, DecodeError> {
        if let Some(header) = Header::named(name) {
            let value = self.value(header);
            return json::text(value)
                .map(|text| Some(text).filter(|text| !text.is_empty()).map(Raw::json));
        }
        for entry in self.index.others.iter().rev() {
            let (key, value) = json::entry(json::text(entry.of(&self.text))?)?;
            if key == name {
                return Ok(Some(Raw::json(value)));
            }
        }
        Ok(None)
    }

    /// The headers of a task; `None` when `task` is missing.
    pub(super) fn task(&self) -> Result<Option<TaskHeaders<'_>>, DecodeError> {
        if self.value(Header::Task).is_empty() {
            return Ok(None);
        }
        if self.value(Header::Id).is_empty() {
            return Err(DecodeError::new("a task message must have one").in_field("id"));
        }
        Ok(Some(TaskHeaders {
            lang: self.text_of(Header::Lang)?.unwrap_or_default(),
            task: self.required(Header::Task)?,
            id: self.required(Header::Id)?,
            shadow: self.text_of(Header::Shadow)?,
            eta: self.text_of(Header::Eta)?,
            expires: self.text_of(Header::Expires)?,
            group: self.text_of(Header::Group)?,
            group_index: self.decode(Header::GroupIndex)?,
            retries: self.decode(Header::Retries)?.unwrap_or_default(),
            timelimit: self.limits()?,
            root_id: self.text_of(Header::RootId)?,
            parent_id: self.text_of(Header::ParentId)?,
            // What cannot be read of the two is not worth failing the task.
            argsrepr: self.text_of(Header::ArgsRepr).unwrap_or_default(),
            kwargsrepr: self.text_of(Header::KwargsRepr).unwrap_or_default(),
            origin: self.text_of(Header::Origin)?,
            ignore_result: self.decode(Header::IgnoreResult)?,
            replaced_task_nesting: self
                .decode(Header::ReplacedTaskNesting)?
                .unwrap_or_default(),
            stamped_headers: self.raw(Header::StampedHeaders)?,
            stamps: self.raw(Header::Stamps)?,
            compression: self.text_of(Header::Compression)?,
            extra: self.others()?,
        }))
    }

    /// The text of a value, empty if there is none.
    #[inline]
    fn value(&self, header: Header) -> &[u8] {
        self.index.known[header as usize].of(&self.text)
    }

    #[inline]
    fn text_of(&self, header: Header) -> Result<Option<Cow<'_, str>>, DecodeError> {
        let value = self.value(header);
        match value {
            [] | [b'n', ..] => Ok(None),
            [b'"', text @ .., b'"'] if memchr::memchr(b'\\', text).is_none() => {
                json::text(text).map(|text| Some(Cow::Borrowed(text)))
            }
            _ => {
                let text: Option<Text<'_>> = self.decode(header)?;
                Ok(text.map(|Text(text)| text))
            }
        }
    }

    fn required(&self, header: Header) -> Result<Cow<'_, str>, DecodeError> {
        let text = self.text_of(header)?;
        text.ok_or_else(|| {
            DecodeError::new("expected a string, found null").in_field(header.name())
        })
    }

    #[inline]
    fn decode<'a, T: Deserialize<'a>>(&'a self, header: Header) -> Result<Option<T>, DecodeError> {
        match self.value(header) {
            [] | [b'n', ..] => Ok(None),
            value => match json::read(value) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(error.in_field(header.name())),
            },
        }
    }

    #[inline]
    fn limits(&self) -> Result<TimeLimits, DecodeError> {
        match self.value(Header::TimeLimit) {
            // By far the most are like this.
            b"[null, null]" | b"[null,null]" => Ok(TimeLimits::default()),
            _ => Ok(self.decode(Header::TimeLimit)?.unwrap_or_default()),
        }
    }

    #[inline]
    fn raw(&self, header: Header) -> Result<Option<Raw<'_>>, DecodeError> {
        match self.value(header) {
            [] | [b'n', ..] => Ok(None),
            value => json::text(value).map(|text| Some(Raw::json(text))),
        }
    }

    #[inline]
    fn others(&self) -> Result<Vec<(Cow<'_, str>, Raw<'_>)>, DecodeError> {
        let mut others = Vec::with_capacity(self.index.others.len());
        for entry in &self.index.others {
            let (name, value) = json::entry(json::text(entry.of(&self.text))?)?;
            others.push((name, Raw::json(value)));
        }
        Ok(others)
    }
}

/// Where the entries of an object are, counted from its start.
#[derive(Clone, Debug, Default)]
struct Index {
    /// The values of Celery's own headers, in the order of their table.
    known: [Span; Header::COUNT],
    /// The other entries, from their key on.
    others: Vec<Span>,
    count: usize,
}

impl Index {
    #[inline]
    fn read(&mut self, reader: &mut Reader<'_>, origin: usize) -> Result<(), DecodeError> {
        let mut place = 0;
        reader.entries(|reader| {
            let start = reader.offset() - origin;
            // Senders write the headers in Python's order, so that each is
            // mostly the one after the last.
            let header = match Header::at(place) {
                Some(header) if reader.has_name(header.spelling()) => Some(header),
                _ => Header::named(&reader.name()?),
            };
            let value = reader.skip()? - origin;
            let end = reader.offset() - origin;
            self.count += 1;
            match header {
                Some(header) => {
                    place = header as usize + 1;
                    self.known[header as usize] = Span::new(value, end);
                }
                None => self.others.push(Span::new(start, end)),
            }
            Ok(())
        })
    }
}

/// A part of the text, which is shorter than 4 GiB. No value is empty, so an
/// empty one says that there is none.
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
