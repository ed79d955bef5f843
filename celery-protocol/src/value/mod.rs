//! Dynamically typed values of messages.

mod access;
mod de;
mod deserializer;
mod extended;
mod map;
mod ser;
mod special;

pub use self::deserializer::ValueDeserializer;
pub use self::extended::{BigInt, Extended, ExtendedKind};
pub use self::map::{Iter as MapIter, Map};
pub(crate) use self::special::{SpecialAccess, SpecialTag, out_of_range, visit_big};

use std::hash::{Hash, Hasher};

use serde::Serialize;

use crate::error::EncodeError;

/// Any value that Celery's serializers can write, without loss.
///
/// It corresponds to [`serde_json::Value`](https://docs.rs/serde_json),
/// extended by the values that Python writes into messages: integers of any
/// size, bytes, NaN and infinities, keys that are not strings, and the typed
/// values of kombu.
///
/// Two values are equal if their encoded forms are equal: `NaN` equals `NaN`,
/// and `1` differs from `1.0`.
///
/// ```
/// use celery_protocol::{Serializer, Value};
///
/// let value: Value = Serializer::Json.decode(br#"{"x": [1, NaN]}"#)?;
/// assert_eq!(value.get("x").and_then(Value::as_array).map(<[_]>::len), Some(2));
/// # Ok::<(), celery_protocol::DecodeError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Value {
    /// Python's `None`.
    #[default]
    Null,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// An integer above [`i64::MAX`]; smaller ones are [`Value::Int`].
    UInt(u64),
    /// An integer beyond 64 bits.
    BigInt(BigInt),
    /// A floating-point number.
    Float(f64),
    /// A text.
    Str(String),
    /// Bytes, which JSON encodes as a typed value of kombu.
    Bytes(Vec<u8>),
    /// A date, a time, a decimal number or a UUID, which JSON encodes as a
    /// typed value of kombu.
    Extended(Extended),
    /// A list or a tuple; the serializers do not distinguish them.
    Array(Vec<Self>),
    /// A mapping.
    Map(Map),
}

impl Value {
    /// Converts any type that implements `Serialize` into a value.
    ///
    /// # Errors
    ///
    /// Fails if the `Serialize` implementation of the type fails, or if a key
    /// of a map is a list or a map.
    pub fn from_serialize<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        value.serialize(ser::ValueSerializer)
    }

    /// Returns whether this is Python's `None`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Returns the boolean, or `None` for another type.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the integer if it fits into an `i64`.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the integer if it fits into a `u64`.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(value) => u64::try_from(*value).ok(),
            Self::UInt(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns a number as a float. Large integers are rounded.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::UInt(value) => Some(*value as f64),
            Self::BigInt(value) => value.as_str().parse().ok(),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the text, or `None` for another type.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the bytes, or `None` for another type.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the elements of a list, or `None` for another type.
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// Returns the mapping, or `None` for another type.
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// Returns the value under a text key of a mapping, or `None` if this is no
    /// mapping or has no such key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_map()?.get(key)
    }

    /// Returns the name of the type, for error texts.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::UInt(_) | Self::BigInt(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Str(_) => "a string",
            Self::Bytes(_) => "bytes",
            Self::Extended(_) => "a typed value",
            Self::Array(_) => "an array",
            Self::Map(_) => "a map",
        }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::UInt(a), Self::UInt(b)) => a == b,
            (Self::BigInt(a), Self::BigInt(b)) => a == b,
            // Floats are compared by their bits, so that a value equals its
            // decoded copy.
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Extended(a), Self::Extended(b)) => a == b,
            (Self::Array(a), Self::Array(b)) => a == b,
            (Self::Map(a), Self::Map(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Self::Null => {}
            Self::Bool(value) => value.hash(state),
            Self::Int(value) => value.hash(state),
            Self::UInt(value) => value.hash(state),
            Self::BigInt(value) => value.hash(state),
            Self::Float(value) => value.to_bits().hash(state),
            Self::Str(text) => text.hash(state),
            Self::Bytes(bytes) => bytes.hash(state),
            Self::Extended(value) => value.hash(state),
            Self::Array(elements) => elements.hash(state),
            Self::Map(map) => map.hash(state),
        }
    }
}

impl From<()> for Value {
    fn from((): ()) -> Self {
        Self::Null
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        i64::try_from(value).map_or(Self::UInt(value), Self::Int)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl<T: Into<Self>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        values.into_iter().collect()
    }
}

impl<T: Into<Self>> FromIterator<T> for Value {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::Array(values.into_iter().map(Into::into).collect())
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),+ $(,)?) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        }
    )+};
}

from! {
    bool => Bool,
    i8 => Int,
    i16 => Int,
    i32 => Int,
    i64 => Int,
    u8 => Int,
    u16 => Int,
    u32 => Int,
    f32 => Float,
    f64 => Float,
    String => Str,
    Extended => Extended,
    Map => Map,
}

impl From<BigInt> for Value {
    /// Converts to the smallest variant: an integer that fits into 64 bits
    /// becomes [`Value::Int`] or [`Value::UInt`].
    fn from(value: BigInt) -> Self {
        let digits = value.as_str();
        if let Ok(small) = digits.parse() {
            return Self::Int(small);
        }
        match digits.parse() {
            Ok(small) => Self::UInt(small),
            Err(_) => Self::BigInt(value),
        }
    }
}
