//! JSON as Python's `json` and kombu write it.
//!
//! This crate has its own reader and writer, because Celery extends JSON.
//! Python writes `NaN` and infinities as bare words and integers of any size;
//! kombu encodes dates, decimals, UUIDs and bytes as maps with the keys
//! `__type__` and `__value__`. A general JSON library rejects or rounds the
//! former and does not support the latter. In addition, parts of a message are
//! skipped and passed on as text ([`Raw`](crate::Raw)) without recursion. The
//! property tests use `serde_json` as the oracle.

mod cursor;
mod encoded_key;
mod entries;
mod key;
mod number;
mod reader;
mod skip;
mod string;
mod typed;
mod variant;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use self::cursor::Cursor;
pub(crate) use self::encoded_key::EncodedKey;
pub(crate) use self::entries::KeyMatch;
pub(crate) use self::reader::JsonReader;
pub(crate) use self::skip::ValueKind;
use super::Serializer;
use super::text::{Dialect as _, TextWriter, json::Json};
use crate::error::{DecodeError, EncodeError};

/// Writes a value at the end of `out`.
#[inline]
pub(crate) fn write<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    value: &T,
) -> Result<(), EncodeError> {
    value.serialize(&mut TextWriter::new(out, Json))
}

/// Writes a text at the end of `out`.
#[inline]
pub(crate) fn write_str(out: &mut Vec<u8>, text: &str) {
    Json.string(out, text);
}

/// Decodes bytes that contain exactly one value.
#[inline]
pub(crate) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, DecodeError> {
    read_text(text(bytes)?)
}

/// Decodes a text that contains exactly one value.
#[inline]
pub(crate) fn read_text<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, DecodeError> {
    let mut reader = JsonReader::new(text);
    match T::deserialize(&mut reader) {
        Ok(value) => reader.end().map(|()| value).map_err(in_json),
        Err(error) => Err(in_json(error.at_byte(reader.offset()))),
    }
}

pub(crate) fn in_json(error: DecodeError) -> DecodeError {
    error.in_content_type(Serializer::Json.content_type())
}

/// Checks that the bytes are UTF-8 and returns them as a text.
#[inline]
pub(crate) fn text(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|error| {
        in_json(DecodeError::malformed("the text is not UTF-8").at_byte(error.valid_up_to()))
    })
}

/// Appends the spans of the elements of an array to `elements`. The text
/// contains the array and nothing else.
#[inline]
pub(crate) fn elements<'t, T, const N: usize>(
    text: &'t str,
    elements: &mut SmallVec<[T; N]>,
    element: impl Fn(&'t str) -> T,
) -> Result<(), DecodeError>
where
    [T; N]: smallvec::Array<Item = T>,
{
    let read = parts(text, [b'[', b']'], |cursor| {
        elements.push(element(cursor.span()?));
        Ok(())
    });
    read.map_err(in_json)
}

/// Appends the keys and the spans of the values of a map to `entries`. The text
/// contains the map and nothing else.
#[inline]
pub(crate) fn entries<'t, T, const N: usize>(
    text: &'t str,
    entries: &mut SmallVec<[T; N]>,
    entry: impl Fn(Cow<'t, str>, &'t str) -> T,
) -> Result<(), DecodeError>
where
    [T; N]: smallvec::Array<Item = T>,
{
    let read = parts(text, [b'{', b'}'], |cursor| {
        let key = cursor.string()?;
        cursor.punctuation(b':')?;
        entries.push(entry(key, cursor.span()?));
        Ok(())
    });
    read.map_err(in_json)
}

/// Returns the spans of the elements of an array of three elements, or `None`
/// for anything else. If the last element begins with one of the texts in
/// `last`, its end is known without scanning it.
pub(crate) fn three_elements<'t>(text: &'t str, last: &[&str]) -> Option<[&'t str; 3]> {
    let mut cursor = Cursor::new(text);
    cursor.punctuation(b'[').ok()?;
    let first = cursor.span().ok()?;
    cursor.punctuation(b',').ok()?;
    let second = cursor.span().ok()?;
    cursor.punctuation(b',').ok()?;
    cursor.token();
    let start = cursor.at;
    match last
        .iter()
        .find(|last| cursor.rest().starts_with(last.as_bytes()))
    {
        Some(last) => cursor.at += last.len(),
        None => cursor.skip_value().ok()?,
    }
    let third = &text[start..cursor.at];
    cursor.punctuation(b']').ok()?;
    cursor.end().ok()?;
    Some([first, second, third])
}

/// Returns the key and the span of the value of one map entry.
pub(crate) fn entry(text: &str) -> Result<(Cow<'_, str>, &str), DecodeError> {
    let mut cursor = Cursor::new(text);
    let key = cursor.string().map_err(in_json)?;
    cursor.punctuation(b':').map_err(in_json)?;
    Ok((key, cursor.span().map_err(in_json)?))
}

/// Reads an array or map. `part` is called once per element or entry and reads
/// it.
#[inline]
fn parts<'t>(
    text: &'t str,
    [open, close]: [u8; 2],
    mut part: impl FnMut(&mut Cursor<'t>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let is_map = open == b'{';
    let mut cursor = Cursor::new(text);
    if cursor.token() != Some(open) {
        return Err(cursor.unexpected(if is_map { "a map" } else { "an array" }));
    }
    cursor.at += 1;
    if cursor.token() == Some(close) {
        cursor.at += 1;
        return cursor.end();
    }
    loop {
        part(&mut cursor)?;
        match cursor.token() {
            Some(b',') => cursor.at += 1,
            Some(byte) if byte == close => break,
            _ => return Err(cursor.unexpected(if is_map { "`,` or `}`" } else { "`,` or `]`" })),
        }
    }
    cursor.at += 1;
    cursor.end()
}
