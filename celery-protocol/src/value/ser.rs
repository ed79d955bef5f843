//! Serialization of a [`Value`], and conversion of other types into one.

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::{BigInt, Extended, ExtendedKind, Map, Value};
use crate::codec::text::{NewtypeContent, newtype_content};
use crate::codec::token;
use crate::error::EncodeError;
use crate::raw::Raw;

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::UInt(value) => serializer.serialize_u64(*value),
            Self::BigInt(value) => value.serialize(serializer),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Str(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Self::Extended(value) => value.serialize(serializer),
            Self::Array(elements) => elements.serialize(serializer),
            Self::Map(map) => map.serialize(serializer),
        }
    }
}

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

/// Serializer that builds a [`Value`].
pub(super) struct ValueSerializer;

impl Serializer for ValueSerializer {
    type Ok = Value;
    type Error = EncodeError;
    type SerializeSeq = ValueCompound;
    type SerializeTuple = ValueCompound;
    type SerializeTupleStruct = ValueCompound;
    type SerializeTupleVariant = ValueCompound;
    type SerializeMap = ValueCompound;
    type SerializeStruct = ValueCompound;
    type SerializeStructVariant = ValueCompound;

    fn serialize_bool(self, value: bool) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_i8(self, value: i8) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_i128(self, value: i128) -> Result<Value, EncodeError> {
        Ok(BigInt::from(value).into())
    }

    fn serialize_u8(self, value: u8) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_u128(self, value: u128) -> Result<Value, EncodeError> {
        Ok(BigInt::from(value).into())
    }

    fn serialize_f32(self, value: f32) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<Value, EncodeError> {
        Ok(value.into())
    }

    fn serialize_char(self, value: char) -> Result<Value, EncodeError> {
        Ok(Value::Str(value.into()))
    }

    fn serialize_str(self, text: &str) -> Result<Value, EncodeError> {
        Ok(text.into())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<Value, EncodeError> {
        Ok(Value::Bytes(bytes.to_owned()))
    }

    fn serialize_none(self) -> Result<Value, EncodeError> {
        Ok(Value::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, EncodeError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Value, EncodeError> {
        Ok(Value::Null)
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<Value, EncodeError> {
        Ok(Value::Null)
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<Value, EncodeError> {
        Ok(variant.into())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Value, EncodeError> {
        if token::is_token(name) {
            return newtype_content(value, |content| special_value(name, content));
        }
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, EncodeError> {
        let content = value.serialize(self)?;
        Ok(Map::from_iter([(variant, content)]).into())
    }

    fn serialize_seq(self, _len: Option<usize>) -> Result<ValueCompound, EncodeError> {
        Ok(ValueCompound::default())
    }

    fn serialize_tuple(self, _len: usize) -> Result<ValueCompound, EncodeError> {
        Ok(ValueCompound::default())
    }

    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        _len: usize,
    ) -> Result<ValueCompound, EncodeError> {
        Ok(ValueCompound::default())
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<ValueCompound, EncodeError> {
        Ok(ValueCompound::of_variant(variant))
    }

    fn serialize_map(self, _len: Option<usize>) -> Result<ValueCompound, EncodeError> {
        Ok(ValueCompound::default())
    }

    fn serialize_struct(
        self,
        _name: &'static str,
        _len: usize,
    ) -> Result<ValueCompound, EncodeError> {
        Ok(ValueCompound::default())
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<ValueCompound, EncodeError> {
        Ok(ValueCompound::of_variant(variant))
    }
}

/// Converts a special value. `name` is the token of its newtype, see [`token`].
fn special_value(name: &'static str, content: NewtypeContent<'_>) -> Result<Value, EncodeError> {
    let raw = match (name, content) {
        (token::RAW_JSON, NewtypeContent::Text(text)) => Raw::json(text),
        (token::RAW_MSGPACK, NewtypeContent::Bytes(bytes)) => Raw::msgpack(bytes),
        (token::BIG_INT, NewtypeContent::Text(digits)) => {
            return Ok(BigInt::from_digits(digits.to_owned()).into());
        }
        (_, NewtypeContent::Text(text)) => {
            return Ok(match ExtendedKind::from_token(name) {
                Some(kind) => Extended::new(kind, text).into(),
                None => text.into(),
            });
        }
        (_, NewtypeContent::Bytes(bytes)) => return Ok(Value::Bytes(bytes.to_owned())),
    };
    crate::codec::text::decoded(&raw)
}

/// An array or map that is being built.
#[derive(Default)]
pub(super) struct ValueCompound {
    variant: Option<&'static str>,
    elements: Vec<Value>,
    entries: Vec<(Value, Value)>,
    key: Option<Value>,
}

impl ValueCompound {
    fn of_variant(variant: &'static str) -> Self {
        Self {
            variant: Some(variant),
            ..Self::default()
        }
    }

    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        self.elements.push(value.serialize(ValueSerializer)?);
        Ok(())
    }

    fn field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        let value = value.serialize(ValueSerializer)?;
        self.entries.push((name.into(), value));
        Ok(())
    }

    fn array(self) -> Value {
        in_variant(self.variant, Value::Array(self.elements))
    }

    fn map(self) -> Value {
        in_variant(self.variant, Map::from_entries(self.entries).into())
    }
}

fn in_variant(variant: Option<&'static str>, content: Value) -> Value {
    match variant {
        Some(variant) => Map::from_iter([(variant, content)]).into(),
        None => content,
    }
}

impl SerializeMap for ValueCompound {
    type Ok = Value;
    type Error = EncodeError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), EncodeError> {
        let key = key.serialize(ValueSerializer)?;
        if matches!(key, Value::Array(_) | Value::Map(_)) {
            return Err(EncodeError::new(
                "a key of a map must not be an array or a map",
            ));
        }
        self.key = Some(key);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        let value = value.serialize(ValueSerializer)?;
        let key = self.key.take().unwrap_or_default();
        self.entries.push((key, value));
        Ok(())
    }

    fn end(self) -> Result<Value, EncodeError> {
        Ok(self.map())
    }
}

macro_rules! elements {
    ($($trait:ident $method:ident),+) => {$(
        impl $trait for ValueCompound {
            type Ok = Value;
            type Error = EncodeError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
                self.element(value)
            }

            fn end(self) -> Result<Value, EncodeError> {
                Ok(self.array())
            }
        }
    )+};
}

elements! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
}

macro_rules! fields {
    ($($trait:ident),+) => {$(
        impl $trait for ValueCompound {
            type Ok = Value;
            type Error = EncodeError;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), EncodeError> {
                self.field(name, value)
            }

            fn end(self) -> Result<Value, EncodeError> {
                Ok(self.map())
            }
        }
    )+};
}

fields! { SerializeStruct, SerializeStructVariant }
