//! Result documents, which backends store and `rpc://` sends.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::codec::Serializer;
use crate::compression::Compression;
use crate::cow_str::{CowStr, owned};
use crate::error::{DecodeError, EncodeError};
use crate::exception::Exception;
use crate::raw::Raw;
use crate::state::State;

/// The result document of one task.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ResultDocument<'a> {
    /// The state of the task.
    pub status: State,
    /// The return value of the task; its exception in an exception state; in
    /// other states the data that the task or worker reported.
    pub result: Raw<'a>,
    /// The traceback as text.
    pub traceback: Option<Cow<'a, str>>,
    /// The tasks that this task sent, as an array of result tuples.
    pub children: Option<Raw<'a>>,
    /// The time at which a ready state was reached, in ISO 8601.
    pub date_done: Option<Cow<'a, str>>,
    /// The id of the group of the task, if any.
    pub group_id: Option<Cow<'a, str>>,
    /// The id of the task that sent this task, if any.
    pub parent_id: Option<Cow<'a, str>>,
    /// The name of the task. This field and the following ones up to
    /// `stamped_headers` are stored only with `result_extended`.
    pub name: Option<Cow<'a, str>>,
    /// The positional arguments.
    pub args: Option<Raw<'a>>,
    /// The keyword arguments.
    pub kwargs: Option<Raw<'a>>,
    /// The name of the worker that ran the task.
    pub worker: Option<Cow<'a, str>>,
    /// The number of previous attempts.
    pub retries: Option<u32>,
    /// The queue of the task.
    pub queue: Option<Cow<'a, str>>,
    /// The names of the stamps; each stamp is an entry of `extra`.
    pub stamped_headers: Option<Raw<'a>>,
    /// All other entries.
    pub extra: Vec<(Cow<'a, str>, Raw<'a>)>,
    /// The id of the task.
    pub task_id: Cow<'a, str>,
}

impl<'a> ResultDocument<'a> {
    /// Creates the document of a task in the given state.
    pub fn new(task_id: impl Into<Cow<'a, str>>, status: State, result: Raw<'a>) -> Self {
        Self {
            status,
            result,
            traceback: None,
            children: None,
            date_done: None,
            group_id: None,
            parent_id: None,
            name: None,
            args: None,
            kwargs: None,
            worker: None,
            retries: None,
            queue: None,
            stamped_headers: None,
            extra: Vec::new(),
            task_id: task_id.into(),
        }
    }

    /// Decodes a stored document; its values stay undecoded. Documents stored
    /// with `result_compression` are recognised and decompressed to at most
    /// `limit` bytes.
    ///
    /// # Errors
    ///
    /// Fails if the document is malformed, has no `status`, has an entry with
    /// another type than in Celery, or is larger than `limit`.
    pub fn decode(
        serializer: Serializer,
        bytes: &'a [u8],
        limit: usize,
    ) -> Result<Self, DecodeError> {
        let document = match decompress_document(bytes, limit)? {
            Cow::Borrowed(bytes) => Self::read(serializer, bytes),
            Cow::Owned(bytes) => {
                ResultDocument::read(serializer, &bytes).map(ResultDocument::into_owned)
            }
        };
        document.map_err(|error| error.in_field("result document"))
    }

    fn read(serializer: Serializer, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut document = Self::new("", State::Pending, Raw::NULL);
        let mut has_status = false;
        for (name, value) in Raw::read(serializer, bytes)?.entries()? {
            has_status |= name == "status";
            let put = document.put(&name, &value);
            match put.map_err(|error| error.in_field(&name))? {
                EntryKind::Known => {}
                EntryKind::Unknown => document.extra.push((name, value)),
            }
        }
        if !has_status {
            return Err(DecodeError::new("a result must have this entry").in_field("status"));
        }
        Ok(document)
    }

    fn put(&mut self, name: &str, value: &Raw<'a>) -> Result<EntryKind, DecodeError> {
        match name {
            "status" => self.status = State::named(&value.decode::<CowStr<'_>>()?.0),
            "result" => self.result = value.clone(),
            "traceback" => self.traceback = optional_text(value)?,
            "children" => self.children = non_null(value),
            "date_done" => self.date_done = optional_text(value)?,
            "group_id" => self.group_id = optional_text(value)?,
            "parent_id" => self.parent_id = optional_text(value)?,
            "name" => self.name = optional_text(value)?,
            "args" => self.args = non_null(value),
            "kwargs" => self.kwargs = non_null(value),
            "worker" => self.worker = optional_text(value)?,
            "retries" => self.retries = value.decode()?,
            "queue" => self.queue = optional_text(value)?,
            "stamped_headers" => self.stamped_headers = non_null(value),
            "task_id" => self.task_id = optional_text(value)?.unwrap_or_default(),
            _ => return Ok(EntryKind::Unknown),
        }
        Ok(EntryKind::Known)
    }

    /// Encodes the document.
    ///
    /// # Errors
    ///
    /// Fails if the serializer cannot represent a value.
    pub fn encode(&self, serializer: Serializer) -> Result<Vec<u8>, EncodeError> {
        let bytes = serializer.encode(self);
        bytes.map_err(|error| error.in_field("result document"))
    }

    /// Returns the exception of a failed, retried or revoked task, or `None` in
    /// other states and if no exception was stored.
    ///
    /// # Errors
    ///
    /// Fails if the result is not an exception.
    pub fn exception(&self) -> Result<Option<Exception>, DecodeError> {
        if !self.status.is_exception() || self.result.is_null() {
            return Ok(None);
        }
        let exception = Exception::read(&self.result);
        exception
            .map(Some)
            .map_err(|error| error.in_field("result"))
    }

    /// Converts into a document that does not borrow from the stored bytes.
    pub fn into_owned(self) -> ResultDocument<'static> {
        let entries = self.extra.into_iter();
        ResultDocument {
            status: self.status,
            result: self.result.into_owned(),
            traceback: self.traceback.map(owned),
            children: self.children.map(Raw::into_owned),
            date_done: self.date_done.map(owned),
            group_id: self.group_id.map(owned),
            parent_id: self.parent_id.map(owned),
            name: self.name.map(owned),
            args: self.args.map(Raw::into_owned),
            kwargs: self.kwargs.map(Raw::into_owned),
            worker: self.worker.map(owned),
            retries: self.retries,
            queue: self.queue.map(owned),
            stamped_headers: self.stamped_headers.map(Raw::into_owned),
            extra: entries
                .map(|(name, value)| (owned(name), value.into_owned()))
                .collect(),
            task_id: owned(self.task_id),
        }
    }
}

/// Serializes the entries in Python's order: the first five always, the others
/// only if they are set, and the id last.
impl Serialize for ResultDocument<'_> {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let texts = [
            ("group_id", &self.group_id),
            ("parent_id", &self.parent_id),
            ("name", &self.name),
        ];
        let raws = [("args", &self.args), ("kwargs", &self.kwargs)];
        let mut map = serializer.serialize_map(Some(self.count()))?;
        map.serialize_entry("status", self.status.name())?;
        map.serialize_entry("result", &self.result)?;
        map.serialize_entry("traceback", &self.traceback)?;
        map.serialize_entry("children", &self.children)?;
        map.serialize_entry("date_done", &self.date_done)?;
        for (name, value) in texts {
            entry_if_set(&mut map, name, value.as_ref())?;
        }
        for (name, value) in raws {
            entry_if_set(&mut map, name, value.as_ref())?;
        }
        entry_if_set(&mut map, "worker", self.worker.as_ref())?;
        entry_if_set(&mut map, "retries", self.retries.as_ref())?;
        entry_if_set(&mut map, "queue", self.queue.as_ref())?;
        entry_if_set(&mut map, "stamped_headers", self.stamped_headers.as_ref())?;
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("task_id", &self.task_id)?;
        map.end()
    }
}

impl ResultDocument<'_> {
    /// Returns the number of entries that are written, which msgpack requires
    /// before the entries.
    fn count(&self) -> usize {
        let optional = [
            self.group_id.is_some(),
            self.parent_id.is_some(),
            self.name.is_some(),
            self.args.is_some(),
            self.kwargs.is_some(),
            self.worker.is_some(),
            self.retries.is_some(),
            self.queue.is_some(),
            self.stamped_headers.is_some(),
        ];
        6 + optional.into_iter().filter(|set| *set).count() + self.extra.len()
    }
}

fn entry_if_set<M: SerializeMap, T: Serialize>(
    map: &mut M,
    name: &str,
    value: Option<&T>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, value))
}

/// Whether an entry has a field of its own.
enum EntryKind {
    Known,
    Unknown,
}

fn optional_text<'a>(value: &Raw<'a>) -> Result<Option<Cow<'a, str>>, DecodeError> {
    let text: Option<CowStr<'a>> = value.decode()?;
    Ok(text.map(|CowStr(text)| text))
}

fn non_null<'a>(value: &Raw<'a>) -> Option<Raw<'a>> {
    Some(value).filter(|value| !value.is_null()).cloned()
}

/// A document compressed by `result_compression` of Celery 5.7: a mark, the
/// content type of the compression, a zero byte and the compressed document.
struct CompressedDocument<'a> {
    content_type: &'a str,
    bytes: &'a [u8],
}

const COMPRESSION_MARK: &[u8] = b"\0celery-compressed\0";

impl<'a> CompressedDocument<'a> {
    fn split(document: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        let Some(rest) = document.strip_prefix(COMPRESSION_MARK) else {
            return Ok(None);
        };
        let parts = memchr::memchr(0, rest).map(|end| (&rest[..end], &rest[end + 1..]));
        let parts = parts.and_then(|(name, bytes)| Some((std::str::from_utf8(name).ok()?, bytes)));
        let Some((content_type, bytes)) = parts else {
            return Err(DecodeError::new(
                "the content type of the compression is not terminated by a zero byte",
            )
            .in_field("result document"));
        };
        Ok(Some(Self {
            content_type,
            bytes,
        }))
    }

    fn decompress(&self, limit: usize) -> Result<Vec<u8>, DecodeError> {
        let bytes = match Compression::from_content_type(self.content_type) {
            Some(compression) => compression.decompress(self.bytes, limit),
            None => Err(DecodeError::unknown("compression", self.content_type)),
        };
        bytes.map_err(|error| error.in_field("result document"))
    }
}

/// Compresses an encoded document and adds the mark, as Celery 5.7 does if
/// `result_compression` is set.
///
/// # Errors
///
/// Fails if the feature of the compression is off.
pub fn compress_document(
    compression: Compression,
    document: &[u8],
) -> Result<Vec<u8>, EncodeError> {
    let compressed = compression.compress(document)?;
    Ok([
        COMPRESSION_MARK,
        compression.content_type().as_bytes(),
        b"\0",
        &compressed,
    ]
    .concat())
}

/// Decompresses bytes that were stored with `result_compression` of Celery 5.7.
/// Bytes without its mark are returned unchanged. Celery compresses everything
/// that it stores, not only result documents.
///
/// # Errors
///
/// Fails if the bytes are malformed, if the feature of the compression is off,
/// or if there are more than `limit` bytes.
pub fn decompress_document(bytes: &[u8], limit: usize) -> Result<Cow<'_, [u8]>, DecodeError> {
    match CompressedDocument::split(bytes)? {
        None if bytes.len() > limit => {
            let error = DecodeError::from(crate::error::DecodeErrorKind::TooLarge { limit });
            Err(error.in_field("result document"))
        }
        None => Ok(Cow::Borrowed(bytes)),
        Some(compressed) => compressed.decompress(limit).map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn decode(text: &str) -> Result<ResultDocument<'_>, DecodeError> {
        ResultDocument::decode(Serializer::Json, text.as_bytes(), LIMIT)
    }

    #[test]
    fn document_is_written_in_pythons_order() {
        let mut document = ResultDocument::new("id-1", State::Success, Raw::json("5"));
        document.children = Some(Raw::json("[]"));
        let expected = concat!(
            r#"{"status":"SUCCESS","result":5,"traceback":null,"children":[],"#,
            r#""date_done":null,"task_id":"id-1"}"#,
        );
        let written = document.encode(Serializer::Json).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), expected);

        document.queue = Some("celery".into());
        document.retries = Some(1);
        document.group_id = Some("g-1".into());
        document.extra.push(("trace".into(), Raw::json("7")));
        let written = document.encode(Serializer::Json).unwrap();
        let written = String::from_utf8(written).unwrap();
        assert!(written.ends_with(
            r#""date_done":null,"group_id":"g-1","retries":1,"queue":"celery","trace":7,"task_id":"id-1"}"#
        ), "{written}");
        assert_eq!(decode(&written).unwrap(), document);
    }

    #[test]
    fn exception_is_read_in_exception_states_only() {
        let exception =
            r#"{"exc_type":"ValueError","exc_message":["boom"],"exc_module":"builtins"}"#;
        for (state, has) in [
            ("FAILURE", true),
            ("RETRY", true),
            ("REVOKED", true),
            ("SUCCESS", false),
        ] {
            let text = format!(r#"{{"status":"{state}","result":{exception}}}"#);
            let found = decode(&text).unwrap().exception().unwrap();
            assert_eq!(found.is_some(), has, "{state}");
        }
        let nothing = decode(r#"{"status":"FAILURE","result":null}"#).unwrap();
        assert_eq!(nothing.exception(), Ok(None));
        let not_a_map = decode(r#"{"status":"FAILURE","result":"boom"}"#).unwrap();
        assert_eq!(not_a_map.exception().unwrap_err().field(), Some("result"));
    }

    #[test]
    fn nan_result_is_readable() {
        let document = decode(r#"{"status":"SUCCESS","result":NaN,"task_id":"i"}"#).unwrap();
        assert!(document.result.decode::<f64>().unwrap().is_nan());
    }

    #[test]
    fn malformed_document_error_names_the_field() {
        let cases = [
            ("{}", "result document.status"),
            (r#"{"status":5}"#, "result document.status"),
            (
                r#"{"status":"SUCCESS","task_id":[]}"#,
                "result document.task_id",
            ),
            ("\0celery-compressed\0application/x-gzip", "result document"),
            (
                "\0celery-compressed\0application/x-lz4\0",
                "result document",
            ),
            ("5", "result document"),
        ];
        for (text, field) in cases {
            assert_eq!(decode(text).unwrap_err().field(), Some(field), "{text:?}");
        }
        let large = ResultDocument::decode(Serializer::Json, b"{\"status\":\"SUCCESS\"}", 5);
        assert!(large.unwrap_err().is_too_large());
    }

    #[cfg(feature = "zlib")]
    #[test]
    fn compressed_document_is_read_within_the_limit() {
        let document = ResultDocument::new("id-1", State::Success, Raw::json("[1, 2]"));
        let written = document.encode(Serializer::Json).unwrap();
        let stored = compress_document(Compression::Zlib, &written).unwrap();
        let read = ResultDocument::decode(Serializer::Json, &stored, LIMIT).unwrap();
        assert_eq!(read, document);
        let bomb = ResultDocument::decode(Serializer::Json, &stored, 10).unwrap_err();
        assert!(bomb.is_too_large());
    }
}
