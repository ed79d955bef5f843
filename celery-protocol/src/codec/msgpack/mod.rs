//! MessagePack as Python's `msgpack` writes it: texts are `str`, bytes are
//! `bin`, and extension types are rejected.
//!
//! The writer belongs to this crate, so that spans are copied unchanged and an
//! integer beyond 64 bits is a clear error. Types are read by `rmp_serde`,
//! after a scan that checks the nesting depth and finds the end of the value.

mod scan;
#[cfg(feature = "msgpack")]
mod writer;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use self::scan::Scanner;
use crate::error::{DecodeError, EncodeError};

/// The marker of null, which is the whole value.
pub(crate) const NIL: u8 = 0xc0;

/// Writes a value at the end of `out`.
#[cfg(feature = "msgpack")]
pub(crate) fn write<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    value: &T,
) -> Result<(), EncodeError> {
    value.serialize(&mut writer::MsgPackWriter::new(out))
}

/// Writes a value at the end of `out`.
#[cfg(not(feature = "msgpack"))]
pub(crate) fn write<T: Serialize + ?Sized>(
    _out: &mut Vec<u8>,
    _value: &T,
) -> Result<(), EncodeError> {
    Err(super::encode_feature_off(
        "the serializer msgpack",
        "msgpack",
    ))
}

/// Decodes bytes that contain exactly one value.
#[cfg(feature = "msgpack")]
pub(crate) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, DecodeError> {
    let mut scanner = Scanner::new(bytes);
    scanner.skip_value()?;
    scanner.end()?;
    // Types with a binary and a text form use the text form, which Python can
    // read.
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
    reader.set_max_depth(super::MAX_DECODE_DEPTH);
    T::deserialize(&mut reader).map_err(decode_error)
}

/// Decodes bytes that contain exactly one value.
#[cfg(not(feature = "msgpack"))]
pub(crate) fn read<'de, T: Deserialize<'de>>(_bytes: &'de [u8]) -> Result<T, DecodeError> {
    Err(super::decode_feature_off(
        "the serializer msgpack",
        "msgpack",
    ))
}

#[cfg(feature = "msgpack")]
#[cold]
fn decode_error(error: rmp_serde::decode::Error) -> DecodeError {
    use rmp_serde::decode::Error;

    match error {
        Error::DepthLimitExceeded => crate::error::DecodeErrorKind::TooDeep {
            limit: super::MAX_DECODE_DEPTH,
        }
        .into(),
        Error::LengthMismatch(_) => DecodeError::new("the array has more elements than expected"),
        Error::Utf8Error(_) => DecodeError::malformed("a text is not UTF-8"),
        Error::Syntax(message) | Error::Uncategorized(message) => DecodeError::new(message),
        other => DecodeError::malformed(other.to_string()),
    }
}

/// Returns the spans of the elements of an array. The bytes contain the array
/// and nothing else.
pub(crate) fn elements<'b, T, const N: usize>(
    bytes: &'b [u8],
    element: impl Fn(&'b [u8]) -> T,
) -> Result<SmallVec<[T; N]>, DecodeError>
where
    [T; N]: smallvec::Array<Item = T>,
{
    let mut scanner = Scanner::new(bytes);
    let count = scanner.array()?;
    // The capacity grows with the elements, because the count in a message may
    // be false.
    let mut elements = SmallVec::new();
    for _ in 0..count {
        elements.push(element(scanner.span()?));
    }
    scanner.end().map(|()| elements)
}

/// Returns the keys and the spans of the values of a map. The bytes contain the
/// map and nothing else.
pub(crate) fn entries<'b, T, const N: usize>(
    bytes: &'b [u8],
    entry: impl Fn(&'b str, &'b [u8]) -> T,
) -> Result<SmallVec<[T; N]>, DecodeError>
where
    [T; N]: smallvec::Array<Item = T>,
{
    let mut scanner = Scanner::new(bytes);
    let count = scanner.map()?;
    let mut entries = SmallVec::new();
    for _ in 0..count {
        let key = scanner.text()?;
        entries.push(entry(key, scanner.span()?));
    }
    scanner.end().map(|()| entries)
}
