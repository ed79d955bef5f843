//! Passing over JSON without decoding it.

use super::cursor::Cursor;
use crate::codec::SCAN_DEPTH;
use crate::codec::text::escape::first_special;
use crate::error::{DecodeError, DecodeErrorKind};

impl<'de> Cursor<'de> {
    /// Passes over the next value and returns its text.
    #[inline]
    pub(super) fn span(&mut self) -> Result<&'de str, DecodeError> {
        self.token();
        let start = self.at;
        self.skip_value()?;
        Ok(&self.text[start..self.at])
    }

    /// Passes over the next value. Its grammar is checked and nothing else.
    #[inline]
    pub(super) fn skip_value(&mut self) -> Result<(), DecodeError> {
        match self.token() {
            Some(b'[' | b'{') => self.skip_nested(),
            _ => self.skip_scalar(),
        }
    }

    #[inline]
    fn skip_scalar(&mut self) -> Result<(), DecodeError> {
        match self.peek() {
            Some(b'"') => self.skip_string(),
            Some(b'n') => self.keyword(b"null"),
            Some(b't') => self.keyword(b"true"),
            Some(b'f') => self.keyword(b"false"),
            _ => self.skip_number().map(drop),
        }
    }

    /// Passes over an array or map without recursion, so that its depth costs
    /// no stack.
    fn skip_nested(&mut self) -> Result<(), DecodeError> {
        let mut open = Nesting::default();
        'value: loop {
            match self.token() {
                Some(b'[') => {
                    self.at += 1;
                    open.push(self, Container::Array)?;
                    if self.token() != Some(b']') {
                        continue 'value;
                    }
                }
                Some(b'{') => {
                    self.at += 1;
                    open.push(self, Container::Map)?;
                    if self.token() != Some(b'}') {
                        self.skip_key()?;
                        continue 'value;
                    }
                }
                _ => self.skip_scalar()?,
            }
            while let Some(container) = open.last() {
                match (self.token(), container) {
                    (Some(b','), Container::Array) => {
                        self.at += 1;
                        continue 'value;
                    }
                    (Some(b','), Container::Map) => {
                        self.at += 1;
                        self.skip_key()?;
                        continue 'value;
                    }
                    (Some(b']'), Container::Array) | (Some(b'}'), Container::Map) => {
                        self.at += 1;
                        open.pop();
                    }
                    (_, Container::Array) => return Err(self.unexpected("`,` or `]`")),
                    (_, Container::Map) => return Err(self.unexpected("`,` or `}`")),
                }
            }
            return Ok(());
        }
    }

    fn skip_key(&mut self) -> Result<(), DecodeError> {
        if self.token() != Some(b'"') {
            return Err(self.unexpected("`\"` before a key"));
        }
        self.skip_string()?;
        self.punctuation(b':')
    }

    /// Passes over a text. Surrogates are not paired here: nobody has asked
    /// for the text.
    #[inline]
    fn skip_string(&mut self) -> Result<(), DecodeError> {
        self.at += 1;
        loop {
            self.at = first_special(self.text.as_bytes(), self.at);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    if self.peek() == Some(b'u') {
                        self.code_unit()?;
                    } else {
                        self.escape()?;
                    }
                }
                _ => return Err(self.unexpected("`\"` at the end of a string")),
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    Map,
}

/// The containers that are open, one bit each.
#[derive(Default)]
struct Nesting {
    /// Set for maps.
    bits: [u64; SCAN_DEPTH.div_ceil(64)],
    depth: usize,
}

impl Nesting {
    #[inline]
    fn push(&mut self, cursor: &Cursor<'_>, container: Container) -> Result<(), DecodeError> {
        if self.depth == SCAN_DEPTH {
            let error = DecodeError::from(DecodeErrorKind::TooDeep { limit: SCAN_DEPTH });
            return Err(error.at_byte(cursor.at));
        }
        let bit = 1 << (self.depth % 64);
        match container {
            Container::Array => self.bits[self.depth / 64] &= !bit,
            Container::Map => self.bits[self.depth / 64] |= bit,
        }
        self.depth += 1;
        Ok(())
    }

    #[inline]
    fn pop(&mut self) {
        self.depth -= 1;
    }

    #[inline]
    fn last(&self) -> Option<Container> {
        let depth = self.depth.checked_sub(1)?;
        let bit = self.bits[depth / 64] >> (depth % 64) & 1;
        Some(if bit == 1 {
            Container::Map
        } else {
            Container::Array
        })
    }
}
