//! kombu's typed values: maps with exactly the keys `__type__` and `__value__`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smallvec::SmallVec;

use super::cursor::Cursor;
use crate::error::DecodeError;
use crate::value::ExtendedKind;

/// A typed value of kombu.
pub(super) enum TypedValue<'de> {
    Extended(ExtendedKind, Cow<'de, str>),
    /// `bytes`: bytes that are UTF-8, encoded as a text.
    Text(Cow<'de, str>),
    /// `base64`: all other bytes.
    Bytes(Vec<u8>),
}

impl<'de> TypedValue<'de> {
    /// Reads the map that begins at the cursor if it is a typed value, and
    /// returns `None` otherwise. An unknown type is an error, as in kombu.
    #[inline]
    pub(super) fn read(cursor: &mut Cursor<'de>) -> Result<Option<Self>, DecodeError> {
        let mut ahead = *cursor;
        ahead.at += 1;
        ahead.token();
        if !ahead.rest().starts_with(b"\"__") {
            return Ok(None);
        }
        let start = cursor.at;
        let Some((name, value)) = parts(&mut ahead) else {
            return Ok(None);
        };
        cursor.at = ahead.at;
        Self::new(name, value)
            .map(Some)
            .map_err(|error| error.at_byte(start))
    }

    fn new(name: &'de str, value: &'de str) -> Result<Self, DecodeError> {
        let name = Cursor::new(name).string()?;
        if let Some(kind) = ExtendedKind::from_name(&name) {
            return extended(kind, value).map(|text| Self::Extended(kind, text));
        }
        match &*name {
            "bytes" => Cursor::new(value).string().map(Self::Text),
            "base64" => {
                let text = Cursor::new(value).string()?;
                let bytes = STANDARD.decode(text.as_bytes());
                bytes
                    .map(Self::Bytes)
                    .map_err(|error| DecodeError::malformed(format!("invalid base64: {error}")))
            }
            _ => Err(DecodeError::new(format!("unknown __type__ {name:?}"))),
        }
    }
}

/// Returns the text of a date, time, decimal or UUID.
fn extended(kind: ExtendedKind, value: &str) -> Result<Cow<'_, str>, DecodeError> {
    let mut cursor = Cursor::new(value);
    match (kind, cursor.token()) {
        // `{"hex": "..."}` are the arguments of Python's `UUID`. Older versions
        // of kombu wrote only the text.
        (ExtendedKind::Uuid, Some(b'{')) => {
            let mut entries = SmallVec::<[_; 1]>::new();
            super::entries(value, &mut entries, |key, value| (key, value))?;
            match entries.as_slice() {
                [(key, hex)] if key == "hex" => Cursor::new(hex).string(),
                _ => Err(DecodeError::new(
                    "a uuid must have exactly one key, \"hex\"",
                )),
            }
        }
        // Python's `Decimal` also accepts integers.
        (ExtendedKind::Decimal, Some(b'-' | b'0'..=b'9')) => Ok(Cow::Borrowed(value)),
        _ => cursor.string(),
    }
}

/// Returns the spans of the values of `__type__` and `__value__` if these are
/// the only keys of the map. The last of equal keys wins, as in a Python dict.
/// Returns `None` for any other map, including a malformed one, which the
/// reader of plain maps then reports.
fn parts<'de>(cursor: &mut Cursor<'de>) -> Option<(&'de str, &'de str)> {
    let (mut name, mut value) = (None, None);
    loop {
        let key = cursor.string().ok()?;
        let part = match &*key {
            "__type__" => &mut name,
            "__value__" => &mut value,
            _ => return None,
        };
        cursor.punctuation(b':').ok()?;
        *part = Some(cursor.span().ok()?);
        if cursor.token() != Some(b',') {
            break;
        }
        cursor.at += 1;
    }
    cursor.punctuation(b'}').ok()?;
    Some((name?, value?))
}
