//! Reading of a map entry by entry, without serde.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;

use super::encoded_key::EncodedKey;
use super::reader::JsonReader;
use super::skip::ValueKind;
use crate::codec::text::escape::first_special;
use crate::cow_str::CowStr;
use crate::error::DecodeError;

impl<'de> JsonReader<'de> {
    /// Reads a map. `entry` is called at each key and reads the key and the
    /// value.
    #[inline]
    pub(crate) fn entries(
        &mut self,
        mut entry: impl FnMut(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        if self.cursor.token() != Some(b'{') {
            return Err(self.cursor.unexpected("a map"));
        }
        self.enter()?;
        if self.cursor.token() == Some(b'}') {
            return self.leave(b'}');
        }
        loop {
            if self.cursor.token() != Some(b'"') {
                return Err(self.cursor.unexpected("`\"` before a key"));
            }
            entry(self)?;
            match self.cursor.token() {
                Some(b',') => self.cursor.at += 1,
                Some(b'}') => return self.leave(b'}'),
                _ => return Err(self.cursor.unexpected("`,` or `}`")),
            }
        }
    }

    /// Reads a key and the colon after it.
    #[inline]
    pub(crate) fn name(&mut self) -> Result<Cow<'de, str>, DecodeError> {
        let name = self.cursor.string()?;
        self.cursor.punctuation(b':')?;
        Ok(name)
    }

    /// Reads a key and finds it in `names`. The entry at `position` is compared
    /// first, because senders write the keys in a fixed order. `position` is set
    /// to the entry after the one found.
    #[inline]
    pub(crate) fn expected_key<T: Copy>(
        &mut self,
        names: &[(EncodedKey, T)],
        position: &mut usize,
    ) -> Result<KeyMatch<'de, T>, DecodeError> {
        if let Some((encoded, known)) = names.get(*position)
            && self.skip_key(encoded)
        {
            *position += 1;
            return Ok(KeyMatch::Known(*known));
        }
        self.find_key(names, position)
    }

    fn find_key<T: Copy>(
        &mut self,
        names: &[(EncodedKey, T)],
        position: &mut usize,
    ) -> Result<KeyMatch<'de, T>, DecodeError> {
        let name = self.name()?;
        match names
            .iter()
            .position(|(encoded, _)| encoded.has_name(&name))
        {
            Some(found) => {
                *position = found + 1;
                Ok(KeyMatch::Known(names[found].1))
            }
            None => Ok(KeyMatch::Other(name)),
        }
    }

    /// Skips entries that have the order of `names` and common values. Stops
    /// before the first entry with another key or another kind of value, and
    /// before the last entry of the map. `entry` receives the position and the
    /// kind of each skipped value.
    ///
    /// [`skip`](Self::skip) gives the same result for these entries and takes
    /// about three times as many steps.
    #[inline]
    pub(crate) fn skip_common_entries<T: Copy>(
        &mut self,
        names: &[(EncodedKey, T)],
        mut entry: impl FnMut(T, Range<usize>, ValueKind),
    ) {
        let text = self.cursor.text.as_bytes();
        let mut at = self.cursor.at;
        for (encoded, known) in names {
            if !text
                .get(at..)
                .is_some_and(|rest| encoded.is_prefix_of(rest))
            {
                break;
            }
            let start = at + encoded.text().len();
            let start = start + usize::from(text.get(start) == Some(&b' '));
            let Some((end, kind)) = common_value(text, start) else {
                break;
            };
            at = match text.get(end..) {
                Some([b',', b' ', b'"', ..]) => end + 2,
                Some([b',', b'"', ..]) => end + 1,
                _ => break,
            };
            entry(*known, start..end, kind);
        }
        self.cursor.at = at;
    }

    /// Skips a key and its colon if they have exactly this JSON form.
    #[inline(always)]
    fn skip_key(&mut self, encoded: &EncodedKey) -> bool {
        let found = encoded.is_prefix_of(self.cursor.rest());
        if found {
            self.cursor.at += encoded.text().len();
        }
        found
    }

    /// Deserializes a value of any type.
    #[inline]
    pub(crate) fn value<T: Deserialize<'de>>(&mut self) -> Result<T, DecodeError> {
        T::deserialize(self)
    }

    /// Reads a text or null.
    #[inline(always)]
    pub(crate) fn text(&mut self) -> Result<Option<Cow<'de, str>>, DecodeError> {
        match self.cursor.token() {
            Some(b'"') => {
                self.cursor.at += 1;
                self.cursor.opened_string().map(Some)
            }
            _ => self.typed_text(),
        }
    }

    /// Reads null, or a typed value of kombu that deserializes to a text.
    #[cold]
    fn typed_text(&mut self) -> Result<Option<Cow<'de, str>>, DecodeError> {
        let text: Option<CowStr<'de>> = self.value()?;
        Ok(text.map(|CowStr(text)| text))
    }

    /// Skips null if it is next, and returns whether it was.
    #[inline]
    pub(crate) fn null(&mut self) -> Result<bool, DecodeError> {
        if self.cursor.token() != Some(b'n') {
            return Ok(false);
        }
        self.cursor.keyword(b"null").map(|()| true)
    }

    /// Returns whether a map is next.
    #[inline]
    pub(crate) fn at_map(&mut self) -> bool {
        self.cursor.token() == Some(b'{')
    }

    /// Reads an integer or null. Most numbers in a message have one digit.
    #[inline]
    pub(crate) fn integer_or_null(&mut self) -> Result<Option<i64>, DecodeError> {
        self.cursor.token();
        if let Some(&[digit @ b'0'..=b'9', b',' | b'}']) = self.cursor.rest().first_chunk() {
            self.cursor.at += 1;
            return Ok(Some(i64::from(digit - b'0')));
        }
        self.value()
    }

    /// Skips the next value, and returns its start and its kind.
    #[inline]
    pub(crate) fn skip(&mut self) -> Result<(usize, ValueKind), DecodeError> {
        let first = self.cursor.token();
        let start = self.cursor.at;
        Ok((start, self.cursor.skip_from(first)?))
    }
}

/// Returns the end and the kind of the value at `start` if it is one of the
/// common ones: null, a text without escapes, one digit, `false` or empty time
/// limits.
#[inline(always)]
fn common_value(text: &[u8], start: usize) -> Option<(usize, ValueKind)> {
    let rest = text.get(start..)?;
    Some(match rest {
        [b'n', b'u', b'l', b'l', ..] => (start + 4, ValueKind::Null),
        [b'"', ..] => {
            let end = first_special(text, start + 1);
            if text.get(end) != Some(&b'"') {
                return None;
            }
            (end + 1, ValueKind::PlainText)
        }
        [b'0'..=b'9', b',', ..] => (start + 1, ValueKind::Other),
        [b'f', b'a', b'l', b's', b'e', ..] => (start + 5, ValueKind::Other),
        // The header `timelimit` without limits.
        _ => {
            let limits = [&b"[null, null]"[..], b"[null,null]"];
            let limits = limits.iter().find(|limits| rest.starts_with(limits))?;
            (start + limits.len(), ValueKind::Other)
        }
    })
}

/// The result of searching a key in a table of known keys.
pub(crate) enum KeyMatch<'de, T> {
    /// The table's value for the key.
    Known(T),
    /// A key that is not in the table.
    Other(Cow<'de, str>),
}
