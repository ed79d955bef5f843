//! Deserialization of types from a [`Value`].

use std::borrow::Cow;

use serde::de::value::SeqDeserializer;
use serde::de::{Deserializer, IntoDeserializer, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::Value;
use super::access::{ValueEntries, ValueMapAccess, ValueSeqAccess, ValueVariantAccess};
use super::special::{SpecialAccess, out_of_range, visit_big};
use crate::codec::token::{self, tag};
use crate::error::DecodeError;

/// Types deserialize from an owned value as from the same value in JSON, but
/// cannot borrow from it.
impl<'de> IntoDeserializer<'de, DecodeError> for Value {
    type Deserializer = ValueDeserializer<'de>;

    fn into_deserializer(self) -> ValueDeserializer<'de> {
        ValueDeserializer {
            value: Cow::Owned(self),
        }
    }
}

impl<'de> IntoDeserializer<'de, DecodeError> for &'de Value {
    type Deserializer = ValueDeserializer<'de>;

    fn into_deserializer(self) -> ValueDeserializer<'de> {
        ValueDeserializer {
            value: Cow::Borrowed(self),
        }
    }
}

/// Deserializes types from a [`Value`].
#[derive(Clone, Debug)]
pub struct ValueDeserializer<'de> {
    pub(super) value: Cow<'de, Value>,
}

impl<'de> ValueDeserializer<'de> {
    /// Passes the value to the visitor method for its type. With `LOSSLESS`,
    /// the visitor is that of a [`Value`] and receives special values through
    /// `visit_enum`.
    pub(super) fn any<V: Visitor<'de>, const LOSSLESS: bool>(
        self,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.value {
            Cow::Borrowed(Value::Str(text)) => visitor.visit_borrowed_str(text),
            Cow::Borrowed(Value::Bytes(bytes)) => visitor.visit_borrowed_bytes(bytes),
            Cow::Borrowed(Value::Array(elements)) => {
                sequence(ValueSeqAccess::Borrowed(elements.iter()), visitor)
            }
            Cow::Borrowed(Value::Map(map)) => mapping(ValueEntries::Borrowed(map.iter()), visitor),
            Cow::Borrowed(Value::Extended(extended)) if !LOSSLESS => {
                visitor.visit_borrowed_str(extended.as_str())
            }
            value => match value.into_owned() {
                Value::Null => visitor.visit_unit(),
                Value::Bool(value) => visitor.visit_bool(value),
                Value::Int(value) => visitor.visit_i64(value),
                Value::UInt(value) => visitor.visit_u64(value),
                Value::Float(value) => visitor.visit_f64(value),
                Value::BigInt(value) if LOSSLESS => {
                    visitor.visit_enum(SpecialAccess::new(tag::BIG_INT, value.as_str().to_owned()))
                }
                Value::BigInt(value) => visit_big(value.as_str(), visitor),
                Value::Extended(value) if LOSSLESS => {
                    let kind = value.kind();
                    visitor.visit_enum(SpecialAccess::extended(kind, value.into_text()))
                }
                Value::Extended(value) => visitor.visit_string(value.into_text()),
                Value::Str(text) => visitor.visit_string(text),
                Value::Bytes(bytes) => visitor.visit_byte_buf(bytes),
                Value::Array(elements) => {
                    sequence(ValueSeqAccess::Owned(elements.into_iter()), visitor)
                }
                Value::Map(map) => mapping(ValueEntries::Owned(map.into_iter()), visitor),
            },
        }
    }
}

macro_rules! bounded_integers {
    ($($method:ident $type:ident),+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            match &*self.value {
                Value::BigInt(value) => Err(out_of_range(value.as_str(), stringify!($type))),
                _ => self.any::<V, false>(visitor),
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for ValueDeserializer<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.any::<V, false>(visitor)
    }

    bounded_integers! {
        deserialize_i8 i8, deserialize_i16 i16, deserialize_i32 i32, deserialize_i64 i64,
        deserialize_u8 u8, deserialize_u16 u16, deserialize_u32 u32, deserialize_u64 u64
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value.as_f64() {
            Some(value) => visitor.visit_f64(value),
            None => self.any::<V, false>(visitor),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.value.is_null() {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &*self.value {
            // Values that Python wrote as bytes deserialize into a `Vec<u8>`.
            Value::Bytes(bytes) => visitor.visit_seq(SeqDeserializer::new(bytes.iter().copied())),
            _ => self.any::<V, false>(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match name {
            token::VALUE => self.any::<V, true>(visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.value.into_owned() {
            Value::Str(variant) => visitor.visit_enum(ValueVariantAccess {
                variant,
                content: None,
            }),
            Value::Map(map) if map.len() == 1 => match map.into_iter().next() {
                Some((Value::Str(variant), content)) => visitor.visit_enum(ValueVariantAccess {
                    variant,
                    content: Some(content),
                }),
                _ => Err(DecodeError::new("the name of a variant must be a string")),
            },
            other => Err(DecodeError::new(format!(
                "expected a variant as a string or a map of one entry, found {}",
                other.describe()
            ))),
        }
    }

    forward_to_deserialize_any! {
        bool i128 u128 char str string bytes byte_buf unit unit_struct
        tuple tuple_struct map struct identifier ignored_any
    }
}

macro_rules! forward {
    ($($method:ident($($arg:ident: $type:ty),*)),+ $(,)?) => {$(
        fn $method<V: Visitor<'de>>(
            self, $($arg: $type,)* visitor: V,
        ) -> Result<V::Value, DecodeError> {
            self.into_deserializer().$method($($arg,)* visitor)
        }
    )+};
}

/// Types deserialize from a borrowed value and may borrow from it.
impl<'de> Deserializer<'de> for &'de Value {
    type Error = DecodeError;

    forward! {
        deserialize_any(),
        deserialize_bool(),
        deserialize_i8(),
        deserialize_i16(),
        deserialize_i32(),
        deserialize_i64(),
        deserialize_i128(),
        deserialize_u8(),
        deserialize_u16(),
        deserialize_u32(),
        deserialize_u64(),
        deserialize_u128(),
        deserialize_f32(),
        deserialize_f64(),
        deserialize_char(),
        deserialize_str(),
        deserialize_string(),
        deserialize_bytes(),
        deserialize_byte_buf(),
        deserialize_option(),
        deserialize_unit(),
        deserialize_unit_struct(name: &'static str),
        deserialize_newtype_struct(name: &'static str),
        deserialize_seq(),
        deserialize_tuple(len: usize),
        deserialize_tuple_struct(name: &'static str, len: usize),
        deserialize_map(),
        deserialize_struct(name: &'static str, fields: &'static [&'static str]),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]),
        deserialize_identifier(),
        deserialize_ignored_any(),
    }
}

fn sequence<'de, V: Visitor<'de>>(
    mut elements: ValueSeqAccess<'de>,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    let result = visitor.visit_seq(&mut elements)?;
    match elements.size_hint() {
        Some(0) => Ok(result),
        _ => Err(DecodeError::new(
            "the array has more elements than expected",
        )),
    }
}

fn mapping<'de, V: Visitor<'de>>(
    entries: ValueEntries<'de>,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    visitor.visit_map(ValueMapAccess {
        entries,
        value: None,
    })
}
