//! Errors of decoding and encoding.
//!
//! Both error types have the size of one pointer, because many small functions
//! return them in a `Result`.

use std::fmt;

/// The error of decoding bytes.
///
/// The text names the field, the content type, the byte offset and what was
/// found there.
#[derive(Clone, PartialEq, Eq)]
pub struct DecodeError {
    inner: Box<DecodeFailure>,
}

#[derive(Clone, PartialEq, Eq)]
struct DecodeFailure {
    kind: DecodeErrorKind,
    field: String,
    content_type: Option<&'static str>,
    offset: Option<usize>,
}

/// The reason of a [`DecodeError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The bytes violate the rules of their format.
    #[error("{0}")]
    Malformed(String),
    /// The bytes are well-formed, but not the value that was expected.
    #[error("{0}")]
    Invalid(String),
    /// Values are nested deeper than the limit of the reader.
    #[error("values are nested deeper than {limit} levels")]
    TooDeep {
        /// The maximum number of levels.
        limit: usize,
    },
    /// The content is larger than the limit of the caller.
    #[error("content is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The maximum number of bytes.
        limit: usize,
    },
    /// The content type is not in the accept-list.
    #[error("content type {content_type:?} is refused ({reason})")]
    Refused {
        /// The content type of the message.
        content_type: String,
        /// The reason of the refusal.
        reason: &'static str,
    },
    /// The name of a serializer, a compression or an encoding is unknown.
    #[error("unknown {what} {name:?}")]
    Unknown {
        /// The kind of the name, such as `serializer`.
        what: &'static str,
        /// The unknown name.
        name: String,
    },
    /// The cargo feature of the decoder is off.
    #[error("{what} needs the cargo feature `{feature}`")]
    FeatureOff {
        /// The serializer or compression.
        what: &'static str,
        /// The feature to enable.
        feature: &'static str,
    },
}

impl DecodeError {
    /// Creates an error for well-formed bytes that are not the expected value.
    pub fn new(message: impl Into<String>) -> Self {
        DecodeErrorKind::Invalid(message.into()).into()
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        DecodeErrorKind::Malformed(message.into()).into()
    }

    pub(crate) fn refused(content_type: &str, reason: &'static str) -> Self {
        DecodeErrorKind::Refused {
            content_type: content_type.to_owned(),
            reason,
        }
        .into()
    }

    pub(crate) fn unknown(what: &'static str, name: &str) -> Self {
        DecodeErrorKind::Unknown {
            what,
            name: name.to_owned(),
        }
        .into()
    }

    /// Prepends `field` to the path of the field that could not be decoded:
    /// `eta` in `headers` becomes `headers.eta`, `[0]` in `body` becomes
    /// `body[0]`.
    #[must_use]
    pub fn in_field(mut self, field: impl AsRef<str>) -> Self {
        prepend_field(&mut self.inner.field, field.as_ref());
        self
    }

    /// Sets the content type, unless one is set already.
    #[must_use]
    pub(crate) fn in_content_type(mut self, content_type: &'static str) -> Self {
        self.inner.content_type.get_or_insert(content_type);
        self
    }

    /// Sets the byte offset at which decoding stopped, unless one is set
    /// already.
    #[must_use]
    pub(crate) fn at_byte(mut self, offset: usize) -> Self {
        self.inner.offset.get_or_insert(offset);
        self
    }

    /// Returns the reason of the error.
    pub fn kind(&self) -> &DecodeErrorKind {
        &self.inner.kind
    }

    /// Returns the path of the field that could not be decoded, such as
    /// `headers.eta` or `body[0]`.
    pub fn field(&self) -> Option<&str> {
        Some(self.inner.field.as_str()).filter(|field| !field.is_empty())
    }

    /// Returns the content type that was decoded or refused.
    pub fn content_type(&self) -> Option<&str> {
        match &self.inner.kind {
            DecodeErrorKind::Refused { content_type, .. } => Some(content_type),
            _ => self.inner.content_type,
        }
    }

    /// Returns the byte offset at which decoding stopped, relative to the start
    /// of the decoded value.
    pub fn offset(&self) -> Option<usize> {
        self.inner.offset
    }

    /// Returns whether the content type is outside the accept-list.
    pub fn is_refused(&self) -> bool {
        matches!(self.inner.kind, DecodeErrorKind::Refused { .. })
    }

    /// Returns whether the content is larger than the limit of the caller.
    pub fn is_too_large(&self) -> bool {
        matches!(self.inner.kind, DecodeErrorKind::TooLarge { .. })
    }

    /// Returns whether values are nested deeper than the limit of the reader.
    pub fn is_too_deep(&self) -> bool {
        matches!(self.inner.kind, DecodeErrorKind::TooDeep { .. })
    }
}

impl From<DecodeErrorKind> for DecodeError {
    #[cold]
    fn from(kind: DecodeErrorKind) -> Self {
        Self {
            inner: Box::new(DecodeFailure {
                kind,
                field: String::new(),
                content_type: None,
                offset: None,
            }),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot read ")?;
        f.write_str(self.field().unwrap_or("value"))?;
        if let Some(content_type) = self.inner.content_type {
            write!(f, " as {content_type}")?;
        }
        if let Some(offset) = self.inner.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.inner.kind)
    }
}

impl fmt::Debug for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecodeError")
            .field("kind", &self.inner.kind)
            .field("field", &self.field())
            .field("content_type", &self.content_type())
            .field("offset", &self.inner.offset)
            .finish()
    }
}

impl std::error::Error for DecodeError {}

impl serde::de::Error for DecodeError {
    #[cold]
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
}

/// The error of encoding a value.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodeError {
    inner: Box<EncodeFailure>,
}

#[derive(Clone, PartialEq, Eq)]
struct EncodeFailure {
    kind: EncodeErrorKind,
    field: String,
    content_type: Option<&'static str>,
}

/// The reason of an [`EncodeError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeErrorKind {
    /// The format cannot represent the value, or its `Serialize` implementation
    /// failed.
    #[error("{0}")]
    Invalid(String),
    /// The cargo feature of the encoder is off.
    #[error("{what} needs the cargo feature `{feature}`")]
    FeatureOff {
        /// The serializer or compression.
        what: &'static str,
        /// The feature to enable.
        feature: &'static str,
    },
}

impl EncodeError {
    /// Creates an error for a value that the format cannot represent.
    pub fn new(message: impl Into<String>) -> Self {
        EncodeErrorKind::Invalid(message.into()).into()
    }

    /// Prepends `field` to the path of the field that could not be encoded.
    #[must_use]
    pub fn in_field(mut self, field: impl AsRef<str>) -> Self {
        prepend_field(&mut self.inner.field, field.as_ref());
        self
    }

    /// Sets the content type, unless one is set already.
    #[must_use]
    pub(crate) fn in_content_type(mut self, content_type: &'static str) -> Self {
        self.inner.content_type.get_or_insert(content_type);
        self
    }

    /// Returns the reason of the error.
    pub fn kind(&self) -> &EncodeErrorKind {
        &self.inner.kind
    }

    /// Returns the path of the field that could not be encoded, such as `args`.
    pub fn field(&self) -> Option<&str> {
        Some(self.inner.field.as_str()).filter(|field| !field.is_empty())
    }

    /// Returns the content type that was encoded.
    pub fn content_type(&self) -> Option<&str> {
        self.inner.content_type
    }
}

impl From<EncodeErrorKind> for EncodeError {
    #[cold]
    fn from(kind: EncodeErrorKind) -> Self {
        Self {
            inner: Box::new(EncodeFailure {
                kind,
                field: String::new(),
                content_type: None,
            }),
        }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot write ")?;
        f.write_str(self.field().unwrap_or("value"))?;
        if let Some(content_type) = self.inner.content_type {
            write!(f, " as {content_type}")?;
        }
        write!(f, ": {}", self.inner.kind)
    }
}

impl fmt::Debug for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodeError")
            .field("kind", &self.inner.kind)
            .field("field", &self.field())
            .field("content_type", &self.inner.content_type)
            .finish()
    }
}

impl std::error::Error for EncodeError {}

impl serde::ser::Error for EncodeError {
    #[cold]
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
}

fn prepend_field(path: &mut String, field: &str) {
    if !path.is_empty() && !path.starts_with('[') {
        path.insert(0, '.');
    }
    path.insert_str(0, field);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_names_field_format_and_offset() {
        let error = DecodeError::malformed("expected `,`, found `}`")
            .at_byte(17)
            .at_byte(99)
            .in_content_type("application/json")
            .in_field("[0]")
            .in_field("body");
        assert_eq!(
            error.to_string(),
            "cannot read body[0] as application/json at byte 17: expected `,`, found `}`"
        );
        assert_eq!(error.field(), Some("body[0]"));
        assert_eq!(error.offset(), Some(17));
    }

    #[test]
    fn nested_fields_are_joined_by_dots() {
        let error = DecodeError::new("bad").in_field("eta").in_field("headers");
        assert_eq!(error.field(), Some("headers.eta"));
        let error = EncodeError::new("bad").in_field("kwargs");
        assert_eq!(error.to_string(), "cannot write kwargs: bad");
    }

    #[test]
    fn refused_error_names_the_content_type() {
        let error = DecodeError::refused("application/x-python-serialize", "pickle");
        assert!(error.is_refused());
        assert_eq!(error.content_type(), Some("application/x-python-serialize"));
        assert!(error.to_string().contains("application/x-python-serialize"));
    }
}
