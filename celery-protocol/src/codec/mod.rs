//! The serializers of task messages, by the names Celery gives them, and the
//! list of those that a reader accepts.

use serde::{Deserialize, Serialize};

use crate::error::{DecodeError, DecodeErrorKind, EncodeError, EncodeErrorKind};

pub(crate) mod json;
pub(crate) mod msgpack;
pub(crate) mod text;
pub(crate) mod token;
pub(crate) mod yaml;

/// How deep values may be nested that are decoded into types, which recurses.
pub(crate) const MAX_DECODE_DEPTH: usize = 128;

/// How deep values may be nested that are only passed over, which does not
/// recurse.
pub(crate) const MAX_SCAN_DEPTH: usize = 1000;

/// A way to write values as bytes, one of those that Python Celery knows.
///
/// All of them can always be named. Using one whose cargo feature is off is an
/// error that names the feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Serializer {
    /// `json`: JSON with kombu's typed values, Celery's default.
    #[default]
    Json,
    /// `msgpack`: MessagePack, behind the feature `msgpack`.
    MsgPack,
    /// `yaml`: YAML, behind the feature `yaml`.
    Yaml,
}

/// One row per serializer, in the order of the enum.
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

/// Content types that Celery knows and this crate never reads, with the reason.
const REFUSED_CONTENT: [(&str, &str, &str); 2] = [
    (
        "pickle",
        "application/x-python-serialize",
        "pickle can run any code in the reader",
    ),
    (
        "auth",
        "application/data",
        "signed messages of the auth serializer are not supported",
    ),
];

impl Serializer {
    /// The name in Celery's settings: `json`, `msgpack` or `yaml`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The content type of messages written by it.
    pub fn content_type(self) -> &'static str {
        self.row().content_type
    }

    /// The content encoding of messages written by it: `utf-8` or `binary`.
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
    /// When the value has no form in this serializer (an integer beyond 64
    /// bits in msgpack, a map whose keys are maps), when its own `Serialize`
    /// fails, or when the serializer's feature is off.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::with_capacity(128);
        self.encode_into(&mut out, value)?;
        Ok(out)
    }

    /// Writes `value` at the end of `out`.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode). What was written up to then stays in `out`.
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

    /// Reads a value from bytes, borrowing from them where the type allows it
    /// (YAML never lends).
    ///
    /// # Errors
    ///
    /// When the bytes are malformed, nested deeper than 128 levels, followed by
    /// more bytes or not what `T` expects, or when the serializer's feature is
    /// off.
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

/// The serializers whose messages are read, Celery's `accept_content`.
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
    /// Indexed by the serializer's place in the table.
    accepted: [bool; TABLE.len()],
}

impl Accept {
    /// JSON alone, Celery's default.
    pub fn json() -> Self {
        Self::of([Serializer::Json])
    }

    /// Exactly the given serializers.
    pub fn of(serializers: impl IntoIterator<Item = Serializer>) -> Self {
        let mut accepted = [false; TABLE.len()];
        for serializer in serializers {
            accepted[serializer as usize] = true;
        }
        Self { accepted }
    }

    /// The serializers with the given names or content types, as
    /// `accept_content` lists them.
    ///
    /// # Errors
    ///
    /// When an entry is unknown, or is one that is never read, as `pickle`.
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

    /// Whether messages of this serializer are read.
    pub fn contains(&self, serializer: Serializer) -> bool {
        self.accepted[serializer as usize]
    }

    /// The serializer of a content type, if it is accepted.
    ///
    /// # Errors
    ///
    /// When it is not. [`DecodeError::is_refused`] is true then, and
    /// [`DecodeError::content_type`] names the type.
    #[inline]
    pub fn check(&self, content_type: &str) -> Result<Serializer, DecodeError> {
        match Serializer::from_content_type(content_type) {
            Some(serializer) if self.contains(serializer) => Ok(serializer),
            _ => Err(refusal(content_type)),
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
fn refusal(content_type: &str) -> DecodeError {
    let reason = match REFUSED_CONTENT.iter().find(|row| row.1 == content_type) {
        Some((.., reason)) => reason,
        None => "not in the accept-list",
    };
    DecodeError::refused(content_type, reason)
}

/// The error of a serializer whose feature is off.
#[allow(dead_code, reason = "unused when every feature is on")]
pub(crate) fn decode_feature_off(what: &'static str, feature: &'static str) -> DecodeError {
    DecodeErrorKind::FeatureOff { what, feature }.into()
}

/// The error of a serializer whose feature is off.
#[allow(dead_code, reason = "unused when every feature is on")]
pub(crate) fn encode_feature_off(what: &'static str, feature: &'static str) -> EncodeError {
    EncodeErrorKind::FeatureOff { what, feature }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_follows_the_enum() {
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
    fn only_listed_content_is_accepted() {
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
