//! The lowest level of reading JSON: texts, numbers, and passing over values
//! without recursion.

use std::borrow::Cow;

use crate::codec::SCAN_DEPTH;
use crate::codec::text::escape::first_special;
use crate::error::{DecodeError, DecodeErrorKind};

/// A place in a JSON text.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'de> {
    text: &'de str,
    /// The next byte to read.
    pub(super) at: usize,
}

/// A number as JSON writes it.
pub(super) enum Number<'de> {
    Int(i64),
    /// Above `i64::MAX`.
    UInt(u64),
    /// The digits of an integer beyond 64 bits.
    Big(&'de str),
    Float(f64),
}

impl<'de> Cursor<'de> {
    #[inline]
    pub(super) fn new(text: &'de str) -> Self {
        Self { text, at: 0 }
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The first byte of the next token.
    #[inline]
    pub(super) fn token(&mut self) -> Option<u8> {
        loop {
            match self.peek() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                byte => return byte,
            }
        }
    }

    /// Reads one byte of punctuation.
    #[inline]
    pub(super) fn punctuation(&mut self, byte: u8) -> Result<(), DecodeError> {
        if self.token() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(match byte {
            b':' => "`:`",
            b']' => "`]`",
            b'}' => "`}`",
            _ => "`\"`",
        }))
    }

    /// Makes sure that nothing follows.
    pub(super) fn end(&mut self) -> Result<(), DecodeError> {
        match self.token() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("the end")),
        }
    }

    /// Reads a keyword such as `null`.
    #[inline]
    pub(super) fn keyword<const N: usize>(&mut self, keyword: &[u8; N]) -> Result<(), DecodeError> {
        if self.rest().first_chunk() == Some(keyword) {
            self.at += N;
            return Ok(());
        }
        Err(self.unexpected("a value"))
    }

    /// Reads a text that begins at the next token. It is borrowed unless it
    /// has escapes.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Cow<'de, str>, DecodeError> {
        self.punctuation(b'"')?;
        let start = self.at;
        let end = first_special(self.text.as_bytes(), start);
        if self.text.as_bytes().get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(Cow::Borrowed(&self.text[start..end]));
        }
        self.escaped_string().map(Cow::Owned)
    }

    /// Reads the rest of a text that has escapes.
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

    /// Reads what follows a backslash.
    fn escape(&mut self) -> Result<char, DecodeError> {
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

    /// Reads `uXXXX`, or two of them that make a surrogate pair.
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
        // Python writes lone surrogates, which no text of Rust can hold.
        char::from_u32(code).ok_or_else(|| {
            DecodeError::malformed("a string holds a lone surrogate, which is no character")
                .at_byte(start)
        })
    }

    /// Reads `uXXXX`.
    fn code_unit(&mut self) -> Result<u16, DecodeError> {
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

    /// Reads a number that begins here, or one of Python's `NaN`, `Infinity`
    /// and `-Infinity`.
    #[inline]
    pub(super) fn number(&mut self) -> Result<Number<'de>, DecodeError> {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let digits = self.at;
        let mut value: u64 = 0;
        while let Some(byte @ b'0'..=b'9') = self.peek() {
            value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
            self.at += 1;
        }
        let count = self.at - digits;
        let plain = !matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        // Eighteen digits fit without a look at overflow.
        if plain && count <= 18 && count > 0 && (count == 1 || self.text.as_bytes()[digits] != b'0')
        {
            let value = value as i64;
            return Ok(Number::Int(if negative { -value } else { value }));
        }
        self.at = start;
        self.long_number()
    }

    /// Reads a number with a fraction, an exponent or many digits.
    fn long_number(&mut self) -> Result<Number<'de>, DecodeError> {
        let start = self.at;
        match self.skip_number()? {
            Kind::Float(special) => {
                let text = &self.text[start..self.at];
                special
                    .or_else(|| text.parse().ok())
                    .map(Number::Float)
                    .ok_or_else(|| self.unexpected("a number"))
            }
            Kind::Int => {
                let text = &self.text[start..self.at];
                if let Ok(value) = text.parse() {
                    return Ok(Number::Int(value));
                }
                Ok(text.parse().map_or(Number::Big(text), Number::UInt))
            }
        }
    }

    /// Passes over a number.
    fn skip_number(&mut self) -> Result<Kind, DecodeError> {
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            Some(b'I') => {
                self.keyword(b"Infinity")?;
                let sign = if negative { -1.0 } else { 1.0 };
                return Ok(Kind::Float(Some(f64::INFINITY * sign)));
            }
            Some(b'N') if !negative => {
                self.keyword(b"NaN")?;
                return Ok(Kind::Float(Some(f64::NAN)));
            }
            _ => return Err(self.unexpected("a value")),
        }
        let mut kind = Kind::Int;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
            kind = Kind::Float(None);
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.some_digits()?;
            kind = Kind::Float(None);
        }
        Ok(kind)
    }

    fn some_digits(&mut self) -> Result<(), DecodeError> {
        let start = self.at;
        self.digits();
        if self.at == start {
            return Err(self.unexpected("a digit"));
        }
        Ok(())
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }

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

    /// The error of finding something else here.
    #[cold]
    pub(super) fn unexpected(&self, expected: &str) -> DecodeError {
        let found = match self.text.get(self.at..).map(|rest| rest.chars().next()) {
            Some(Some(character)) => format!("`{}`", character.escape_debug()),
            Some(None) => "the end".to_owned(),
            None => "a part of a character".to_owned(),
        };
        DecodeError::malformed(format!("expected {expected}, found {found}")).at_byte(self.at)
    }

    #[inline]
    pub(super) fn rest(&self) -> &'de [u8] {
        &self.text.as_bytes()[self.at..]
    }
}

/// What a number turned out to be; names are resolved already.
enum Kind {
    Int,
    Float(Option<f64>),
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
