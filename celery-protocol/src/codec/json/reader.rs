//! The serde side of reading JSON.

use std::borrow::Cow;

use serde::de::value::{BorrowedStrDeserializer, StringDeserializer};
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer as _, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::cursor::{Cursor, Number};
use super::typed::Typed;
use crate::codec::DECODE_DEPTH;
use crate::codec::token::{self, delivered};
use crate::error::{DecodeError, DecodeErrorKind};
use crate::value::{SpecialAccess, beyond};

/// Reads types from a JSON text and lends them parts of it.
pub(super) struct Reader<'de> {
    cursor: Cursor<'de>,
    /// How many containers are open.
    depth: usize,
}

impl<'de> Reader<'de> {
    #[inline]
    pub(super) fn new(text: &'de str) -> Self {
        Self {
            cursor: Cursor::new(text),
            depth: 0,
        }
    }

    pub(super) fn offset(&self) -> usize {
        self.cursor.at
    }

    #[inline]
    pub(super) fn end(&mut self) -> Result<(), DecodeError> {
        self.cursor.end()
    }

    /// Hands the next value over as what it is. With `NOTHING_LOST`, the
    /// visitor is that of a [`Value`](crate::Value) and takes what the data
    /// model has no method for.
    fn any<V: Visitor<'de>, const NOTHING_LOST: bool>(
        &mut self,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.cursor.token() {
            Some(b'"') => visit_text(self.cursor.string()?, visitor),
            Some(b'[') => self.sequence(visitor),
            Some(b'{') => match Typed::read(&mut self.cursor)? {
                None => self.map(visitor),
                Some(typed) => visit_typed::<V, NOTHING_LOST>(typed, visitor),
            },
            Some(b'n') => {
                self.cursor.keyword(b"null")?;
                visitor.visit_unit()
            }
            Some(b't') => {
                self.cursor.keyword(b"true")?;
                visitor.visit_bool(true)
            }
            Some(b'f') => {
                self.cursor.keyword(b"false")?;
                visitor.visit_bool(false)
            }
            _ => match self.cursor.number()? {
                Number::Int(value) => visitor.visit_i64(value),
                Number::UInt(value) => visitor.visit_u64(value),
                Number::Float(value) => visitor.visit_f64(value),
                Number::Big(digits) if NOTHING_LOST => {
                    visitor.visit_enum(SpecialAccess::new(delivered::BIG_INT, digits))
                }
                Number::Big(digits) => visit_big(digits, visitor),
            },
        }
    }

    /// Reads a number for a type whose name is `limit`.
    #[inline]
    fn integer<V: Visitor<'de>>(
        &mut self,
        visitor: V,
        limit: &'static str,
    ) -> Result<V::Value, DecodeError> {
        let Some(b'-' | b'0'..=b'9') = self.cursor.token() else {
            return self.any::<V, false>(visitor);
        };
        match self.cursor.number()? {
            Number::Int(value) => visitor.visit_i64(value),
            Number::UInt(value) => visitor.visit_u64(value),
            Number::Float(value) => visitor.visit_f64(value),
            Number::Big(digits) => Err(beyond(digits, limit)),
        }
    }

    #[inline]
    fn sequence<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, DecodeError> {
        self.enter()?;
        let value = visitor.visit_seq(Elements {
            reader: self,
            first: true,
        })?;
        if self.cursor.token() == Some(b',') {
            let error = DecodeError::new("the array has more elements than expected");
            return Err(error.at_byte(self.cursor.at));
        }
        self.leave(b']')?;
        Ok(value)
    }

    #[inline]
    fn map<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, DecodeError> {
        self.enter()?;
        let value = visitor.visit_map(Entries {
            reader: self,
            first: true,
        })?;
        self.leave(b'}')?;
        Ok(value)
    }

    #[inline]
    fn enter(&mut self) -> Result<(), DecodeError> {
        if self.depth == DECODE_DEPTH {
            let error = DecodeError::from(DecodeErrorKind::TooDeep {
                limit: DECODE_DEPTH,
            });
            return Err(error.at_byte(self.cursor.at));
        }
        self.depth += 1;
        self.cursor.at += 1;
        Ok(())
    }

    #[inline]
    fn leave(&mut self, bracket: u8) -> Result<(), DecodeError> {
        self.depth -= 1;
        self.cursor.punctuation(bracket)
    }
}

macro_rules! integers {
    ($($method:ident $type:ident),+) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            self.integer(visitor, stringify!($type))
        }
    )+};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.any::<V, false>(visitor)
    }

    integers! {
        deserialize_i8 i8, deserialize_i16 i16, deserialize_i32 i32, deserialize_i64 i64,
        deserialize_u8 u8, deserialize_u16 u16, deserialize_u32 u32, deserialize_u64 u64
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let Some(b'-' | b'0'..=b'9' | b'N' | b'I') = self.cursor.token() else {
            return self.any::<V, false>(visitor);
        };
        match self.cursor.number()? {
            Number::Int(value) => visitor.visit_i64(value),
            Number::UInt(value) => visitor.visit_u64(value),
            Number::Float(value) => visitor.visit_f64(value),
            Number::Big(digits) => match digits.parse() {
                Ok(value) => visitor.visit_f64(value),
                Err(_) => Err(beyond(digits, "f64")),
            },
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.cursor.token() {
            Some(b'"') => visit_text(self.cursor.string()?, visitor),
            _ => self.any::<V, false>(visitor),
        }
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    #[inline]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.cursor.token() == Some(b'n') {
            self.cursor.keyword(b"null")?;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.cursor.token() == Some(b'[') {
            return self.sequence(visitor);
        }
        if self.cursor.token() == Some(b'{') {
            // A `Vec<u8>` takes what Python wrote as bytes.
            let bytes = match Typed::read(&mut self.cursor)? {
                None => return self.map(visitor),
                Some(Typed::Text(text)) => text.into_owned().into_bytes(),
                Some(Typed::Bytes(bytes)) => bytes,
                Some(typed) => return visit_typed::<V, false>(typed, visitor),
            };
            return visitor.visit_seq(serde::de::value::SeqDeserializer::new(bytes.into_iter()));
        }
        self.any::<V, false>(visitor)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    /// A type that asks for a map gets the map, even one that kombu would take
    /// for a typed value: only the type can know.
    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.cursor.token() {
            Some(b'{') => self.map(visitor),
            _ => self.any::<V, false>(visitor),
        }
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_map(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if token::is_token(name) {
            if name == token::RAW {
                let span = self.cursor.span()?;
                return visitor.visit_enum(SpecialAccess::new(delivered::RAW_JSON, span));
            }
            if name == token::VALUE {
                return self.any::<V, true>(visitor);
            }
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.cursor.token() {
            Some(b'"') => {
                let name = self.cursor.string()?;
                visitor.visit_enum(name.into_deserializer())
            }
            Some(b'{') => {
                self.enter()?;
                let value = visitor.visit_enum(Variant { reader: self })?;
                self.leave(b'}')?;
                Ok(value)
            }
            _ => Err(self
                .cursor
                .unexpected("a variant as a string or a map of one entry")),
        }
    }

    #[inline]
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.cursor.skip_value()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i128 u128 char bytes byte_buf unit unit_struct
    }
}

#[inline]
fn visit_text<'de, V: Visitor<'de>>(
    text: Cow<'de, str>,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    match text {
        Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
        Cow::Owned(text) => visitor.visit_string(text),
    }
}

fn visit_typed<'de, V: Visitor<'de>, const NOTHING_LOST: bool>(
    typed: Typed<'de>,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    match typed {
        Typed::Extended(kind, text) if NOTHING_LOST => {
            visitor.visit_enum(SpecialAccess::extended(kind, text))
        }
        Typed::Extended(_, text) => visit_text(text, visitor),
        Typed::Text(Cow::Borrowed(text)) => visitor.visit_borrowed_bytes(text.as_bytes()),
        Typed::Text(Cow::Owned(text)) => visitor.visit_byte_buf(text.into_bytes()),
        Typed::Bytes(bytes) => visitor.visit_byte_buf(bytes),
    }
}

/// An integer beyond 64 bits goes to visitors of 128 bits only.
fn visit_big<'de, V: Visitor<'de>>(digits: &str, visitor: V) -> Result<V::Value, DecodeError> {
    if let Ok(value) = digits.parse() {
        return visitor.visit_i128(value);
    }
    match digits.parse() {
        Ok(value) => visitor.visit_u128(value),
        Err(_) => Err(beyond(digits, "128 bits")),
    }
}

struct Elements<'r, 'de> {
    reader: &'r mut Reader<'de>,
    first: bool,
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let cursor = &mut self.reader.cursor;
        match cursor.token() {
            Some(b']') => return Ok(None),
            _ if self.first => self.first = false,
            Some(b',') => cursor.at += 1,
            _ => return Err(cursor.unexpected("`,` or `]`")),
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }
}

struct Entries<'r, 'de> {
    reader: &'r mut Reader<'de>,
    first: bool,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let cursor = &mut self.reader.cursor;
        match cursor.token() {
            Some(b'}') => return Ok(None),
            _ if self.first => self.first = false,
            Some(b',') => cursor.at += 1,
            _ => return Err(cursor.unexpected("`,` or `}`")),
        }
        if cursor.token() != Some(b'"') {
            return Err(cursor.unexpected("`\"` before a key"));
        }
        seed.deserialize(Key {
            reader: self.reader,
        })
        .map(Some)
    }

    #[inline]
    fn next_value_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        self.reader.cursor.punctuation(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}

/// A key of a map. JSON knows only texts as keys, so a number or boolean is
/// read from its text.
struct Key<'r, 'de> {
    reader: &'r mut Reader<'de>,
}

macro_rules! from_text {
    ($($method:ident $visit:ident),+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            let text = self.reader.cursor.string()?;
            match text.parse() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(DecodeError::invalid_value(Unexpected::Str(&text), &visitor)),
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for Key<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visit_text(self.reader.cursor.string()?, visitor)
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
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match name {
            token::VALUE => self.deserialize_any(visitor),
            token::RAW => self.reader.deserialize_newtype_struct(name, visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let name = self.reader.cursor.string()?;
        visitor.visit_enum(name.into_deserializer())
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

/// A variant of an enum with content, as serde writes it: `{"Name": content}`.
struct Variant<'r, 'de> {
    reader: &'r mut Reader<'de>,
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), DecodeError> {
        let name = match self.reader.cursor.string()? {
            Cow::Borrowed(name) => seed.deserialize(BorrowedStrDeserializer::new(name)),
            Cow::Owned(name) => seed.deserialize(StringDeserializer::new(name)),
        };
        let name: Result<V::Value, DecodeError> = name;
        self.reader.cursor.punctuation(b':')?;
        Ok((name?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        serde::Deserialize::deserialize(self.reader)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        seed.deserialize(self.reader)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.reader.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.reader.deserialize_map(visitor)
    }
}
