//! Serialization of arrays and maps to text.

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};

use super::key::KeyWriter;
use super::{Dialect, TextWriter};
use crate::error::EncodeError;

/// An array or map that is being written.
pub(crate) struct TextCompound<'w, 'o, D: Dialect> {
    writer: &'w mut TextWriter<'o, D>,
    close: &'static [u8],
    first: bool,
    /// Whether the dialect omits the elements of this container.
    is_omitted: bool,
}

impl<'w, 'o, D: Dialect> TextCompound<'w, 'o, D> {
    #[inline]
    pub(super) fn new(writer: &'w mut TextWriter<'o, D>, close: &'static [u8]) -> Self {
        let is_omitted = !writer.dialect.enter();
        Self {
            writer,
            close,
            first: true,
            is_omitted,
        }
    }

    /// Begins an element or entry. Returns `false` if it is omitted.
    #[inline]
    fn begin(&mut self) -> bool {
        if self.is_omitted {
            // Only a container with elements is abbreviated; an empty one is
            // written as it is.
            if self.first {
                self.first = false;
                self.writer.out.extend_from_slice(b"...");
            }
            return false;
        }
        if self.writer.dialect.is_full(self.writer.out) {
            return false;
        }
        if !self.first {
            self.writer.out.extend_from_slice(D::COMMA);
        }
        self.first = false;
        true
    }

    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        if self.begin() {
            value.serialize(&mut *self.writer)?;
        }
        Ok(())
    }

    #[inline]
    fn field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), EncodeError> {
        if self.begin() {
            self.writer.dialect.string(self.writer.out, name);
            self.writer.out.extend_from_slice(D::COLON);
            value.serialize(&mut *self.writer)?;
        }
        Ok(())
    }

    #[inline]
    fn close(self) -> Result<(), EncodeError> {
        self.writer.dialect.leave();
        self.writer.put(self.close)
    }
}

impl<D: Dialect> SerializeMap for TextCompound<'_, '_, D> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), EncodeError> {
        if self.begin() {
            let start = self.writer.out.len();
            key.serialize(KeyWriter::new(self.writer))?;
            self.writer.dialect.end_key(self.writer.out, start);
        }
        Ok(())
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
        if self.is_omitted || self.writer.dialect.is_full(self.writer.out) {
            return Ok(());
        }
        self.writer.out.extend_from_slice(D::COLON);
        value.serialize(&mut *self.writer)
    }

    #[inline]
    fn end(self) -> Result<(), EncodeError> {
        self.close()
    }
}

macro_rules! elements {
    ($($trait:ident $method:ident),+) => {$(
        impl<D: Dialect> $trait for TextCompound<'_, '_, D> {
            type Ok = ();
            type Error = EncodeError;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeError> {
                self.element(value)
            }

            #[inline]
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
        impl<D: Dialect> $trait for TextCompound<'_, '_, D> {
            type Ok = ();
            type Error = EncodeError;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), EncodeError> {
                self.field(name, value)
            }

            #[inline]
            fn end(self) -> Result<(), EncodeError> {
                self.close()
            }
        }
    )+};
}

fields! { SerializeStruct, SerializeStructVariant }
