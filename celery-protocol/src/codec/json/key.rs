//! Deserialization of the keys of JSON maps.

use serde::de::{Deserializer, Error as _, IntoDeserializer as _, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::reader::{JsonReader, visit_text};
use crate::codec::token;
use crate::error::DecodeError;

/// Deserializer of a key of a JSON map. JSON has only texts as keys, so a
/// number or boolean is parsed from the text.
pub(super) struct JsonKeyDeserializer<'r, 'de> {
    pub(super) reader: &'r mut JsonReader<'de>,
}

macro_rules! parse_from_text {
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

impl<'de> Deserializer<'de> for JsonKeyDeserializer<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visit_text(self.reader.cursor.string()?, visitor)
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
