//! Commands and replies.

use std::sync::LazyLock;

use bytes::Bytes;
use redis::{RedisError, Value};

/// A command with its arguments.
#[derive(Clone, Debug)]
pub struct Command {
    inner: redis::Cmd,
}

impl Command {
    /// Returns a command without arguments.
    pub fn new(name: &str) -> Self {
        Self {
            inner: redis::cmd(name),
        }
    }

    /// Returns the command with one more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.inner.arg(argument.as_ref());
        self
    }

    /// Adds an argument.
    pub fn push(&mut self, argument: impl AsRef<[u8]>) {
        self.inner.arg(argument.as_ref());
    }

    /// Returns the command with more arguments.
    #[must_use]
    pub fn args<A: AsRef<[u8]>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.inner.arg(argument.as_ref());
        }
        self
    }

    /// Returns the command with a number as one more argument.
    #[must_use]
    pub fn number(mut self, number: impl Into<i128>) -> Self {
        self.inner.arg(number.into().to_string());
        self
    }

    pub(super) fn into_inner(self) -> redis::Cmd {
        self.inner
    }
}

/// A reply of the server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RedisReply {
    /// No value.
    Nil,
    /// A number.
    Number(i64),
    /// Bytes or text.
    Data(Bytes),
    /// Several replies.
    List(Vec<Self>),
}

impl RedisReply {
    /// Converts a value of the library; both protocol versions give the same
    /// reply.
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

    /// Returns the number, or 0 for any other reply.
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

    /// Returns the bytes, if there are any.
    pub fn data(self) -> Option<Bytes> {
        match self {
            Self::Data(bytes) => Some(bytes),
            Self::Number(number) => Some(number.to_string().into()),
            _ => None,
        }
    }

    /// Returns the bytes as text, with replacement characters for invalid
    /// UTF-8.
    pub fn text(self) -> Option<String> {
        let bytes = self.data()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the number of bytes of all data in the reply.
    pub fn size(&self) -> usize {
        match self {
            Self::Data(bytes) => bytes.len(),
            Self::List(replies) => replies.iter().map(Self::size).sum(),
            Self::Nil | Self::Number(_) => 0,
        }
    }

    /// Returns the replies of a list, or none for any other reply.
    pub fn list(self) -> Vec<Self> {
        match self {
            Self::List(replies) => replies,
            _ => Vec::new(),
        }
    }
}

/// The script that deletes the key `KEYS[1]` if it holds the value `ARGV[1]`.
/// Its reply is 1 if the key was deleted, else 0.
pub static COMPARE_AND_DELETE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../../scripts/compare_and_delete.lua")));

/// A script that the server runs atomically.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    /// Returns a script with this source text.
    pub fn new(text: &'static str) -> Self {
        let hash = redis::Script::new(text).get_hash().to_owned();
        Self { text, hash }
    }

    /// Returns the command that runs the script if the server knows it.
    #[must_use]
    pub fn by_hash(&self, keys: &[&str], arguments: &[&[u8]]) -> Command {
        invocation("EVALSHA", &self.hash, keys, arguments)
    }

    /// Returns the command that runs the script in any case, for rare
    /// pipelines.
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
    fn both_protocol_versions_give_the_same_reply() {
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
