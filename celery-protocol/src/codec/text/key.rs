//! Serialization of map keys to text.

use serde::ser::{Impossible, Serialize, Serializer};

use super::{Dialect, TextWriter};
use crate::error::EncodeError;

/// Writes a map key. A number, boolean or null is quoted if the dialect has
/// only texts as keys, as in Python's `json`.
pub(super) struct KeyWriter<'w, 'o, D> {
    writer: &'w mut TextWriter<'o, D>,
}

impl<'w, 'o, D: Dialect> KeyWriter<'w, 'o, D> {
    #[inline]
    pub(super) fn new(writer: &'w mut TextWriter<'o, D>) -> Self {
        Self { writer }
    }

    fn quoted(
        self,
        write: impl FnOnce(&mut TextWriter<'o, D>) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        if !D::TEXT_KEYS {
            return write(self.writer);
        }
        self.writer.out.push(b'"');
        write(self.writer)?;
        self.writer.put(b"\"")
    }
}

#[cold]
fn unsupported_key() -> EncodeError {
    EncodeError::new("a key of a map must be a string, a number, a boolean or null")
}

macro_rules! quote {
    ($($method:ident($($arg:ident: $type:ty)?);)+) => {$(
        fn $method(self, $($arg: $type)?) -> Result<(), EncodeError> {
            self.quoted(|writer| writer.$method($($arg)?))
        }
    )+};
}

macro_rules! refuse {
    ($($method:ident($($type:ty),*) -> $ok:ty;)+) => {$(
        fn $method(self, $(_: $type),*) -> Result<$ok, EncodeError> {
            Err(unsupported_key())
        }
    )+};
}

impl<D: Dialect> Serializer for KeyWriter<'_, '_, D> {
    type Ok = ();
    type Error = EncodeError;
    type SerializeSeq = Impossible<(), EncodeError>;
    type SerializeTuple = Impossible<(), EncodeError>;
    type SerializeTupleStruct = Impossible<(), EncodeError>;
    type SerializeTupleVariant = Impossible<(), EncodeError>;
    type SerializeMap = Impossible<(), EncodeError>;
    type SerializeStruct = Impossible<(), EncodeError>;
    type SerializeStructVariant = Impossible<(), EncodeError>;

    #[inline]
    fn serialize_str(self, text: &str) -> Result<(), EncodeError> {
        self.writer.serialize_str(text)
    }

    fn serialize_char(self, value: char) -> Result<(), EncodeError> {
        self.writer.serialize_char(value)
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), EncodeError> {
        // Python's `json` also rejects bytes as keys.
        if D::TEXT_KEYS {
            return Err(unsupported_key());
        }
        self.writer.serialize_bytes(bytes)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), EncodeError> {
        value.serialize(self)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), EncodeError> {
        self.writer.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        use crate::codec::token;

        if !token::is_token(name) {
            return value.serialize(self);
        }
        super::newtype_content(value, |content| match (name, content) {
            (token::BIG_INT, super::NewtypeContent::Text(_)) => {
                self.quoted(|writer| writer.special(name, content))
            }
            (token::RAW_JSON | token::RAW_MSGPACK, _) => Err(unsupported_key()),
            (_, super::NewtypeContent::Text(text)) => self.serialize_str(text),
            (_, super::NewtypeContent::Bytes(bytes)) => self.serialize_bytes(bytes),
        })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), EncodeError> {
        Err(unsupported_key())
    }

    quote! {
        serialize_bool(value: bool);
        serialize_i8(value: i8);
        serialize_i16(value: i16);
        serialize_i32(value: i32);
        serialize_i64(value: i64);
        serialize_i128(value: i128);
        serialize_u8(value: u8);
        serialize_u16(value: u16);
        serialize_u32(value: u32);
        serialize_u64(value: u64);
        serialize_u128(value: u128);
        serialize_f32(value: f32);
        serialize_f64(value: f64);
        serialize_none();
        serialize_unit();
    }

    refuse! {
        serialize_unit_struct(&'static str) -> ();
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
