//! The serde deserializer of JSON.

use std::borrow::Cow;

use serde::de::value::SeqDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, IntoDeserializer as _, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::cursor::Cursor;
use super::key::JsonKeyDeserializer;
use super::number::Number;
use super::typed::TypedValue;
use super::variant::JsonVariantAccess;
use crate::codec::MAX_DECODE_DEPTH;
use crate::codec::token::{self, tag};
use crate::error::{DecodeError, DecodeErrorKind};
use crate::value::{SpecialAccess, out_of_range, visit_big};

/// Deserializes types from a JSON text, which they may borrow from.
pub(crate) struct JsonReader<'de> {
    pub(super) cursor: Cursor<'de>,
    /// The number of open arrays and maps.
    depth: usize,
}

impl<'de> JsonReader<'de> {
    #[inline]
    pub(crate) fn new(text: &'de str) -> Self {
        Self {
            cursor: Cursor::new(text),
            depth: 0,
        }
    }

    /// Returns the number of bytes that were read.
    #[inline]
    pub(crate) fn offset(&self) -> usize {
        self.cursor.at
    }

    #[inline]
    pub(crate) fn end(&mut self) -> Result<(), DecodeError> {
        self.cursor.end()
    }

    /// Passes the next value to the visitor method for its type. With
    /// `LOSSLESS`, the visitor is that of a [`Value`](crate::Value) and
    /// receives special values through `visit_enum`.
    fn any<V: Visitor<'de>, const LOSSLESS: bool>(
        &mut self,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.cursor.token() {
            Some(b'"') => visit_text(self.cursor.string()?, visitor),
            Some(b'[') => self.sequence(visitor),
            Some(b'{') => match TypedValue::read(&mut self.cursor)? {
                None => self.map(visitor),
                Some(typed) => visit_typed::<V, LOSSLESS>(typed, visitor),
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
                Number::Big(digits) if LOSSLESS => {
                    visitor.visit_enum(SpecialAccess::new(tag::BIG_INT, digits))
                }
                Number::Big(digits) => visit_big(digits, visitor),
            },
        }
    }

    /// Reads an integer. `limit` is the name of the integer type, for error
    /// texts.
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
            Number::Big(digits) => Err(out_of_range(digits, limit)),
        }
    }

    #[inline]
    fn sequence<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, DecodeError> {
        self.enter()?;
        let value = visitor.visit_seq(JsonSeqAccess {
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
        let value = visitor.visit_map(JsonMapAccess {
            reader: self,
            first: true,
        })?;
        self.leave(b'}')?;
        Ok(value)
    }

    #[inline]
    pub(super) fn enter(&mut self) -> Result<(), DecodeError> {
        if self.depth == MAX_DECODE_DEPTH {
            let error = DecodeError::from(DecodeErrorKind::TooDeep {
                limit: MAX_DECODE_DEPTH,
            });
            return Err(error.at_byte(self.cursor.at));
        }
        self.depth += 1;
        self.cursor.at += 1;
        Ok(())
    }

    #[inline]
    pub(super) fn leave(&mut self, bracket: u8) -> Result<(), DecodeError> {
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

impl<'de> Deserializer<'de> for &mut JsonReader<'de> {
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
                Err(_) => Err(out_of_range(digits, "f64")),
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
            // Values that Python wrote as bytes deserialize into a `Vec<u8>`.
            let bytes = match TypedValue::read(&mut self.cursor)? {
                None => return self.map(visitor),
                Some(TypedValue::Text(text)) => text.into_owned().into_bytes(),
                Some(TypedValue::Bytes(bytes)) => bytes,
                Some(typed) => return visit_typed::<V, false>(typed, visitor),
            };
            return visitor.visit_seq(SeqDeserializer::new(bytes.into_iter()));
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

    /// Passes a map to a type that requests a map, even if kombu would decode
    /// it as a typed value.
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
                return visitor.visit_enum(SpecialAccess::new(tag::RAW_JSON, span));
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
                let value = visitor.visit_enum(JsonVariantAccess { reader: self })?;
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
pub(super) fn visit_text<'de, V: Visitor<'de>>(
    text: Cow<'de, str>,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    match text {
        Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
        Cow::Owned(text) => visitor.visit_string(text),
    }
}

fn visit_typed<'de, V: Visitor<'de>, const LOSSLESS: bool>(
    typed: TypedValue<'de>,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    match typed {
        TypedValue::Extended(kind, text) if LOSSLESS => {
            visitor.visit_enum(SpecialAccess::extended(kind, text))
        }
        TypedValue::Extended(_, text) => visit_text(text, visitor),
        TypedValue::Text(Cow::Borrowed(text)) => visitor.visit_borrowed_bytes(text.as_bytes()),
        TypedValue::Text(Cow::Owned(text)) => visitor.visit_byte_buf(text.into_bytes()),
        TypedValue::Bytes(bytes) => visitor.visit_byte_buf(bytes),
    }
}

/// Access to the elements of an array.
struct JsonSeqAccess<'r, 'de> {
    reader: &'r mut JsonReader<'de>,
    first: bool,
}

impl<'de> SeqAccess<'de> for JsonSeqAccess<'_, 'de> {
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

/// Access to the entries of a map.
struct JsonMapAccess<'r, 'de> {
    reader: &'r mut JsonReader<'de>,
    first: bool,
}

impl<'de> MapAccess<'de> for JsonMapAccess<'_, 'de> {
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
        seed.deserialize(JsonKeyDeserializer {
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
