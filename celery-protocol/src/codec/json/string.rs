//! The strings of JSON and their escapes.

use std::borrow::Cow;

use super::cursor::Cursor;
use crate::codec::text::escape::first_special;
use crate::error::DecodeError;

impl<'de> Cursor<'de> {
    /// Reads a string that begins at the next token. The result is borrowed
    /// unless the string has escapes.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Cow<'de, str>, DecodeError> {
        self.punctuation(b'"')?;
        self.opened_string()
    }

    /// Reads a string whose opening quote was read.
    #[inline]
    pub(super) fn opened_string(&mut self) -> Result<Cow<'de, str>, DecodeError> {
        let start = self.at;
        let end = first_special(self.text.as_bytes(), start);
        if self.text.as_bytes().get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(Cow::Borrowed(&self.text[start..end]));
        }
        self.escaped_string().map(Cow::Owned)
    }

    /// Reads the rest of a string that has escapes.
    fn escaped_string(&mut self) -> Result<String, DecodeError> {
        let mut out = String::new();
        loop {
            let end = first_special(self.text.as_bytes(), self.at);
            out.push_str(&self.text[self.at..end]);
            self.at = end;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                _ => return Err(self.unexpected("`\"` at the end of a string")),
            }
        }
    }

    /// Reads the part of an escape after the backslash.
    pub(super) fn escape(&mut self) -> Result<char, DecodeError> {
        let Some(byte) = self.peek() else {
            return Err(self.unexpected("an escape"));
        };
        let character = match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(self.unexpected("an escape")),
        };
        self.at += 1;
        Ok(character)
    }

    /// Reads `uXXXX`, or two of these escapes that form a surrogate pair.
    fn unicode_escape(&mut self) -> Result<char, DecodeError> {
        let start = self.at - 1;
        let mut code = u32::from(self.code_unit()?);
        if (0xD800..0xDC00).contains(&code) && self.rest().starts_with(b"\\u") {
            self.at += 1;
            let low = u32::from(self.code_unit()?);
            if (0xDC00..0xE000).contains(&low) {
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            }
        }
        // Python writes lone surrogates, which a Rust `str` cannot contain.
        char::from_u32(code).ok_or_else(|| {
            DecodeError::malformed("a string contains a lone surrogate, which is not a character")
                .at_byte(start)
        })
    }

    /// Reads `uXXXX` as one UTF-16 code unit.
    pub(super) fn code_unit(&mut self) -> Result<u16, DecodeError> {
        let digits = self.text.as_bytes().get(self.at + 1..self.at + 5);
        let unit = digits
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u16::from_str_radix(digits, 16).ok());
        match unit {
            Some(unit) => {
                self.at += 5;
                Ok(unit)
            }
            None => Err(self.unexpected("four hexadecimal digits after `\\u`")),
        }
    }
}
