//! What is sent, and what comes back.

use std::sync::LazyLock;

use bytes::Bytes;
use redis::{RedisError, Value};

/// One command with its arguments.
#[derive(Clone, Debug)]
pub struct Command {
    inner: redis::Cmd,
}

impl Command {
    /// A command of this name.
    pub fn new(name: &str) -> Self {
        Self {
            inner: redis::cmd(name),
        }
    }

    /// The same with one more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.inner.arg(argument.as_ref());
        self
    }

    /// Adds one more argument.
    pub fn push(&mut self, argument: impl AsRef<[u8]>) {
        self.inner.arg(argument.as_ref());
    }

    /// The same with more arguments.
    #[must_use]
    pub fn args<A: AsRef<[u8]>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.inner.arg(argument.as_ref());
        }
        self
    }

    /// The same with a number as one more argument.
    #[must_use]
    pub fn number(mut self, number: impl Into<i128>) -> Self {
        self.inner.arg(number.into().to_string());
        self
    }

    pub(super) fn into_inner(self) -> redis::Cmd {
        self.inner
    }
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RedisReply {
    /// Nothing is there.
    Nil,
    /// A number.
    Number(i64),
    /// Bytes or text.
    Data(Bytes),
    /// Several answers.
    List(Vec<Self>),
}

impl RedisReply {
    /// The answer, without what the protocol's two versions do differently.
    pub(super) fn new(value: Value) -> Result<Self, RedisError> {
        Ok(match value {
            Value::Nil => Self::Nil,
            Value::Int(number) => Self::Number(number),
            Value::Boolean(flag) => Self::Number(flag.into()),
            Value::BulkString(bytes) => Self::Data(bytes.into()),
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => {
                Self::Data(text.into())
            }
            Value::Okay => Self::Data(Bytes::from_static(b"OK")),
            Value::Double(number) => Self::Data(number.to_string().into()),
            Value::BigNumber(digits) => Self::Data(digits.into()),
            Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => {
                Self::List(
                    values
                        .into_iter()
                        .map(Self::new)
                        .collect::<Result<_, _>>()?,
                )
            }
            Value::Map(pairs) => {
                let flat = pairs.into_iter().flat_map(|(key, value)| [key, value]);
                Self::List(flat.map(Self::new).collect::<Result<_, _>>()?)
            }
            Value::Attribute { data, .. } => Self::new(*data)?,
            Value::ServerError(error) => return Err(error.into()),
            _ => Self::Nil,
        })
    }

    /// The number, or 0.
    pub fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            Self::Data(digits) => {
                let digits = std::str::from_utf8(digits).ok();
                digits
                    .and_then(|digits| digits.parse().ok())
                    .unwrap_or_default()
            }
            _ => 0,
        }
    }

    /// The bytes, if there are any.
    pub fn data(self) -> Option<Bytes> {
        match self {
            Self::Data(bytes) => Some(bytes),
            Self::Number(number) => Some(number.to_string().into()),
            _ => None,
        }
    }

    /// The bytes as text, with replacements where they are none.
    pub fn text(self) -> Option<String> {
        let bytes = self.data()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The answers in a list; none if it is no list.
    pub fn list(self) -> Vec<Self> {
        match self {
            Self::List(replies) => replies,
            _ => Vec::new(),
        }
    }
}

/// Deletes a key that holds a given value: `KEYS` is the key, `ARGV` the value. The reply is 1
/// where it was deleted and 0 elsewhere.
pub static COMPARE_AND_DELETE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../../scripts/compare_and_delete.lua")));

/// A script that the server runs as one step.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    /// A script of this text.
    pub fn new(text: &'static str) -> Self {
        let hash = redis::Script::new(text).get_hash().to_owned();
        Self { text, hash }
    }

    /// The command that runs it where the server knows it.
    #[must_use]
    pub fn by_hash(&self, keys: &[&str], arguments: &[&[u8]]) -> Command {
        invocation("EVALSHA", &self.hash, keys, arguments)
    }

    /// The command that runs it in any case, for pipelines that are rare.
    #[must_use]
    pub fn by_text(&self, keys: &[&str], arguments: &[&[u8]]) -> Command {
        invocation("EVAL", self.text, keys, arguments)
    }
}

fn invocation(name: &str, script: &str, keys: &[&str], arguments: &[&[u8]]) -> Command {
    Command::new(name)
        .arg(script)
        .number(keys.len() as i64)
        .args(keys)
        .args(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocol_versions_look_the_same() {
        let map = Value::Map(vec![(Value::Int(1), Value::Okay)]);
        let array = Value::Array(vec![Value::Int(1), Value::SimpleString("OK".into())]);
        assert_eq!(
            RedisReply::new(map).unwrap(),
            RedisReply::new(array).unwrap()
        );
        assert_eq!(
            RedisReply::new(Value::BulkString(b"12".to_vec()))
                .unwrap()
                .number(),
            12
        );
        assert_eq!(
            RedisReply::new(Value::Int(7)).unwrap().text().as_deref(),
            Some("7")
        );
        assert!(RedisReply::new(Value::Nil).unwrap().list().is_empty());
    }
}
