//! Errors of canvases: [`CanvasError`].

use std::fmt;

use celery_protocol::EncodeError;

/// An error in decoding, encoding or sending a canvas, with its location in the canvas.
#[derive(Clone, Debug, PartialEq)]
pub struct CanvasError {
    /// The path from the outermost to the innermost canvas: `tasks[3].body`.
    path: String,
    cause: CanvasErrorKind,
}

#[derive(Clone, Debug, PartialEq)]
enum CanvasErrorKind {
    Invalid(String),
    Encode(EncodeError),
}

impl CanvasError {
    pub(crate) fn new(cause: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            cause: CanvasErrorKind::Invalid(cause.into()),
        }
    }

    /// Prefixes the path of the error with `part`.
    pub(crate) fn inside(mut self, part: impl fmt::Display) -> Self {
        self.path = match self.path.as_str() {
            "" => part.to_string(),
            path => format!("{part}.{path}"),
        };
        self
    }

    /// Returns the path of the erroneous part, such as `tasks[3].body`; empty for the canvas
    /// itself.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the encoding error, if the error is one of the canvas itself.
    pub(crate) fn into_encode_error(self) -> Result<EncodeError, Self> {
        match self.cause {
            CanvasErrorKind::Encode(error) if self.path.is_empty() => Ok(error),
            _ => Err(self),
        }
    }
}

impl From<EncodeError> for CanvasError {
    fn from(error: EncodeError) -> Self {
        Self {
            path: String::new(),
            cause: CanvasErrorKind::Encode(error),
        }
    }
}

impl fmt::Display for CanvasError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "at {}: ", self.path)?;
        }
        match &self.cause {
            CanvasErrorKind::Invalid(cause) => f.write_str(cause),
            CanvasErrorKind::Encode(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CanvasError {}
