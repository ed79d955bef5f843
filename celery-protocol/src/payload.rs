//! The decompressed, undecoded body of a message.

use std::borrow::Cow;

use crate::body::Body;
use crate::codec::Serializer;
use crate::error::DecodeError;
use crate::headers::Headers;
use crate::raw::Raw;
use crate::task_headers::TaskHeaders;
use crate::v1;

/// The decompressed body of a message whose content type was accepted.
///
/// It owns the bytes if they were compressed and borrows them from the message
/// otherwise. A [`Body`] borrows from it.
#[derive(Clone, Debug)]
pub struct Payload<'a> {
    serializer: Serializer,
    bytes: Cow<'a, [u8]>,
    headers: &'a Headers,
}

impl<'a> Payload<'a> {
    pub(crate) fn new(serializer: Serializer, bytes: Cow<'a, [u8]>, headers: &'a Headers) -> Self {
        Self {
            serializer,
            bytes,
            headers,
        }
    }

    /// Returns the serializer that wrote the body.
    pub fn serializer(&self) -> Serializer {
        self.serializer
    }

    /// Returns the serialized body.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the headers and body of a task of either protocol: protocol 2 if
    /// there is a header `task`, otherwise protocol 1. A message with a header
    /// `task` and a mapping as body is read as in Celery: from the body,
    /// overridden by the headers.
    ///
    /// # Errors
    ///
    /// Fails if the headers or the body are not those of a task.
    pub fn task(&self) -> Result<(TaskHeaders<'_>, Body<'_>), DecodeError> {
        let Some(headers) = self.headers.task()? else {
            return self.task_v1();
        };
        let raw = self.raw()?;
        if is_map(&raw) {
            return v1::read_mixed(self.headers, &raw);
        }
        Ok((headers, Body::read(&raw)?))
    }

    /// Returns the body of a task of protocol 2: `[args, kwargs, embed]`.
    ///
    /// # Errors
    ///
    /// Fails if the body is malformed or has another form.
    pub fn body(&self) -> Result<Body<'_>, DecodeError> {
        Body::read(&self.raw()?)
    }

    /// Returns a task of protocol 1, whose body is a mapping.
    ///
    /// # Errors
    ///
    /// Fails if the body is malformed, or not a mapping with `task` and `id`.
    pub fn task_v1(&self) -> Result<(TaskHeaders<'_>, Body<'_>), DecodeError> {
        v1::read(&self.raw()?)
    }

    /// Returns the undecoded body.
    ///
    /// # Errors
    ///
    /// Fails if JSON or YAML is not UTF-8, or if YAML is malformed.
    pub fn raw(&self) -> Result<Raw<'_>, DecodeError> {
        let raw = Raw::read(self.serializer, &self.bytes);
        raw.map_err(|error| error.in_field("body"))
    }
}

fn is_map(raw: &Raw<'_>) -> bool {
    match raw.as_json() {
        Some(text) => text.trim_ascii_start().starts_with('{'),
        None => raw.entries().is_ok(),
    }
}
