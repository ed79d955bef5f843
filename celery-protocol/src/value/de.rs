//! Reading a [`Value`], and reading types from one.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::{slice, vec};

use serde::de::value::{BorrowedStrDeserializer, StringDeserializer, U64Deserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{BigInt, Extended, ExtendedKind, Map, Value};
use crate::codec::token::{self, delivered};
use crate::error::DecodeError;

impl<'de> Deserialize<'de> for Value {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(token::VALUE, ValueVisitor { entered: false })
    }
}

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Map(map) => Ok(map),
            other => Err(D::Error::custom(format_args!(
                "expected a map, found {}",
                other.describe()
            ))),
        }
    }
}

struct ValueVisitor {
    /// Whether the newtype by which a [`Value`] asks for itself was entered.
    /// A second one is an extension type of msgpack.
    entered: bool,
}

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        Value::deserialize(inner)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(BigInt::from(value).into())
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(BigInt::from(value).into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Str(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Str(text))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(Value::Bytes(bytes.to_owned()))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Value, E> {
        Ok(Value::Bytes(bytes))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        if self.entered {
            return Err(D::Error::custom("extension types are not supported"));
        }
        inner.deserialize_any(Self { entered: true })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        // Grows with what arrives: a length that is announced may be a lie.
        let mut array = Vec::with_capacity(elements.size_hint().unwrap_or(0).min(64));
        while let Some(element) = elements.next_element()? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::with_capacity(entries.size_hint().unwrap_or(0).min(64));
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Value::Map(Map::from_entries(map)))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Value, A::Error> {
        let (tag, content) = data.variant::<SpecialTag>()?;
        let SpecialTag::Ours(tag) = tag else {
            return Err(A::Error::custom("expected any value, found a tagged one"));
        };
        let text = content.newtype_variant::<String>()?;
        if tag == delivered::BIG_INT {
            return Ok(BigInt::from_digits(text).into());
        }
        match tag
            .checked_sub(delivered::EXTENDED)
            .and_then(ExtendedKind::from_index)
        {
            Some(kind) => Ok(Extended::new(kind, text).into()),
            None => Err(A::Error::custom("unknown kind of typed value")),
        }
    }
}

/// The variant of something that came through `visit_enum`.
pub(crate) enum SpecialTag {
    /// Delivered by a reader of this crate, see [`delivered`].
    Ours(u64),
    /// A variant that some other format named.
    Foreign,
}

impl<'de> Deserialize<'de> for SpecialTag {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TagVisitor;

        impl Visitor<'_> for TagVisitor {
            type Value = SpecialTag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the tag of a value")
            }

            #[inline]
            fn visit_u64<E>(self, tag: u64) -> Result<SpecialTag, E> {
                Ok(SpecialTag::Ours(tag))
            }

            fn visit_str<E>(self, _: &str) -> Result<SpecialTag, E> {
                Ok(SpecialTag::Foreign)
            }

            fn visit_bytes<E>(self, _: &[u8]) -> Result<SpecialTag, E> {
                Ok(SpecialTag::Foreign)
            }
        }

        deserializer.deserialize_identifier(TagVisitor)
    }
}

/// A text with a tag of [`delivered`], for `visit_enum`.
pub(crate) struct SpecialAccess<'de, E> {
    tag: u64,
    text: Cow<'de, str>,
    error: PhantomData<E>,
}

impl<'de, E> SpecialAccess<'de, E> {
    #[inline]
    pub(crate) fn new(tag: u64, text: impl Into<Cow<'de, str>>) -> Self {
        Self {
            tag,
            text: text.into(),
            error: PhantomData,
        }
    }

    pub(crate) fn extended(kind: ExtendedKind, text: impl Into<Cow<'de, str>>) -> Self {
        Self::new(delivered::EXTENDED + kind.index(), text)
    }
}

impl<'de, E: de::Error> EnumAccess<'de> for SpecialAccess<'de, E> {
    type Error = E;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), E> {
        let tag = seed.deserialize(U64Deserializer::new(self.tag))?;
        Ok((tag, self))
    }
}

impl<'de, E: de::Error> VariantAccess<'de> for SpecialAccess<'de, E> {
    type Error = E;

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, E> {
        match self.text {
            Cow::Borrowed(text) => seed.deserialize(BorrowedStrDeserializer::new(text)),
            Cow::Owned(text) => seed.deserialize(StringDeserializer::new(text)),
        }
    }

    fn unit_variant(self) -> Result<(), E> {
        Err(E::custom("a tagged value is no unit variant"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, E> {
        Err(E::custom("a tagged value is no tuple variant"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, E> {
        Err(E::custom("a tagged value is no struct variant"))
    }
}

/// Types are read from an owned value as from the JSON it stands for, except
/// that nothing is lent.
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

/// Reads types from a [`Value`].
#[derive(Clone, Debug)]
pub struct ValueDeserializer<'de> {
    value: Cow<'de, Value>,
}

impl<'de> ValueDeserializer<'de> {
    /// Hands the value over as what it is. With `NOTHING_LOST`, the visitor is
    /// that of a [`Value`] and takes what the data model has no method for.
    fn any<V: Visitor<'de>, const NOTHING_LOST: bool>(
        self,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.value {
            Cow::Borrowed(Value::Str(text)) => visitor.visit_borrowed_str(text),
            Cow::Borrowed(Value::Bytes(bytes)) => visitor.visit_borrowed_bytes(bytes),
            Cow::Borrowed(Value::Array(elements)) => {
                sequence(Elements::Borrowed(elements.iter()), visitor)
            }
            Cow::Borrowed(Value::Map(map)) => mapping(Entries::Borrowed(map.iter()), visitor),
            Cow::Borrowed(Value::Extended(extended)) if !NOTHING_LOST => {
                visitor.visit_borrowed_str(extended.as_str())
            }
            value => match value.into_owned() {
                Value::Null => visitor.visit_unit(),
                Value::Bool(value) => visitor.visit_bool(value),
                Value::Int(value) => visitor.visit_i64(value),
                Value::UInt(value) => visitor.visit_u64(value),
                Value::Float(value) => visitor.visit_f64(value),
                Value::BigInt(value) if NOTHING_LOST => visitor.visit_enum(SpecialAccess::new(
                    delivered::BIG_INT,
                    value.as_str().to_owned(),
                )),
                Value::BigInt(value) => visit_big(&value, visitor),
                Value::Extended(value) if NOTHING_LOST => {
                    let kind = value.kind();
                    visitor.visit_enum(SpecialAccess::extended(kind, value.into_text()))
                }
                Value::Extended(value) => visitor.visit_string(value.into_text()),
                Value::Str(text) => visitor.visit_string(text),
                Value::Bytes(bytes) => visitor.visit_byte_buf(bytes),
                Value::Array(elements) => sequence(Elements::Owned(elements.into_iter()), visitor),
                Value::Map(map) => mapping(Entries::Owned(map.into_iter()), visitor),
            },
        }
    }
}

macro_rules! out_of_range {
    ($($method:ident $type:ident),+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            match &*self.value {
                Value::BigInt(value) => Err(beyond(value.as_str(), stringify!($type))),
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

    out_of_range! {
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
            // A `Vec<u8>` takes what Python wrote as bytes.
            Value::Bytes(bytes) => {
                visitor.visit_seq(de::value::SeqDeserializer::new(bytes.iter().copied()))
            }
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
            Value::Str(variant) => visitor.visit_enum(Variant {
                variant,
                content: None,
            }),
            Value::Map(map) if map.len() == 1 => match map.into_iter().next() {
                Some((Value::Str(variant), content)) => visitor.visit_enum(Variant {
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

/// Types can be read from a value that was read before, and may borrow from it.
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
    mut elements: Elements<'de>,
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
    entries: Entries<'de>,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    visitor.visit_map(MapEntries {
        entries,
        value: None,
    })
}

/// An integer beyond 64 bits goes to visitors of 128 bits only.
fn visit_big<'de, V: Visitor<'de>>(value: &BigInt, visitor: V) -> Result<V::Value, DecodeError> {
    let digits = value.as_str();
    if let Ok(value) = digits.parse() {
        return visitor.visit_i128(value);
    }
    match digits.parse() {
        Ok(value) => visitor.visit_u128(value),
        Err(_) => Err(beyond(digits, "128 bits")),
    }
}

#[cold]
pub(crate) fn beyond(digits: &str, limit: &str) -> DecodeError {
    // A hostile number can be megabytes long.
    let shown = digits
        .get(..64)
        .map_or_else(|| digits.to_owned(), |head| format!("{head}..."));
    DecodeError::new(format!(
        "integer {shown} is outside of the range of {limit}"
    ))
}

enum Elements<'de> {
    Borrowed(slice::Iter<'de, Value>),
    Owned(vec::IntoIter<Value>),
}

impl<'de> SeqAccess<'de> for Elements<'de> {
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

enum Entries<'de> {
    Borrowed(super::map::Iter<'de>),
    Owned(vec::IntoIter<(Value, Value)>),
}

struct MapEntries<'de> {
    entries: Entries<'de>,
    value: Option<Cow<'de, Value>>,
}

impl<'de> MapAccess<'de> for MapEntries<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let entry = match &mut self.entries {
            Entries::Borrowed(entries) => entries
                .next()
                .map(|(key, value)| (Cow::Borrowed(key), Cow::Borrowed(value))),
            Entries::Owned(entries) => entries
                .next()
                .map(|(key, value)| (Cow::Owned(key), Cow::Owned(value))),
        };
        let Some((key, value)) = entry else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(KeyDeserializer { key }).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        match self.value.take() {
            Some(value) => seed.deserialize(ValueDeserializer { value }),
            None => Err(DecodeError::new(
                "a map's value was asked for before its key",
            )),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(match &self.entries {
            Entries::Borrowed(entries) => entries.len(),
            Entries::Owned(entries) => entries.len(),
        })
    }
}

/// A key of a map. JSON knows only texts as keys, so a number or boolean is
/// also read from its text.
struct KeyDeserializer<'de> {
    key: Cow<'de, Value>,
}

macro_rules! from_text {
    ($($method:ident $visit:ident),+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            match self.key.as_str().map(str::parse) {
                Some(Ok(value)) => visitor.$visit(value),
                _ => ValueDeserializer { value: self.key }.$method(visitor),
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for KeyDeserializer<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        ValueDeserializer { value: self.key }.deserialize_any(visitor)
    }

    from_text! {
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

/// A variant of an enum: its name, and its content if it has any.
struct Variant {
    variant: String,
    content: Option<Value>,
}

impl<'de> EnumAccess<'de> for Variant {
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

impl Variant {
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

impl<'de> VariantAccess<'de> for Variant {
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
