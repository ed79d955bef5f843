//! Reading a map entry by entry, where the generality of serde is not needed.

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
    /// Reads a map. `entry` is called at each key and reads it and the value.
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

    /// Reads a key.
    #[inline]
    pub(crate) fn name(&mut self) -> Result<Cow<'de, str>, DecodeError> {
        let name = self.cursor.string()?;
        self.cursor.punctuation(b':')?;
        Ok(name)
    }

    /// Reads a key that is probably one of `names`, and probably the one at
    /// `place`: senders have an order.
    #[inline]
    pub(crate) fn expected_key<T: Copy>(
        &mut self,
        names: &[(EncodedKey, T)],
        place: &mut usize,
    ) -> Result<KeyMatch<'de, T>, DecodeError> {
        if let Some((encoded, known)) = names.get(*place)
            && self.skip_key(encoded)
        {
            *place += 1;
            return Ok(KeyMatch::Known(*known));
        }
        self.find_key(names, place)
    }

    fn find_key<T: Copy>(
        &mut self,
        names: &[(EncodedKey, T)],
        place: &mut usize,
    ) -> Result<KeyMatch<'de, T>, DecodeError> {
        let name = self.name()?;
        match names
            .iter()
            .position(|(encoded, _)| encoded.has_name(&name))
        {
            Some(found) => {
                *place = found + 1;
                Ok(KeyMatch::Known(names[found].1))
            }
            None => Ok(KeyMatch::Other(name)),
        }
    }

    /// Passes over the entries that come in the order of `names` and have the
    /// values that most have, up to the first key that is another or has
    /// another value, or the last key. `entry` is told where each value is.
    ///
    /// What is passed over here is passed over by [`skip`](Self::skip) as well,
    /// in three times as many steps.
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

    /// Passes over a key and its colon, if they are spelled like this.
    #[inline(always)]
    fn skip_key(&mut self, encoded: &EncodedKey) -> bool {
        let found = encoded.is_prefix_of(self.cursor.rest());
        if found {
            self.cursor.at += encoded.text().len();
        }
        found
    }

    /// Reads a value of whatever type.
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

    /// Reads null, or one of kombu's typed values that is a text.
    #[cold]
    fn typed_text(&mut self) -> Result<Option<Cow<'de, str>>, DecodeError> {
        let text: Option<CowStr<'de>> = self.value()?;
        Ok(text.map(|CowStr(text)| text))
    }

    /// Passes over null, if that comes next.
    #[inline]
    pub(crate) fn null(&mut self) -> Result<bool, DecodeError> {
        if self.cursor.token() != Some(b'n') {
            return Ok(false);
        }
        self.cursor.keyword(b"null").map(|()| true)
    }

    /// Whether a map comes next.
    #[inline]
    pub(crate) fn at_map(&mut self) -> bool {
        self.cursor.token() == Some(b'{')
    }

    /// Reads a number or null. Most numbers of a message have one digit.
    #[inline]
    pub(crate) fn integer_or_null(&mut self) -> Result<Option<i64>, DecodeError> {
        self.cursor.token();
        if let Some(&[digit @ b'0'..=b'9', b',' | b'}']) = self.cursor.rest().first_chunk() {
            self.cursor.at += 1;
            return Ok(Some(i64::from(digit - b'0')));
        }
        self.value()
    }

    /// Passes over the next value, and says where it began and what it is.
    #[inline]
    pub(crate) fn skip(&mut self) -> Result<(usize, ValueKind), DecodeError> {
        let first = self.cursor.token();
        let start = self.cursor.at;
        Ok((start, self.cursor.skip_from(first)?))
    }
}

/// The end of the value that starts there, if it is spelled as most are.
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
        // Time limits.
        _ => {
            let limits = [&b"[null, null]"[..], b"[null,null]"];
            let limits = limits.iter().find(|limits| rest.starts_with(limits))?;
            (start + limits.len(), ValueKind::Other)
        }
    })
}

/// A key.
pub(crate) enum KeyMatch<'de, T> {
    /// One of those that are known.
    Known(T),
    Other(Cow<'de, str>),
}
