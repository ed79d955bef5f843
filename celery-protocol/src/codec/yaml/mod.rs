//! YAML as PyYAML's `safe_dump` writes it and `safe_load` reads it.
//!
//! The writer uses the flow style of the text writer and needs no library. It
//! is nevertheless part of the feature `yaml`, so that reading and writing are
//! available together.

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

/// Decodes bytes that contain exactly one document.
#[cfg(feature = "yaml")]
pub(crate) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, DecodeError> {
    use serde::de::IntoDeserializer as _;

    T::deserialize(reader::read(bytes)?.into_deserializer())
}

/// Decodes bytes that contain exactly one document.
#[cfg(not(feature = "yaml"))]
pub(crate) fn read<'de, T: Deserialize<'de>>(_bytes: &'de [u8]) -> Result<T, DecodeError> {
    Err(super::decode_feature_off("the serializer yaml", "yaml"))
}
