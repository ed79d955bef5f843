//! YAML as PyYAML's `safe_dump` writes it and `safe_load` reads it.
//!
//! Writing is the flow style of the text writer, which needs no library, but is
//! behind the feature all the same: who writes YAML wants to read it.

#[cfg(feature = "yaml")]
mod reader;

use serde::{Deserialize, Serialize};

use crate::error::{DecodeError, EncodeError};

/// Writes a value at the end of `out`.
#[cfg(feature = "yaml")]
pub(crate) fn write<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    value: &T,
) -> Result<(), EncodeError> {
    use super::text::{TextWriter, yaml::Yaml};

    value.serialize(&mut TextWriter::new(out, Yaml))
}

/// Writes a value at the end of `out`.
#[cfg(not(feature = "yaml"))]
pub(crate) fn write<T: Serialize + ?Sized>(
    _out: &mut Vec<u8>,
    _value: &T,
) -> Result<(), EncodeError> {
    Err(super::encode_feature_off("the serializer yaml", "yaml"))
}

/// Reads the one document that the bytes are.
#[cfg(feature = "yaml")]
pub(crate) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, DecodeError> {
    use serde::de::IntoDeserializer as _;

    T::deserialize(reader::read(bytes)?.into_deserializer())
}

/// Reads the one document that the bytes are.
#[cfg(not(feature = "yaml"))]
pub(crate) fn read<'de, T: Deserialize<'de>>(_bytes: &'de [u8]) -> Result<T, DecodeError> {
    Err(super::decode_feature_off("the serializer yaml", "yaml"))
}
