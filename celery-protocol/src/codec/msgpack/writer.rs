//! The serde serializer of msgpack.

use rmp::encode;
use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use crate::codec::text::{NewtypeContent, decoded, newtype_content};
use crate::codec::token;
use crate::error::EncodeError;
use crate::raw::Raw;

/// Serializer that appends msgpack to a buffer.
pub(super) struct MsgPackWriter<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> MsgPackWriter<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Writes a special value. `name` is the token of its newtype, see
    /// [`token`].
    fn special(
        &mut self,
        name: &'static str,
        content: NewtypeContent<'_>,
    ) -> Result<(), EncodeError> {
        match (name, content) {
            (token::RAW_MSGPACK, NewtypeContent::Bytes(bytes)) => {
                self.out.extend_from_slice(bytes);
                Ok(())
            }
            (token::RAW_JSON, NewtypeContent::Text(text)) => {
                decoded(&Raw::json(text))?.serialize(self)
            }
            (token::BIG_INT, NewtypeContent::Text(digits)) => {
                match (digits.parse(), digits.parse()) {
                    (Ok(value), _) => self.serialize_i64(value),
                    (_, Ok(value)) => self.serialize_u64(value),
                    _ => Err(integer_too_large()),
                }
            }
            (_, NewtypeContent::Text(text)) => self.serialize_str(text),
            (_, NewtypeContent::Bytes(bytes)) => self.serialize_bytes(bytes),
        }
    }

    /// Begins a map of one entry whose key is the name of a variant.
    fn variant(&mut self, variant: &'static str) -> Result<(), EncodeError> {
        check_written(encode::write_map_len(self.out, 1))?;
        self.serialize_str(variant)
    }

    fn array(&mut self, length: Option<usize>) -> Result<MsgPackCompound<'_, 'o>, EncodeError> {
        let declared = match length {
            Some(length) => {
                check_written(encode::write_array_len(self.out, length_u32(length)?))?;
                DeclaredLength::Known(length)
            }
            None => self.reserve_length(ARRAY_32),
        };
        Ok(MsgPackCompound::new(self, declared))
    }

    fn map(&mut self, length: Option<usize>) -> Result<MsgPackCompound<'_, 'o>, EncodeError> {
        let declared = match length {
            Some(length) => {
                check_written(encode::write_map_len(self.out, length_u32(length)?))?;
                DeclaredLength::Known(length)
            }
            None => self.reserve_length(MAP_32),
        };
        Ok(MsgPackCompound::new(self, declared))
    }

    /// Reserves bytes for a length that is known only at the end of the
    /// container.
    fn reserve_length(&mut self, marker: u8) -> DeclaredLength {
        self.out.extend_from_slice(&[marker, 0, 0, 0, 0]);
        DeclaredLength::Reserved(self.out.len() - 4)
    }
}

const ARRAY_32: u8 = 0xdd;
const MAP_32: u8 = 0xdf;

/// Converts the error of `rmp`. Writing to a vector never returns one.
fn check_written<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<(), EncodeError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(EncodeError::new(error.to_string())),
    }
}

fn length_u32(length: usize) -> Result<u32, EncodeError> {
    u32::try_from(length)
        .map_err(|_| EncodeError::new("the length is above the msgpack limit of 4,294,967,295"))
}

#[cold]
fn integer_too_large() -> EncodeError {
    EncodeError::new("integer beyond 64 bits cannot be written as msgpack")
}

macro_rules! scalars {
    ($($method:ident($type:ty) = $write:ident($wide:ty);)+) => {$(
        fn $method(self, value: $type) -> Result<(), EncodeError> {
            check_written(encode::$write(self.out, <$wide>::from(value)))
        }
    )+};
}

impl<'w, 'o> Serializer for &'w mut MsgPackWriter<'o> {
    type Ok = ();
    type Error = EncodeError;
    type SerializeSeq = MsgPackCompound<'w, 'o>;
    type SerializeTuple = MsgPackCompound<'w, 'o>;
    type SerializeTupleStruct = MsgPackCompound<'w, 'o>;
    type SerializeTupleVariant = MsgPackCompound<'w, 'o>;
    type SerializeMap = MsgPackCompound<'w, 'o>;
    type SerializeStruct = MsgPackCompound<'w, 'o>;
    type SerializeStructVariant = MsgPackCompound<'w, 'o>;

    scalars! {
        serialize_bool(bool) = write_bool(bool);
        serialize_i8(i8) = write_sint(i64);
        serialize_i16(i16) = write_sint(i64);
        serialize_i32(i32) = write_sint(i64);
        serialize_i64(i64) = write_sint(i64);
        serialize_u8(u8) = write_uint(u64);
        serialize_u16(u16) = write_uint(u64);
        serialize_u32(u32) = write_uint(u64);
        serialize_u64(u64) = write_uint(u64);
        serialize_f32(f32) = write_f32(f32);
        serialize_f64(f64) = write_f64(f64);
    }

    fn serialize_i128(self, value: i128) -> Result<(), EncodeError> {
        match (i64::try_from(value), u64::try_from(value)) {
            (Ok(value), _) => self.serialize_i64(value),
            (_, Ok(value)) => self.serialize_u64(value),
            _ => Err(integer_too_large()),
        }
    }

    fn serialize_u128(self, value: u128) -> Result<(), EncodeError> {
        let value = u64::try_from(value).map_err(|_| integer_too_large())?;
        self.serialize_u64(value)
    }

    fn serialize_char(self, value: char) -> Result<(), EncodeError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, text: &str) -> Result<(), EncodeError> {
        length_u32(text.len())?;
        check_written(encode::write_str(self.out, text))
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), EncodeError> {
        length_u32(bytes.len())?;
        check_written(encode::write_bin(self.out, bytes))
    }

    fn serialize_none(self) -> Result<(), EncodeError> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), EncodeError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), EncodeError> {
        check_written(encode::write_nil(self.out))
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), EncodeError> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<(), EncodeError> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        if token::is_token(name) {
            return newtype_content(value, |content| self.special(name, content));
        }
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        self.variant(variant)?;
        value.serialize(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<MsgPackCompound<'w, 'o>, EncodeError> {
        self.array(length)
    }

    fn serialize_tuple(self, length: usize) -> Result<MsgPackCompound<'w, 'o>, EncodeError> {
        self.array(Some(length))
    }

    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        length: usize,
    ) -> Result<MsgPackCompound<'w, 'o>, EncodeError> {
        self.array(Some(length))
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<MsgPackCompound<'w, 'o>, EncodeError> {
        self.variant(variant)?;
        self.array(Some(length))
    }

    fn serialize_map(self, length: Option<usize>) -> Result<MsgPackCompound<'w, 'o>, EncodeError> {
        self.map(length)
    }

    fn serialize_struct(
        self,
        _name: &'static str,
        length: usize,
    ) -> Result<MsgPackCompound<'w, 'o>, EncodeError> {
        self.map(Some(length))
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<MsgPackCompound<'w, 'o>, EncodeError> {
        self.variant(variant)?;
        self.map(Some(length))
    }
}

/// An array or map that is being written.
pub(super) struct MsgPackCompound<'w, 'o> {
    writer: &'w mut MsgPackWriter<'o>,
    declared: DeclaredLength,
    count: usize,
}

/// The number of elements or entries that the marker of the container declares.
enum DeclaredLength {
    Known(usize),
    /// The position at which the number is written at the end of the container.
    Reserved(usize),
}

impl<'w, 'o> MsgPackCompound<'w, 'o> {
    fn new(writer: &'w mut MsgPackWriter<'o>, declared: DeclaredLength) -> Self {
        Self {
            writer,
            declared,
            count: 0,
        }
    }

    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        self.count += 1;
        value.serialize(&mut *self.writer)
    }

    fn field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        self.item(name)?;
        value.serialize(&mut *self.writer)
    }

    fn close(self) -> Result<(), EncodeError> {
        match self.declared {
            DeclaredLength::Known(length) if length == self.count => Ok(()),
            DeclaredLength::Known(length) => Err(EncodeError::new(format!(
                "the declared length is {length}, but {} elements or entries were written",
                self.count
            ))),
            DeclaredLength::Reserved(position) => {
                let count = length_u32(self.count)?.to_be_bytes();
                self.writer.out[position..position + 4].copy_from_slice(&count);
                Ok(())
            }
        }
    }
}

impl SerializeMap for MsgPackCompound<'_, '_> {
    type Ok = ();
    type Error = EncodeError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), EncodeError> {
        let start = self.writer.out.len();
        self.item(key)?;
        match self.writer.out.get(start) {
            // These are the markers of maps and arrays.
            Some(0x80..=0x9f | 0xdc..=0xdf) => Err(EncodeError::new(
                "a key of a map must not be an array or a map",
            )),
            _ => Ok(()),
        }
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        value.serialize(&mut *self.writer)
    }

    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

macro_rules! elements {
    ($($trait:ident $method:ident),+) => {$(
        impl $trait for MsgPackCompound<'_, '_> {
            type Ok = ();
            type Error = EncodeError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
                self.item(value)
            }

            fn end(self) -> Result<(), EncodeError> {
                self.close()
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
        impl $trait for MsgPackCompound<'_, '_> {
            type Ok = ();
            type Error = EncodeError;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), EncodeError> {
                self.field(name, value)
            }

            fn end(self) -> Result<(), EncodeError> {
                self.close()
            }
        }
    )+};
}

fields! { SerializeStruct, SerializeStructVariant }
