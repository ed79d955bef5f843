//! Deserializer access to the elements, entries, keys and variants of a
//! [`Value`].

use std::borrow::Cow;
use std::{slice, vec};

use serde::de::value::StringDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{Value, ValueDeserializer};
use crate::codec::token;
use crate::error::DecodeError;

/// Access to the elements of an array.
pub(super) enum ValueSeqAccess<'de> {
    Borrowed(slice::Iter<'de, Value>),
    Owned(vec::IntoIter<Value>),
}

impl<'de> SeqAccess<'de> for ValueSeqAccess<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let value = match self {
            Self::Borrowed(elements) => elements.next().map(Cow::Borrowed),
            Self::Owned(elements) => elements.next().map(Cow::Owned),
        };
        value
            .map(|value| seed.deserialize(ValueDeserializer { value }))
            .transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(match self {
            Self::Borrowed(elements) => elements.len(),
            Self::Owned(elements) => elements.len(),
        })
    }
}

/// The remaining entries of a map.
pub(super) enum ValueEntries<'de> {
    Borrowed(super::map::Iter<'de>),
    Owned(vec::IntoIter<(Value, Value)>),
}

/// Access to the entries of a map.
pub(super) struct ValueMapAccess<'de> {
    pub(super) entries: ValueEntries<'de>,
    pub(super) value: Option<Cow<'de, Value>>,
}

impl<'de> MapAccess<'de> for ValueMapAccess<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let entry = match &mut self.entries {
            ValueEntries::Borrowed(entries) => entries
                .next()
                .map(|(key, value)| (Cow::Borrowed(key), Cow::Borrowed(value))),
            ValueEntries::Owned(entries) => entries
                .next()
                .map(|(key, value)| (Cow::Owned(key), Cow::Owned(value))),
        };
        let Some((key, value)) = entry else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(ValueKeyDeserializer { key }).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        match self.value.take() {
            Some(value) => seed.deserialize(ValueDeserializer { value }),
            None => Err(DecodeError::new(
                "the value of a map entry was requested before its key",
            )),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(match &self.entries {
            ValueEntries::Borrowed(entries) => entries.len(),
            ValueEntries::Owned(entries) => entries.len(),
        })
    }
}

/// Deserializer of a key of a map. JSON has only texts as keys, so a number or
/// boolean is also parsed from a text.
struct ValueKeyDeserializer<'de> {
    key: Cow<'de, Value>,
}

macro_rules! parse_from_text {
    ($($method:ident $visit:ident),+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            match self.key.as_str().map(str::parse) {
                Some(Ok(value)) => visitor.$visit(value),
                _ => ValueDeserializer { value: self.key }.$method(visitor),
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for ValueKeyDeserializer<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        ValueDeserializer { value: self.key }.deserialize_any(visitor)
    }

    parse_from_text! {
        deserialize_bool visit_bool,
        deserialize_i8 visit_i64, deserialize_i16 visit_i64,
        deserialize_i32 visit_i64, deserialize_i64 visit_i64, deserialize_i128 visit_i128,
        deserialize_u8 visit_u64, deserialize_u16 visit_u64,
        deserialize_u32 visit_u64, deserialize_u64 visit_u64, deserialize_u128 visit_u128,
        deserialize_f32 visit_f64, deserialize_f64 visit_f64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.key.is_null() {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match name {
            token::VALUE => ValueDeserializer { value: self.key }.any::<V, true>(visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        ValueDeserializer { value: self.key }.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

/// Access to an enum variant: its name, and its content if it has any.
pub(super) struct ValueVariantAccess {
    pub(super) variant: String,
    pub(super) content: Option<Value>,
}

impl<'de> EnumAccess<'de> for ValueVariantAccess {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        mut self,
        seed: V,
    ) -> Result<(V::Value, Self), DecodeError> {
        let name = std::mem::take(&mut self.variant);
        let variant = seed.deserialize(StringDeserializer::<DecodeError>::new(name))?;
        Ok((variant, self))
    }
}

impl ValueVariantAccess {
    fn content<'de>(self, expected: &'static str) -> Result<ValueDeserializer<'de>, DecodeError> {
        match self.content {
            Some(content) => Ok(content.into_deserializer()),
            None => Err(DecodeError::invalid_type(
                Unexpected::UnitVariant,
                &expected,
            )),
        }
    }
}

impl<'de> VariantAccess<'de> for ValueVariantAccess {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        match self.content {
            Some(content) => <()>::deserialize(content.into_deserializer()),
            None => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        seed.deserialize(self.content("newtype variant")?)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.content("tuple variant")?
            .deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.content("struct variant")?
            .deserialize_struct("", fields, visitor)
    }
}
