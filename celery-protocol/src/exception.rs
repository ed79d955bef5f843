//! Exceptions as Python stores them.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::error::DecodeError;
use crate::raw::Raw;
use crate::repr;
use crate::value::Value;

/// The exception of a task that failed, is retried or was revoked.
///
/// Printed, it looks as Python prints it: `ValueError('boom', 42)`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Exception {
    /// The class: `ValueError`.
    pub exc_type: String,
    /// The arguments of the exception. Celery's old versions stored a text,
    /// which is read as one argument.
    pub exc_message: Vec<Value>,
    /// The module of the class. A Python reader makes up a class when it does
    /// not find this one, and refuses a name that is no exception.
    pub exc_module: Option<String>,
}

impl Exception {
    /// Creates an exception with one text, the usual kind.
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

    /// Returns the same exception with these arguments.
    #[must_use]
    pub fn with_args(self, args: impl IntoIterator<Item = Value>) -> Self {
        Self {
            exc_message: args.into_iter().collect(),
            ..self
        }
    }

    /// Reads an exception.
    ///
    /// # Errors
    ///
    /// When it is not a map with `exc_type`.
    pub fn read(raw: &Raw<'_>) -> Result<Self, DecodeError> {
        let mut exception = Self::default();
        let mut named = false;
        for (name, value) in raw.entries()? {
            let named_here = |error: DecodeError| error.in_field(&name);
            match &*name {
                "exc_type" => {
                    exception.exc_type = value.decode().map_err(named_here)?;
                    named = true;
                }
                "exc_message" => {
                    exception.exc_message = arguments(value.to_value().map_err(named_here)?);
                }
                "exc_module" => exception.exc_module = value.decode().map_err(named_here)?,
                _ => {}
            }
        }
        if !named {
            return Err(DecodeError::new("an exception must have one").in_field("exc_type"));
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
        // Python prints the tuple of arguments, and no comma after a lone one.
        let printed = repr::args(&self.exc_message);
        let inside = printed.strip_prefix(['(', '[']).unwrap_or(&printed);
        let inside = inside.strip_suffix([')', ']']).unwrap_or(inside);
        let inside = inside.strip_suffix(',').unwrap_or(inside);
        write!(f, "{}({inside})", self.exc_type)
    }
}

impl std::error::Error for Exception {}

/// Writes the entries in Python's order.
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
    fn read_and_written_as_python_does() {
        let text = r#"{"exc_type":"ValueError","exc_message":["boom",42],"exc_module":"builtins"}"#;
        let exception = Exception::read(&Raw::json(text)).unwrap();
        assert_eq!(exception.to_string(), "ValueError('boom', 42)");
        let written = Serializer::Json.encode(&exception).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), text);
    }

    #[test]
    fn printed_as_python_prints_it() {
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
    fn old_forms_are_read() {
        let text = r#"{"exc_type":"ValueError","exc_message":"boom"}"#;
        let exception = Exception::read(&Raw::json(text)).unwrap();
        assert_eq!(exception.exc_message, [Value::from("boom")]);
        assert_eq!(exception.exc_module, None);
    }

    #[test]
    fn hostile_forms_name_the_field() {
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
