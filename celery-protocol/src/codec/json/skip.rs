//! Skipping of JSON values without decoding them.

use super::cursor::Cursor;
use crate::codec::MAX_SCAN_DEPTH;
use crate::codec::text::escape::first_special;
use crate::error::{DecodeError, DecodeErrorKind};

impl<'de> Cursor<'de> {
    /// Skips the next value and returns its text.
    #[inline]
    pub(super) fn span(&mut self) -> Result<&'de str, DecodeError> {
        let first = self.token();
        let start = self.at;
        self.skip_from(first)?;
        Ok(&self.text[start..self.at])
    }

    /// Skips the next value. Only its grammar is checked.
    #[inline]
    pub(super) fn skip_value(&mut self) -> Result<(), DecodeError> {
        let first = self.token();
        self.skip_from(first).map(drop)
    }

    /// Skips the value whose first byte is known.
    #[inline]
    pub(super) fn skip_from(&mut self, first: Option<u8>) -> Result<ValueKind, DecodeError> {
        match first {
            Some(b'n') => self.keyword(b"null").map(|()| ValueKind::Null),
            Some(b'"') => self.skip_text(),
            _ => self.skip_other(first),
        }
    }

    /// Skips a text and returns whether it has escapes.
    #[inline]
    fn skip_text(&mut self) -> Result<ValueKind, DecodeError> {
        let end = first_special(self.text.as_bytes(), self.at + 1);
        if self.text.as_bytes().get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(ValueKind::PlainText);
        }
        self.skip_string().map(|()| ValueKind::Other)
    }

    fn skip_other(&mut self, first: Option<u8>) -> Result<ValueKind, DecodeError> {
        // Empty arrays and maps are the most frequent containers.
        match self.rest() {
            [b'{', b'}', ..] | [b'[', b']', ..] => self.at += 2,
            [b'[' | b'{', ..] => self.skip_nested()?,
            _ => self.skip_scalar(first)?,
        }
        Ok(ValueKind::Other)
    }

    #[inline]
    fn skip_scalar(&mut self, first: Option<u8>) -> Result<(), DecodeError> {
        match first {
            Some(b'"') => self.skip_string(),
            Some(b'n') => self.keyword(b"null"),
            Some(b't') => self.keyword(b"true"),
            Some(b'f') => self.keyword(b"false"),
            _ => {
                // One digit before punctuation is a complete number.
                if let Some([b'0'..=b'9', b',' | b']' | b'}']) = self.rest().first_chunk() {
                    self.at += 1;
                    return Ok(());
                }
                self.skip_number().map(drop)
            }
        }
    }

    /// Skips an array or map without recursion, so that its depth uses no
    /// stack.
    fn skip_nested(&mut self) -> Result<(), DecodeError> {
        let start = self.at;
        if self.skip_levels::<1>()? == DepthCheck::TooDeep {
            self.at = start;
            if self.skip_levels::<{ MAX_SCAN_DEPTH.div_ceil(64) }>()? == DepthCheck::TooDeep {
                let error = DecodeError::from(DecodeErrorKind::TooDeep {
                    limit: MAX_SCAN_DEPTH,
                });
                return Err(error.at_byte(self.at));
            }
        }
        Ok(())
    }

    /// Skips an array or map. The kinds of the open containers are recorded in
    /// `WORDS` words of 64 bits each. One word suffices for real messages and
    /// stays in a register.
    #[inline]
    fn skip_levels<const WORDS: usize>(&mut self) -> Result<DepthCheck, DecodeError> {
        let mut open = Nesting::<WORDS>::default();
        loop {
            match self.token() {
                Some(bracket @ (b'[' | b'{')) => {
                    self.at += 1;
                    if !open.push(bracket == b'{') {
                        return Ok(DepthCheck::TooDeep);
                    }
                    if self.token() != Some(open.closing()) {
                        if bracket == b'{' {
                            self.skip_key()?;
                        }
                        continue;
                    }
                }
                first => self.skip_scalar(first)?,
            }
            loop {
                match self.token() {
                    Some(b',') => {
                        self.at += 1;
                        if open.is_map {
                            self.skip_key()?;
                        }
                        break;
                    }
                    Some(byte) if byte == open.closing() => {
                        self.at += 1;
                        if open.pop() {
                            return Ok(DepthCheck::Within);
                        }
                    }
                    _ if open.is_map => return Err(self.unexpected("`,` or `}`")),
                    _ => return Err(self.unexpected("`,` or `]`")),
                }
            }
        }
    }

    fn skip_key(&mut self) -> Result<(), DecodeError> {
        if self.token() != Some(b'"') {
            return Err(self.unexpected("`\"` before a key"));
        }
        self.skip_string()?;
        self.punctuation(b':')
    }

    /// Skips a text. Surrogate pairs are not checked, because the text is not
    /// decoded.
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

/// The kind of a value that was skipped, as far as it was determined.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum ValueKind {
    /// There is no such value.
    #[default]
    Absent,
    Null,
    /// A text without escapes.
    PlainText,
    Other,
}

/// Whether the nesting depth was within the capacity of [`Nesting`].
#[derive(PartialEq, Eq)]
enum DepthCheck {
    Within,
    TooDeep,
}

/// The kinds of the containers that are open.
struct Nesting<const WORDS: usize> {
    /// Whether the innermost container is a map.
    is_map: bool,
    /// One bit per enclosing container: whether it is a map. The lowest bit
    /// belongs to no container.
    around: [u64; WORDS],
    depth: usize,
}

impl<const WORDS: usize> Default for Nesting<WORDS> {
    #[inline]
    fn default() -> Self {
        Self {
            is_map: false,
            around: [0; WORDS],
            depth: 0,
        }
    }
}

impl<const WORDS: usize> Nesting<WORDS> {
    /// Opens a container. Returns `false` if the maximum depth is reached.
    #[inline]
    fn push(&mut self, is_map: bool) -> bool {
        if self.depth == (WORDS * 64).min(MAX_SCAN_DEPTH) {
            return false;
        }
        let word = &mut self.around[self.depth / 64];
        let position = self.depth % 64;
        *word = *word & !(1 << position) | u64::from(self.is_map) << position;
        self.is_map = is_map;
        self.depth += 1;
        true
    }

    /// Closes the innermost container. Returns whether it was also the
    /// outermost one.
    #[inline]
    fn pop(&mut self) -> bool {
        self.depth -= 1;
        self.is_map = self.around[self.depth / 64] >> (self.depth % 64) & 1 == 1;
        self.depth == 0
    }

    /// Returns the bracket that closes the innermost container.
    #[inline]
    fn closing(&self) -> u8 {
        if self.is_map { b'}' } else { b']' }
    }
}
