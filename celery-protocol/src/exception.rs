//! Exceptions in the form in which Python stores them.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::error::DecodeError;
use crate::raw::Raw;
use crate::repr;
use crate::value::Value;

/// The exception of a failed, retried or revoked task.
///
/// `Display` prints it as Python does: `ValueError('boom', 42)`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Exception {
    /// The name of the class: `ValueError`.
    pub exc_type: String,
    /// The arguments of the exception. Old versions of Celery stored a text,
    /// which is read as one argument.
    pub exc_message: Vec<Value>,
    /// The module of the class. A Python reader creates a class if it does not
    /// find this one, and rejects the name of a class that is not an exception.
    pub exc_module: Option<String>,
}

impl Exception {
    /// Creates an exception with one text as its argument.
    pub fn new(
        module: impl Into<String>,
        exc_type: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            exc_type: exc_type.into(),
            exc_message: vec![Value::Str(message.into())],
            exc_module: Some(module.into()),
        }
    }

    /// Replaces the arguments.
    #[must_use]
    pub fn with_args(self, args: impl IntoIterator<Item = Value>) -> Self {
        Self {
            exc_message: args.into_iter().collect(),
            ..self
        }
    }

    /// Decodes an exception.
    ///
    /// # Errors
    ///
    /// Fails if the value is not a map with `exc_type`.
    pub fn read(raw: &Raw<'_>) -> Result<Self, DecodeError> {
        let mut exception = Self::default();
        let mut named = false;
        for (name, value) in raw.entries()? {
            let in_entry = |error: DecodeError| error.in_field(&name);
            match &*name {
                "exc_type" => {
                    exception.exc_type = value.decode().map_err(in_entry)?;
                    named = true;
                }
                "exc_message" => {
                    exception.exc_message = arguments(value.to_value().map_err(in_entry)?);
                }
                "exc_module" => exception.exc_module = value.decode().map_err(in_entry)?,
                _ => {}
            }
        }
        if !named {
            return Err(DecodeError::new("an exception must have this entry").in_field("exc_type"));
        }
        Ok(exception)
    }
}

fn arguments(message: Value) -> Vec<Value> {
    match message {
        Value::Array(arguments) => arguments,
        Value::Null => Vec::new(),
        alone => vec![alone],
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Python prints the arguments as a tuple, without the comma after a
        // single argument.
        let printed = repr::args(&self.exc_message);
        let inside = printed.strip_prefix(['(', '[']).unwrap_or(&printed);
        let inside = inside.strip_suffix([')', ']']).unwrap_or(inside);
        let inside = inside.strip_suffix(',').unwrap_or(inside);
        write!(f, "{}({inside})", self.exc_type)
    }
}

impl std::error::Error for Exception {}

/// Serializes the entries in Python's order.
impl Serialize for Exception {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("exc_type", &self.exc_type)?;
        map.serialize_entry("exc_message", &self.exc_message)?;
        map.serialize_entry("exc_module", &self.exc_module)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Serializer;

    #[test]
    fn exception_is_read_and_written_in_pythons_form() {
        let text = r#"{"exc_type":"ValueError","exc_message":["boom",42],"exc_module":"builtins"}"#;
        let exception = Exception::read(&Raw::json(text)).unwrap();
        assert_eq!(exception.to_string(), "ValueError('boom', 42)");
        let written = Serializer::Json.encode(&exception).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), text);
    }

    #[test]
    fn exception_is_printed_as_in_python() {
        let exception = Exception::new("builtins", "KeyError", "it's");
        assert_eq!(exception.to_string(), r#"KeyError("it's")"#);
        let cases = [
            (vec![], "KeyError()"),
            (vec![Value::Array(vec![Value::Int(1)])], "KeyError([1])"),
            (vec![Value::from("(a,)")], "KeyError('(a,)')"),
        ];
        for (arguments, expected) in cases {
            assert_eq!(exception.clone().with_args(arguments).to_string(), expected);
        }
    }

    #[test]
    fn old_form_is_read() {
        let text = r#"{"exc_type":"ValueError","exc_message":"boom"}"#;
        let exception = Exception::read(&Raw::json(text)).unwrap();
        assert_eq!(exception.exc_message, [Value::from("boom")]);
        assert_eq!(exception.exc_module, None);
    }

    #[test]
    fn malformed_exception_error_names_the_field() {
        let cases = [
            ("{}", Some("exc_type")),
            (r#"{"exc_type":5}"#, Some("exc_type")),
            (r#"{"exc_type":"E","exc_module":[]}"#, Some("exc_module")),
            ("5", None),
        ];
        for (text, field) in cases {
            assert_eq!(
                Exception::read(&Raw::json(text)).unwrap_err().field(),
                field,
                "{text}"
            );
        }
    }
}
