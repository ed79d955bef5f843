//! Reading a map entry by entry, where the generality of serde is not needed.

use std::borrow::Cow;

use serde::Deserialize;

use super::reader::Reader;
use crate::error::DecodeError;
use crate::text::Text;

impl<'de> Reader<'de> {
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

    /// Reads a key that is probably one of `names`, spelled with quotes and
    /// colon, and probably the one at `place`: senders have an order.
    #[inline]
    pub(crate) fn name_near<'n: 'de>(
        &mut self,
        names: &[&'n str],
        place: &mut usize,
    ) -> Result<Cow<'de, str>, DecodeError> {
        if let Some(spelling) = names.get(*place)
            && self.has_name(spelling)
        {
            *place += 1;
            return Ok(Cow::Borrowed(name_of(spelling)));
        }
        let name = self.name()?;
        if let Some(found) = names.iter().position(|spelling| name_of(spelling) == name) {
            *place = found + 1;
        }
        Ok(name)
    }

    /// Passes over a key and its colon, if they are spelled like this.
    #[inline]
    pub(crate) fn has_name(&mut self, spelling: &str) -> bool {
        let found = self.cursor.rest().starts_with(spelling.as_bytes());
        if found {
            self.cursor.at += spelling.len();
        }
        found
    }

    /// Reads a value of whatever type.
    #[inline]
    pub(crate) fn value<T: Deserialize<'de>>(&mut self) -> Result<T, DecodeError> {
        T::deserialize(self)
    }

    /// Reads a text or null.
    #[inline]
    pub(crate) fn text(&mut self) -> Result<Option<Cow<'de, str>>, DecodeError> {
        match self.cursor.token() {
            Some(b'"') => self.cursor.string().map(Some),
            _ => self.odd_text(),
        }
    }

    /// Reads null, or one of kombu's typed values that is a text.
    fn odd_text(&mut self) -> Result<Option<Cow<'de, str>>, DecodeError> {
        let text: Option<Text<'de>> = self.value()?;
        Ok(text.map(|Text(text)| text))
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

    /// Passes over the next value and says where it began.
    #[inline]
    pub(crate) fn skip(&mut self) -> Result<usize, DecodeError> {
        let first = self.cursor.token();
        let start = self.cursor.at;
        self.cursor.skip_from(first)?;
        Ok(start)
    }
}

/// The name in its spelling with quotes and colon.
#[inline]
fn name_of(spelling: &str) -> &str {
    spelling
        .get(1..spelling.len().saturating_sub(2))
        .unwrap_or_default()
}
