//! The lowest level of reading JSON: a position in a text.

use crate::error::DecodeError;

/// A position in a JSON text.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'de> {
    pub(super) text: &'de str,
    /// The next byte to read.
    pub(super) at: usize,
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

    /// Skips white space and returns the first byte of the next token.
    ///
    /// Python writes one space between tokens, other producers write none. More
    /// white space is handled by a separate cold function.
    #[inline]
    pub(super) fn token(&mut self) -> Option<u8> {
        if self.peek() == Some(b' ') {
            self.at += 1;
        }
        match self.peek() {
            Some(byte) if byte > b' ' => Some(byte),
            _ => self.token_after_space(),
        }
    }

    #[cold]
    fn token_after_space(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
        self.peek()
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
            b',' => "`,`",
            b'[' => "`[`",
            b']' => "`]`",
            b'}' => "`}`",
            _ => "`\"`",
        }))
    }

    /// Returns an error if anything but white space follows.
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

    /// Returns the error that reports the character at the position instead of
    /// what was expected.
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
