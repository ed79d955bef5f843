//! The numbers of JSON, and `NaN` and the infinities that Python writes.

use super::cursor::Cursor;
use crate::error::DecodeError;

/// A number in a JSON text.
pub(super) enum Number<'de> {
    Int(i64),
    /// An integer above `i64::MAX`.
    UInt(u64),
    /// The digits of an integer beyond 64 bits.
    Big(&'de str),
    Float(f64),
}

impl<'de> Cursor<'de> {
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
        let is_integer = !matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        // Eighteen digits cannot overflow an `i64`.
        if is_integer
            && count <= 18
            && count > 0
            && (count == 1 || self.text.as_bytes()[digits] != b'0')
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
            NumberKind::Float(special) => {
                let text = &self.text[start..self.at];
                special
                    .or_else(|| text.parse().ok())
                    .map(Number::Float)
                    .ok_or_else(|| self.unexpected("a number"))
            }
            NumberKind::Int => {
                let text = &self.text[start..self.at];
                if let Ok(value) = text.parse() {
                    return Ok(Number::Int(value));
                }
                Ok(text.parse().map_or(Number::Big(text), Number::UInt))
            }
        }
    }

    /// Skips a number.
    pub(super) fn skip_number(&mut self) -> Result<NumberKind, DecodeError> {
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            Some(b'I') => {
                self.keyword(b"Infinity")?;
                let sign = if negative { -1.0 } else { 1.0 };
                return Ok(NumberKind::Float(Some(f64::INFINITY * sign)));
            }
            Some(b'N') if !negative => {
                self.keyword(b"NaN")?;
                return Ok(NumberKind::Float(Some(f64::NAN)));
            }
            _ => return Err(self.unexpected("a value")),
        }
        let mut kind = NumberKind::Int;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.required_digits()?;
            kind = NumberKind::Float(None);
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.required_digits()?;
            kind = NumberKind::Float(None);
        }
        Ok(kind)
    }

    fn required_digits(&mut self) -> Result<(), DecodeError> {
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
}

/// The kind of a number that was skipped.
pub(super) enum NumberKind {
    Int,
    /// A float. `NaN` and the infinities carry their value.
    Float(Option<f64>),
}
