//! Skipping of msgpack values without decoding them.

use smallvec::SmallVec;

use crate::codec::MAX_SCAN_DEPTH;
use crate::error::{DecodeError, DecodeErrorKind};

/// A position in msgpack bytes.
pub(super) struct Scanner<'b> {
    bytes: &'b [u8],
    at: usize,
}

/// The first byte of a value and the length that follows it.
enum Marker {
    /// A scalar with this many bytes after the marker.
    Scalar(usize),
    /// A text of this many bytes.
    Text(usize),
    /// An array of this many elements.
    Array(u32),
    /// A map of this many entries.
    Map(u32),
}

impl<'b> Scanner<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Reads the marker of an array and returns the number of elements.
    pub(super) fn array(&mut self) -> Result<u32, DecodeError> {
        match self.marker()? {
            Marker::Array(count) => Ok(count),
            _ => Err(self.malformed_at(0, "expected an array")),
        }
    }

    /// Reads the marker of a map and returns the number of entries.
    pub(super) fn map(&mut self) -> Result<u32, DecodeError> {
        match self.marker()? {
            Marker::Map(count) => Ok(count),
            _ => Err(self.malformed_at(0, "expected a map")),
        }
    }

    /// Reads a text.
    pub(super) fn text(&mut self) -> Result<&'b str, DecodeError> {
        let start = self.at;
        let Marker::Text(length) = self.marker()? else {
            return Err(self.malformed_at(start, "expected a text as key"));
        };
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| self.malformed_at(start, "a text is not UTF-8"))
    }

    /// Skips the next value and returns its bytes.
    pub(super) fn span(&mut self) -> Result<&'b [u8], DecodeError> {
        let start = self.at;
        self.skip_value()?;
        Ok(&self.bytes[start..self.at])
    }

    /// Skips the next value without recursion.
    pub(super) fn skip_value(&mut self) -> Result<(), DecodeError> {
        // The number of remaining values in each open container.
        let mut open: SmallVec<[u64; 32]> = SmallVec::new();
        loop {
            let inside = match self.marker()? {
                Marker::Scalar(length) | Marker::Text(length) => {
                    self.take(length)?;
                    0
                }
                Marker::Array(count) => u64::from(count),
                Marker::Map(count) => 2 * u64::from(count),
            };
            if inside > 0 {
                if open.len() == MAX_SCAN_DEPTH {
                    let error = DecodeError::from(DecodeErrorKind::TooDeep {
                        limit: MAX_SCAN_DEPTH,
                    });
                    return Err(error.at_byte(self.at));
                }
                open.push(inside);
                continue;
            }
            loop {
                let Some(left) = open.last_mut() else {
                    return Ok(());
                };
                *left -= 1;
                if *left > 0 {
                    break;
                }
                open.pop();
            }
        }
    }

    /// Returns an error if more bytes follow.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        Err(self.malformed_at(self.at, "expected the end, found another value"))
    }

    fn marker(&mut self) -> Result<Marker, DecodeError> {
        let start = self.at;
        let byte = self.take(1)?[0];
        Ok(match byte {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => Marker::Scalar(0),
            0x80..=0x8f => Marker::Map(u32::from(byte & 0x0f)),
            0x90..=0x9f => Marker::Array(u32::from(byte & 0x0f)),
            0xa0..=0xbf => Marker::Text(usize::from(byte & 0x1f)),
            0xc4 => Marker::Scalar(self.length(1)? as usize),
            0xc5 => Marker::Scalar(self.length(2)? as usize),
            0xc6 => Marker::Scalar(self.length(4)? as usize),
            0xcc | 0xd0 => Marker::Scalar(1),
            0xcd | 0xd1 => Marker::Scalar(2),
            0xca | 0xce | 0xd2 => Marker::Scalar(4),
            0xcb | 0xcf | 0xd3 => Marker::Scalar(8),
            0xd9 => Marker::Text(self.length(1)? as usize),
            0xda => Marker::Text(self.length(2)? as usize),
            0xdb => Marker::Text(self.length(4)? as usize),
            0xdc => Marker::Array(self.length(2)?),
            0xdd => Marker::Array(self.length(4)?),
            0xde => Marker::Map(self.length(2)?),
            0xdf => Marker::Map(self.length(4)?),
            // Python's reader returns an `ExtType` for these. No Celery task
            // writes one, because kombu registers no extension type.
            0xc7..=0xc9 | 0xd4..=0xd8 => {
                return Err(self.malformed_at(start, "extension types are not supported"));
            }
            0xc1 => return Err(self.malformed_at(start, "the byte 0xc1 is not a valid marker")),
        })
    }

    /// Reads a length that is encoded in `size` bytes.
    fn length(&mut self, size: usize) -> Result<u32, DecodeError> {
        let bytes = self.take(size)?;
        Ok(bytes
            .iter()
            .fold(0, |length, byte| length << 8 | u32::from(*byte)))
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], DecodeError> {
        let taken = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..length));
        match taken {
            Some(bytes) => {
                self.at += length;
                Ok(bytes)
            }
            None => Err(self.malformed_at(self.at, "the bytes end within a value")),
        }
    }

    #[cold]
    fn malformed_at(&self, at: usize, message: &str) -> DecodeError {
        DecodeError::malformed(message)
            .at_byte(at)
            .in_content_type(crate::Serializer::MsgPack.content_type())
    }
}
