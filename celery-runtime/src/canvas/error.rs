//! What is wrong with a canvas: [`CanvasError`].

use std::fmt;

use celery_protocol::EncodeError;

/// A canvas that cannot be read, written or sent, and where in it the reason is.
#[derive(Clone, Debug, PartialEq)]
pub struct CanvasError {
    /// From the outermost to the innermost: `tasks[3].body`.
    place: String,
    cause: Cause,
}

#[derive(Clone, Debug, PartialEq)]
enum Cause {
    Shape(String),
    Encode(EncodeError),
}

impl CanvasError {
    pub(crate) fn new(cause: impl Into<String>) -> Self {
        Self {
            place: String::new(),
            cause: Cause::Shape(cause.into()),
        }
    }

    /// The same, found inside of `part`.
    pub(crate) fn inside(mut self, part: impl fmt::Display) -> Self {
        self.place = match self.place.as_str() {
            "" => part.to_string(),
            place => format!("{part}.{place}"),
        };
        self
    }

    /// Where in the canvas: `tasks[3].body`; empty for the canvas itself.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The argument that has no form in the serializer, if that is the reason.
    pub(crate) fn into_encode_error(self) -> Result<EncodeError, Self> {
        match self.cause {
            Cause::Encode(error) if self.place.is_empty() => Ok(error),
            _ => Err(self),
        }
    }
}

impl From<EncodeError> for CanvasError {
    fn from(error: EncodeError) -> Self {
        Self {
            place: String::new(),
            cause: Cause::Encode(error),
        }
    }
}

impl fmt::Display for CanvasError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "at {}: ", self.place)?;
        }
        match &self.cause {
            Cause::Shape(cause) => f.write_str(cause),
            Cause::Encode(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CanvasError {}
