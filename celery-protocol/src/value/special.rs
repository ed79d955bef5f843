//! Deserialization of special values, see [`tag`].

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{BorrowedStrDeserializer, StringDeserializer, U64Deserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, VariantAccess, Visitor,
};

use super::ExtendedKind;
use crate::codec::token::tag;
use crate::error::DecodeError;

/// The variant index or name that a reader passes to `visit_enum`.
pub(crate) enum SpecialTag {
    /// The index of a special value from a reader of this crate, see [`tag`].
    Ours(u64),
    /// A variant name from another format.
    Foreign,
}

impl<'de> Deserialize<'de> for SpecialTag {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TagVisitor;

        impl Visitor<'_> for TagVisitor {
            type Value = SpecialTag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the tag of a value")
            }

            #[inline]
            fn visit_u64<E>(self, tag: u64) -> Result<SpecialTag, E> {
                Ok(SpecialTag::Ours(tag))
            }

            fn visit_str<E>(self, _: &str) -> Result<SpecialTag, E> {
                Ok(SpecialTag::Foreign)
            }

            fn visit_bytes<E>(self, _: &[u8]) -> Result<SpecialTag, E> {
                Ok(SpecialTag::Foreign)
            }
        }

        deserializer.deserialize_identifier(TagVisitor)
    }
}

/// A text with one of the indices of [`tag`], for `visit_enum`.
pub(crate) struct SpecialAccess<'de, E> {
    tag: u64,
    text: Cow<'de, str>,
    error: PhantomData<E>,
}

impl<'de, E> SpecialAccess<'de, E> {
    #[inline]
    pub(crate) fn new(tag: u64, text: impl Into<Cow<'de, str>>) -> Self {
        Self {
            tag,
            text: text.into(),
            error: PhantomData,
        }
    }

    pub(crate) fn extended(kind: ExtendedKind, text: impl Into<Cow<'de, str>>) -> Self {
        Self::new(tag::EXTENDED + kind.index(), text)
    }
}

impl<'de, E: de::Error> EnumAccess<'de> for SpecialAccess<'de, E> {
    type Error = E;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), E> {
        let tag = seed.deserialize(U64Deserializer::new(self.tag))?;
        Ok((tag, self))
    }
}

impl<'de, E: de::Error> VariantAccess<'de> for SpecialAccess<'de, E> {
    type Error = E;

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, E> {
        match self.text {
            Cow::Borrowed(text) => seed.deserialize(BorrowedStrDeserializer::new(text)),
            Cow::Owned(text) => seed.deserialize(StringDeserializer::new(text)),
        }
    }

    fn unit_variant(self) -> Result<(), E> {
        Err(E::custom("a tagged value is not a unit variant"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, E> {
        Err(E::custom("a tagged value is not a tuple variant"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, E> {
        Err(E::custom("a tagged value is not a struct variant"))
    }
}

/// Passes an integer beyond 64 bits to the visitor methods for 128 bits.
pub(crate) fn visit_big<'de, V: Visitor<'de>>(
    digits: &str,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    if let Ok(value) = digits.parse() {
        return visitor.visit_i128(value);
    }
    match digits.parse() {
        Ok(value) => visitor.visit_u128(value),
        Err(_) => Err(out_of_range(digits, "128 bits")),
    }
}

/// Returns the error for an integer outside the range of the type `limit`.
#[cold]
pub(crate) fn out_of_range(digits: &str, limit: &str) -> DecodeError {
    // A malicious number can have megabytes of digits.
    let shown = digits
        .get(..64)
        .map_or_else(|| digits.to_owned(), |head| format!("{head}..."));
    DecodeError::new(format!("integer {shown} is outside the range of {limit}"))
}
