//! The serializers of task messages under their names in Celery, and the list
//! of serializers that a reader accepts.

use serde::{Deserialize, Serialize};

use crate::error::{DecodeError, DecodeErrorKind, EncodeError, EncodeErrorKind};

pub(crate) mod json;
pub(crate) mod msgpack;
pub(crate) mod text;
pub(crate) mod token;
pub(crate) mod yaml;

/// The maximum nesting depth of values that are decoded into types. Decoding
/// recurses.
pub(crate) const MAX_DECODE_DEPTH: usize = 128;

/// The maximum nesting depth of values that are skipped. Skipping does not
/// recurse.
pub(crate) const MAX_SCAN_DEPTH: usize = 1000;

/// A serializer of Python Celery, which converts values to bytes and back.
///
/// Every variant exists with every combination of cargo features. Using a
/// serializer whose feature is off returns an error that names the feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Serializer {
    /// `json`: JSON with kombu's typed values, Celery's default.
    #[default]
    Json,
    /// `msgpack`: MessagePack, with the feature `msgpack`.
    MsgPack,
    /// `yaml`: YAML, with the feature `yaml`.
    Yaml,
}

/// The names of one serializer. The table has one row per serializer, in the
/// order of the enum.
struct SerializerRow {
    serializer: Serializer,
    name: &'static str,
    content_type: &'static str,
    content_encoding: &'static str,
}

static TABLE: [SerializerRow; 3] = [
    SerializerRow {
        serializer: Serializer::Json,
        name: "json",
        content_type: "application/json",
        content_encoding: "utf-8",
    },
    SerializerRow {
        serializer: Serializer::MsgPack,
        name: "msgpack",
        content_type: "application/x-msgpack",
        content_encoding: "binary",
    },
    SerializerRow {
        serializer: Serializer::Yaml,
        name: "yaml",
        content_type: "application/x-yaml",
        content_encoding: "utf-8",
    },
];

/// Names, content types and refusal reasons of the serializers of Celery that
/// this crate never decodes.
const REFUSED_CONTENT: [(&str, &str, &str); 2] = [
    (
        "pickle",
        "application/x-python-serialize",
        "unpickling can execute arbitrary code",
    ),
    (
        "auth",
        "application/data",
        "signed messages of the auth serializer are not supported",
    ),
];

impl Serializer {
    /// Returns the name in Celery's settings: `json`, `msgpack` or `yaml`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Returns the content type of messages in this serializer.
    pub fn content_type(self) -> &'static str {
        self.row().content_type
    }

    /// Returns the content encoding of messages in this serializer: `utf-8` or
    /// `binary`.
    pub fn content_encoding(self) -> &'static str {
        self.row().content_encoding
    }

    /// Finds a serializer by its name in Celery's settings.
    pub fn from_name(name: &str) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.name == name)?;
        Some(row.serializer)
    }

    /// Finds a serializer by the content type of a message.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.content_type == content_type)?;
        Some(row.serializer)
    }

    /// Writes `value` as bytes.
    ///
    /// # Errors
    ///
    /// Fails if the serializer cannot represent the value (an integer beyond 64
    /// bits in msgpack, a map whose keys are maps), if the `Serialize`
    /// implementation of the value fails, or if the feature of the serializer
    /// is off.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::with_capacity(128);
        self.encode_into(&mut out, value)?;
        Ok(out)
    }

    /// Writes `value` at the end of `out`.
    ///
    /// # Errors
    ///
    /// Fails in the cases of [`encode`](Self::encode). The bytes written before
    /// the error stay in `out`.
    #[inline]
    pub fn encode_into<T: Serialize + ?Sized>(
        self,
        out: &mut Vec<u8>,
        value: &T,
    ) -> Result<(), EncodeError> {
        match self {
            Self::Json => json::write(out, value),
            Self::MsgPack => msgpack::write(out, value),
            Self::Yaml => yaml::write(out, value),
        }
        .map_err(|error| error.in_content_type(self.content_type()))
    }

    /// Decodes a value from bytes, and borrows from them where the type allows
    /// it. YAML values are never borrowed.
    ///
    /// # Errors
    ///
    /// Fails if the bytes are malformed, nested deeper than 128 levels or
    /// followed by more bytes, if `T` expects another value, or if the feature
    /// of the serializer is off.
    #[inline]
    pub fn decode<'de, T: Deserialize<'de>>(self, bytes: &'de [u8]) -> Result<T, DecodeError> {
        match self {
            Self::Json => json::read(bytes),
            Self::MsgPack => msgpack::read(bytes),
            Self::Yaml => yaml::read(bytes),
        }
        .map_err(|error| error.in_content_type(self.content_type()))
    }

    fn row(self) -> &'static SerializerRow {
        &TABLE[self as usize]
    }
}

/// The set of serializers whose messages are accepted: Celery's
/// `accept_content`.
///
/// ```
/// use celery_protocol::{Accept, Serializer};
///
/// let accept = Accept::default();
/// assert_eq!(accept.check("application/json"), Ok(Serializer::Json));
///
/// let refused = accept.check("application/x-python-serialize").unwrap_err();
/// assert!(refused.is_refused());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Indexed by the position of the serializer in the table.
    accepted: [bool; TABLE.len()],
}

impl Accept {
    /// Creates a set that contains only JSON, Celery's default.
    pub fn json() -> Self {
        Self::of([Serializer::Json])
    }

    /// Creates a set of exactly the given serializers.
    pub fn of(serializers: impl IntoIterator<Item = Serializer>) -> Self {
        let mut accepted = [false; TABLE.len()];
        for serializer in serializers {
            accepted[serializer as usize] = true;
        }
        Self { accepted }
    }

    /// Creates a set of the serializers with the given names or content types,
    /// as in the setting `accept_content`.
    ///
    /// # Errors
    ///
    /// Fails if an entry is unknown, or if it names a serializer that is never
    /// decoded, such as `pickle`.
    pub fn from_names<I>(names: I) -> Result<Self, DecodeError>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        let mut accept = Self::of([]);
        for name in names {
            let serializer = serializer_named(name.as_ref())?;
            accept.accepted[serializer as usize] = true;
        }
        Ok(accept)
    }

    /// Returns whether messages in this serializer are accepted.
    pub fn contains(&self, serializer: Serializer) -> bool {
        self.accepted[serializer as usize]
    }

    /// Returns the serializer of a content type, if it is accepted.
    ///
    /// # Errors
    ///
    /// Fails if the content type is not accepted. [`DecodeError::is_refused`]
    /// is then true, and [`DecodeError::content_type`] returns the type.
    #[inline]
    pub fn check(&self, content_type: &str) -> Result<Serializer, DecodeError> {
        match Serializer::from_content_type(content_type) {
            Some(serializer) if self.contains(serializer) => Ok(serializer),
            _ => Err(refused_error(content_type)),
        }
    }
}

impl Default for Accept {
    fn default() -> Self {
        Self::json()
    }
}

fn serializer_named(name: &str) -> Result<Serializer, DecodeError> {
    let found = Serializer::from_name(name).or_else(|| Serializer::from_content_type(name));
    if let Some(serializer) = found {
        return Ok(serializer);
    }
    match REFUSED_CONTENT
        .iter()
        .find(|row| row.0 == name || row.1 == name)
    {
        Some((_, content_type, reason)) => Err(DecodeError::refused(content_type, reason)),
        None => Err(DecodeError::unknown("serializer", name)),
    }
}

#[cold]
fn refused_error(content_type: &str) -> DecodeError {
    let reason = match REFUSED_CONTENT.iter().find(|row| row.1 == content_type) {
        Some((.., reason)) => reason,
        None => "not in the accept-list",
    };
    DecodeError::refused(content_type, reason)
}

/// Returns the error for a serializer or compression whose feature is off.
#[allow(dead_code, reason = "unused when every feature is on")]
pub(crate) fn decode_feature_off(what: &'static str, feature: &'static str) -> DecodeError {
    DecodeErrorKind::FeatureOff { what, feature }.into()
}

/// Returns the error for a serializer or compression whose feature is off.
#[allow(dead_code, reason = "unused when every feature is on")]
pub(crate) fn encode_feature_off(what: &'static str, feature: &'static str) -> EncodeError {
    EncodeErrorKind::FeatureOff { what, feature }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serializer_table_has_the_order_of_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.serializer as usize, index);
            assert_eq!(Serializer::from_name(row.name), Some(row.serializer));
            assert_eq!(
                Serializer::from_content_type(row.serializer.content_type()),
                Some(row.serializer)
            );
        }
    }

    #[test]
    fn content_type_outside_accept_list_is_refused() {
        let accept = Accept::from_names(["json", "application/x-yaml"]).unwrap();
        assert_eq!(accept, Accept::of([Serializer::Json, Serializer::Yaml]));
        assert_eq!(accept.check("application/x-yaml"), Ok(Serializer::Yaml));
        let refused = accept.check("application/x-msgpack").unwrap_err();
        assert!(refused.is_refused());
        assert_eq!(refused.content_type(), Some("application/x-msgpack"));
    }

    #[test]
    fn pickle_and_auth_are_refused_by_name() {
        for (name, content_type, _) in REFUSED_CONTENT {
            assert!(Accept::from_names([name]).unwrap_err().is_refused());
            let error = Accept::json().check(content_type).unwrap_err();
            assert_eq!(error.content_type(), Some(content_type));
        }
        let unknown = Accept::from_names(["jsonn"]).unwrap_err();
        assert!(unknown.to_string().contains("unknown serializer \"jsonn\""));
    }
}
