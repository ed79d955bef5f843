//! Serialization to text: JSON, the flow style of YAML and Python's `repr`
//! share one grammar and differ in their [`Dialect`].

mod compound;
pub(crate) mod escape;
pub(crate) mod json;
mod key;
mod special;
#[cfg(feature = "yaml")]
pub(crate) mod yaml;

use serde::{Serialize, Serializer};

use self::compound::TextCompound;
pub(crate) use self::special::{NewtypeContent, decoded, newtype_content};
use crate::codec::token;
use crate::error::EncodeError;
use crate::value::ExtendedKind;

/// The differences between the text formats.
pub(crate) trait Dialect {
    /// The separator between two elements or entries.
    const COMMA: &'static [u8];
    /// The separator between a key and its value.
    const COLON: &'static [u8];
    /// The brackets of a tuple.
    const TUPLE: [u8; 2] = *b"[]";
    /// The literal for `None`.
    const NULL: &'static [u8] = b"null";
    /// The literal for `True`.
    const TRUE: &'static [u8] = b"true";
    /// The literal for `False`.
    const FALSE: &'static [u8] = b"false";
    /// Whether numbers, booleans and null are written as texts if they are map
    /// keys.
    const TEXT_KEYS: bool;

    /// Writes a finite float. `digits` are its shortest digits as formatted by
    /// `ryu`.
    fn float(&self, out: &mut Vec<u8>, digits: &str);

    /// Writes NaN or positive infinity.
    fn non_finite_float(&self, out: &mut Vec<u8>, value: f64);

    fn string(&self, out: &mut Vec<u8>, text: &str);

    fn bytes(&self, out: &mut Vec<u8>, bytes: &[u8]);

    fn extended(&self, out: &mut Vec<u8>, kind: ExtendedKind, text: &str);

    /// Copies a raw JSON text unchanged. Returns `false` if the dialect cannot,
    /// so that the text must be decoded.
    fn splice_json(&self, _out: &mut Vec<u8>, _text: &str) -> bool {
        false
    }

    /// Adjusts a key that was written from `start` on.
    #[inline]
    fn end_key(&self, _out: &mut Vec<u8>, _start: usize) {}

    /// Enters a container. Returns `false` if its elements are to be omitted.
    #[inline]
    fn enter(&mut self) -> bool {
        true
    }

    #[inline]
    fn leave(&mut self) {}

    /// Returns whether the output has reached its maximum length, so that more
    /// output would be cut off.
    #[inline]
    fn is_full(&self, _out: &[u8]) -> bool {
        false
    }
}

/// Serializer that appends text to a buffer.
pub(crate) struct TextWriter<'o, D> {
    out: &'o mut Vec<u8>,
    dialect: D,
}

impl<'o, D: Dialect> TextWriter<'o, D> {
    #[inline]
    pub(crate) fn new(out: &'o mut Vec<u8>, dialect: D) -> Self {
        Self { out, dialect }
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn integer<I: itoa::Integer>(&mut self, value: I) -> Result<(), EncodeError> {
        self.put(itoa::Buffer::new().format(value).as_bytes())
    }

    fn float<F: ryu::Float + Into<f64>>(&mut self, value: F) -> Result<(), EncodeError> {
        let wide: f64 = value.into();
        if wide.is_finite() {
            let mut buffer = ryu::Buffer::new();
            self.dialect.float(self.out, buffer.format_finite(value));
        } else {
            if wide == f64::NEG_INFINITY {
                self.out.push(b'-');
            }
            self.dialect.non_finite_float(self.out, wide.abs());
        }
        Ok(())
    }

    #[inline]
    fn open(&mut self, open: u8, close: &'static [u8]) -> TextCompound<'_, 'o, D> {
        self.out.push(open);
        TextCompound::new(self, close)
    }

    /// Writes `{"Variant": ` before the content of a variant.
    fn open_variant(&mut self, variant: &str) {
        self.out.push(b'{');
        self.dialect.string(self.out, variant);
        self.out.extend_from_slice(D::COLON);
    }
}

impl<'w, 'o, D: Dialect> Serializer for &'w mut TextWriter<'o, D> {
    type Ok = ();
    type Error = EncodeError;
    type SerializeSeq = TextCompound<'w, 'o, D>;
    type SerializeTuple = TextCompound<'w, 'o, D>;
    type SerializeTupleStruct = TextCompound<'w, 'o, D>;
    type SerializeTupleVariant = TextCompound<'w, 'o, D>;
    type SerializeMap = TextCompound<'w, 'o, D>;
    type SerializeStruct = TextCompound<'w, 'o, D>;
    type SerializeStructVariant = TextCompound<'w, 'o, D>;

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), EncodeError> {
        self.put(if value { D::TRUE } else { D::FALSE })
    }

    #[inline]
    fn serialize_i8(self, value: i8) -> Result<(), EncodeError> {
        self.integer(value)
    }

    #[inline]
    fn serialize_i16(self, value: i16) -> Result<(), EncodeError> {
        self.integer(value)
    }

    #[inline]
    fn serialize_i32(self, value: i32) -> Result<(), EncodeError> {
        self.integer(value)
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result<(), EncodeError> {
        self.integer(value)
    }

    fn serialize_i128(self, value: i128) -> Result<(), EncodeError> {
        self.integer(value)
    }

    #[inline]
    fn serialize_u8(self, value: u8) -> Result<(), EncodeError> {
        self.integer(value)
    }

    #[inline]
    fn serialize_u16(self, value: u16) -> Result<(), EncodeError> {
        self.integer(value)
    }

    #[inline]
    fn serialize_u32(self, value: u32) -> Result<(), EncodeError> {
        self.integer(value)
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result<(), EncodeError> {
        self.integer(value)
    }

    fn serialize_u128(self, value: u128) -> Result<(), EncodeError> {
        self.integer(value)
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<(), EncodeError> {
        self.float(value)
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<(), EncodeError> {
        self.float(value)
    }

    fn serialize_char(self, value: char) -> Result<(), EncodeError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    #[inline]
    fn serialize_str(self, text: &str) -> Result<(), EncodeError> {
        self.dialect.string(self.out, text);
        Ok(())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.dialect.bytes(self.out, bytes);
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), EncodeError> {
        self.put(D::NULL)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), EncodeError> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), EncodeError> {
        self.put(D::NULL)
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), EncodeError> {
        self.put(D::NULL)
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<(), EncodeError> {
        self.serialize_str(variant)
    }

    #[inline]
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
        self.open_variant(variant);
        value.serialize(&mut *self)?;
        self.put(b"}")
    }

    #[inline]
    fn serialize_seq(self, _len: Option<usize>) -> Result<TextCompound<'w, 'o, D>, EncodeError> {
        Ok(self.open(b'[', b"]"))
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<TextCompound<'w, 'o, D>, EncodeError> {
        let [open, close] = D::TUPLE;
        let close: &[u8] = match (close, len) {
            // Python's tuple of one element.
            (b')', 1) => b",)",
            (b')', _) => b")",
            _ => b"]",
        };
        Ok(self.open(open, close))
    }

    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        len: usize,
    ) -> Result<TextCompound<'w, 'o, D>, EncodeError> {
        self.serialize_tuple(len)
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<TextCompound<'w, 'o, D>, EncodeError> {
        self.open_variant(variant);
        Ok(self.open(b'[', b"]}"))
    }

    #[inline]
    fn serialize_map(self, _len: Option<usize>) -> Result<TextCompound<'w, 'o, D>, EncodeError> {
        Ok(self.open(b'{', b"}"))
    }

    #[inline]
    fn serialize_struct(
        self,
        _name: &'static str,
        _len: usize,
    ) -> Result<TextCompound<'w, 'o, D>, EncodeError> {
        Ok(self.open(b'{', b"}"))
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<TextCompound<'w, 'o, D>, EncodeError> {
        self.open_variant(variant);
        Ok(self.open(b'{', b"}}"))
    }
}

/// Appends formatted text to a buffer.
pub(crate) fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    use std::io::Write as _;

    // Writing to a vector cannot fail.
    let _ = out.write_fmt(text);
}
