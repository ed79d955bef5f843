//! Serialization of special values, see [`token`].

use serde::ser::{Impossible, Serialize, Serializer};

use super::{Dialect, TextWriter};
use crate::codec::token;
use crate::error::EncodeError;
use crate::raw::Raw;
use crate::value::ExtendedKind;

/// The content of a newtype struct whose name is a [`token`].
#[derive(Clone, Copy)]
pub(crate) enum NewtypeContent<'c> {
    Text(&'c str),
    Bytes(&'c [u8]),
}

impl<D: Dialect> TextWriter<'_, D> {
    /// Writes a special value. `name` is the token of its newtype.
    pub(super) fn special(
        &mut self,
        name: &'static str,
        content: NewtypeContent<'_>,
    ) -> Result<(), EncodeError> {
        match (name, content) {
            (token::RAW_JSON, NewtypeContent::Text(text)) => {
                if self.dialect.splice_json(self.out, text) {
                    return Ok(());
                }
                self.decoded(&Raw::json(text))
            }
            (token::RAW_MSGPACK, NewtypeContent::Bytes(bytes)) => {
                self.decoded(&Raw::msgpack(bytes))
            }
            (token::BIG_INT, NewtypeContent::Text(digits)) => self.put(digits.as_bytes()),
            (_, NewtypeContent::Text(text)) => {
                match ExtendedKind::from_token(name) {
                    Some(kind) => self.dialect.extended(self.out, kind, text),
                    None => self.dialect.string(self.out, text),
                }
                Ok(())
            }
            (_, NewtypeContent::Bytes(bytes)) => self.serialize_bytes(bytes),
        }
    }

    fn decoded(&mut self, raw: &Raw<'_>) -> Result<(), EncodeError> {
        decoded(raw)?.serialize(self)
    }
}

/// Decodes a raw value, to write it in another format.
pub(crate) fn decoded(raw: &Raw<'_>) -> Result<crate::Value, EncodeError> {
    raw.to_value()
        .map_err(|error| EncodeError::new(format!("cannot decode a raw value: {error}")))
}

/// Calls `write` with the text or bytes that `value` serializes to.
pub(crate) fn newtype_content<T, O, F>(value: &T, write: F) -> Result<O, EncodeError>
where
    T: Serialize + ?Sized,
    F: FnOnce(NewtypeContent<'_>) -> Result<O, EncodeError>,
{
    value.serialize(ContentSerializer(write))
}

/// Serializer that accepts only a text or bytes, and passes them to a function.
struct ContentSerializer<F>(F);

macro_rules! refuse {
    ($($method:ident($($type:ty),*) -> $ok:ty;)+) => {$(
        fn $method(self, $(_: $type),*) -> Result<$ok, EncodeError> {
            Err(unexpected_content())
        }
    )+};
}

#[cold]
fn unexpected_content() -> EncodeError {
    EncodeError::new("the content of a newtype with a reserved name must be a text or bytes")
}

impl<O, F: FnOnce(NewtypeContent<'_>) -> Result<O, EncodeError>> Serializer
    for ContentSerializer<F>
{
    type Ok = O;
    type Error = EncodeError;
    type SerializeSeq = Impossible<O, EncodeError>;
    type SerializeTuple = Impossible<O, EncodeError>;
    type SerializeTupleStruct = Impossible<O, EncodeError>;
    type SerializeTupleVariant = Impossible<O, EncodeError>;
    type SerializeMap = Impossible<O, EncodeError>;
    type SerializeStruct = Impossible<O, EncodeError>;
    type SerializeStructVariant = Impossible<O, EncodeError>;

    #[inline]
    fn serialize_str(self, text: &str) -> Result<O, EncodeError> {
        (self.0)(NewtypeContent::Text(text))
    }

    #[inline]
    fn serialize_bytes(self, bytes: &[u8]) -> Result<O, EncodeError> {
        (self.0)(NewtypeContent::Bytes(bytes))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<O, EncodeError> {
        Err(unexpected_content())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: &T,
    ) -> Result<O, EncodeError> {
        Err(unexpected_content())
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<O, EncodeError> {
        Err(unexpected_content())
    }

    refuse! {
        serialize_bool(bool) -> O;
        serialize_i8(i8) -> O;
        serialize_i16(i16) -> O;
        serialize_i32(i32) -> O;
        serialize_i64(i64) -> O;
        serialize_u8(u8) -> O;
        serialize_u16(u16) -> O;
        serialize_u32(u32) -> O;
        serialize_u64(u64) -> O;
        serialize_f32(f32) -> O;
        serialize_f64(f64) -> O;
        serialize_char(char) -> O;
        serialize_none() -> O;
        serialize_unit() -> O;
        serialize_unit_struct(&'static str) -> O;
        serialize_unit_variant(&'static str, u32, &'static str) -> O;
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize)
            -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize)
            -> Self::SerializeStructVariant;
    }
}
