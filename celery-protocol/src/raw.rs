//! Values that are carried without being decoded.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    Deserialize, Deserializer, EnumAccess, Error as _, IntoDeserializer as _, VariantAccess,
    Visitor,
};
use serde::{Serialize, Serializer as SerdeSerializer};
use smallvec::SmallVec;

use crate::codec::token::{self, tag};
use crate::codec::{Serializer, json, msgpack};
use crate::error::{DecodeError, EncodeError};
use crate::value::{SpecialTag, Value};

/// A value that has not been decoded yet, together with its serializer.
///
/// It is a piece of the message it was read from, usually borrowed. Looking
/// into an array or map one level at a time ([`elements`](Self::elements),
/// [`entries`](Self::entries)) does not decode what is inside, so a deep or odd
/// part costs nothing and breaks nothing until somebody asks for it.
///
/// ```
/// use celery_protocol::Raw;
///
/// let args = Raw::json(r#"[2, {"any": "thing"}]"#);
/// let elements = args.elements()?;
/// assert_eq!(elements[0].decode::<i64>()?, 2);
/// assert_eq!(elements[1].as_json(), Some(r#"{"any": "thing"}"#));
/// # Ok::<(), celery_protocol::DecodeError>(())
/// ```
#[derive(Clone)]
pub struct Raw<'a> {
    content: RawContent<'a>,
}

#[derive(Clone)]
enum RawContent<'a> {
    Json(Cow<'a, str>),
    MsgPack(Cow<'a, [u8]>),
    /// YAML has no spans that could be read on their own: anchors reach
    /// across the document.
    Value(Cow<'a, Value>),
}

/// The elements of an array, undecoded.
pub type Elements<'a> = SmallVec<[Raw<'a>; 8]>;

/// The entries of a map with text keys, undecoded.
pub type Entries<'a> = SmallVec<[(Cow<'a, str>, Raw<'a>); 4]>;

impl<'a> Raw<'a> {
    /// A value in JSON. The text is checked when it is decoded.
    pub const fn json(text: &'a str) -> Self {
        Self {
            content: RawContent::Json(Cow::Borrowed(text)),
        }
    }

    /// A value in msgpack. The bytes are checked when they are decoded.
    pub const fn msgpack(bytes: &'a [u8]) -> Self {
        Self {
            content: RawContent::MsgPack(Cow::Borrowed(bytes)),
        }
    }

    /// Takes the bytes of a whole message body.
    ///
    /// JSON is only checked to be UTF-8 here and msgpack not at all; YAML is
    /// read into a [`Value`].
    ///
    /// # Errors
    ///
    /// When JSON is not UTF-8, or YAML is malformed or its feature is off.
    pub fn read(serializer: Serializer, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        match serializer {
            Serializer::Json => json::text(bytes).map(Self::json),
            Serializer::MsgPack => Ok(Self::msgpack(bytes)),
            Serializer::Yaml => serializer.decode(bytes).map(Self::from_value),
        }
    }

    /// Takes a value that was never written.
    pub const fn from_value(value: Value) -> Self {
        Self {
            content: RawContent::Value(Cow::Owned(value)),
        }
    }

    /// Borrows a value.
    pub const fn borrow_value(value: &'a Value) -> Self {
        Self {
            content: RawContent::Value(Cow::Borrowed(value)),
        }
    }

    /// Decodes this one value into a type, borrowing from the message where the
    /// type allows it.
    ///
    /// A `Raw` that owns its content does not lend it: borrowed types such as
    /// `&str` fail there.
    ///
    /// # Errors
    ///
    /// When the value is malformed, nested deeper than 128 levels or not what
    /// `T` expects.
    #[inline]
    pub fn decode<T: Deserialize<'a>>(&self) -> Result<T, DecodeError> {
        match &self.content {
            RawContent::Json(Cow::Borrowed(text)) => json::read_text(text),
            RawContent::MsgPack(Cow::Borrowed(bytes)) => Serializer::MsgPack.decode(bytes),
            RawContent::Value(Cow::Borrowed(value)) => T::deserialize(*value),
            _ => T::deserialize(self.to_value()?.into_deserializer()),
        }
    }

    /// Decodes this one value, whatever it is.
    ///
    /// # Errors
    ///
    /// When the value is malformed or nested deeper than 128 levels.
    pub fn to_value(&self) -> Result<Value, DecodeError> {
        match &self.content {
            RawContent::Json(text) => json::read_text(text),
            RawContent::MsgPack(bytes) => Serializer::MsgPack.decode(bytes),
            RawContent::Value(value) => Ok(value.clone().into_owned()),
        }
    }

    /// The elements of an array. Only their extents are looked for.
    ///
    /// # Errors
    ///
    /// When this is not an array, or is malformed, or nests deeper than 1,000
    /// levels.
    pub fn elements(&self) -> Result<Elements<'a>, DecodeError> {
        let mut elements = Elements::new();
        self.elements_into(&mut elements)?;
        Ok(elements)
    }

    /// As [`elements`](Self::elements), to where they are to be: they are some
    /// hundred bytes, which every move would copy. `out` must be empty.
    #[inline]
    pub(crate) fn elements_into(&self, out: &mut Elements<'a>) -> Result<(), DecodeError> {
        match &self.content {
            RawContent::Json(Cow::Borrowed(text)) => json::elements(text, out, Self::json),
            _ => {
                *out = self.elements_of_other()?;
                Ok(())
            }
        }
    }

    fn elements_of_other(&self) -> Result<Elements<'a>, DecodeError> {
        match &self.content {
            RawContent::Json(text) => {
                let mut elements = Elements::new();
                json::elements(text, &mut elements, |span| Raw::json(span).into_owned())?;
                Ok(elements)
            }
            RawContent::MsgPack(Cow::Borrowed(bytes)) => msgpack::elements(bytes, Self::msgpack),
            RawContent::MsgPack(Cow::Owned(bytes)) => {
                msgpack::elements(bytes, |span| Raw::msgpack(span).into_owned())
            }
            RawContent::Value(Cow::Borrowed(Value::Array(elements))) => {
                Ok(elements.iter().map(Raw::borrow_value).collect())
            }
            RawContent::Value(Cow::Owned(Value::Array(elements))) => {
                Ok(elements.iter().cloned().map(Raw::from_value).collect())
            }
            RawContent::Value(value) => Err(expected("an array", value)),
        }
    }

    /// The elements of a borrowed JSON array of three; `None` for anything
    /// else. See [`json::three_elements`].
    #[inline]
    pub(crate) fn three_elements(&self, last: &[&str]) -> Option<[Self; 3]> {
        match &self.content {
            RawContent::Json(Cow::Borrowed(text)) => {
                json::three_elements(text, last).map(|spans| spans.map(Self::json))
            }
            _ => None,
        }
    }

    /// The entries of a map. Only their extents are looked for; equal keys all
    /// come.
    ///
    /// # Errors
    ///
    /// When this is not a map, when a key is not a text, or when it is
    /// malformed or nests deeper than 1,000 levels.
    pub fn entries(&self) -> Result<Entries<'a>, DecodeError> {
        let mut entries = Entries::new();
        self.entries_into(&mut entries)?;
        Ok(entries)
    }

    /// As [`entries`](Self::entries), to where they are to be. `out` must be
    /// empty.
    #[inline]
    pub(crate) fn entries_into(&self, out: &mut Entries<'a>) -> Result<(), DecodeError> {
        match &self.content {
            RawContent::Json(Cow::Borrowed(text)) => {
                json::entries(text, out, |key, span| (key, Self::json(span)))
            }
            _ => {
                *out = self.entries_of_other()?;
                Ok(())
            }
        }
    }

    fn entries_of_other(&self) -> Result<Entries<'a>, DecodeError> {
        match &self.content {
            RawContent::Json(text) => {
                let mut entries = Entries::new();
                json::entries(text, &mut entries, |key, span| {
                    (Cow::Owned(key.into_owned()), Raw::json(span).into_owned())
                })?;
                Ok(entries)
            }
            RawContent::MsgPack(Cow::Borrowed(bytes)) => {
                msgpack::entries(bytes, |key, span| (Cow::Borrowed(key), Self::msgpack(span)))
            }
            RawContent::MsgPack(Cow::Owned(bytes)) => msgpack::entries(bytes, |key, span| {
                (Cow::Owned(key.to_owned()), Raw::msgpack(span).into_owned())
            }),
            RawContent::Value(Cow::Borrowed(Value::Map(map))) => map
                .iter()
                .map(|(key, value)| {
                    let key = key.as_str().ok_or_else(|| expected("a text as key", key))?;
                    Ok((Cow::Borrowed(key), Raw::borrow_value(value)))
                })
                .collect(),
            RawContent::Value(Cow::Owned(Value::Map(map))) => map
                .iter()
                .map(|(key, value)| {
                    let key = key.as_str().ok_or_else(|| expected("a text as key", key))?;
                    Ok((Cow::Owned(key.to_owned()), Raw::from_value(value.clone())))
                })
                .collect(),
            RawContent::Value(value) => Err(expected("a map", value)),
        }
    }

    /// Whether this is a null.
    pub fn is_null(&self) -> bool {
        match &self.content {
            RawContent::Json(text) => text.trim_ascii() == "null",
            RawContent::MsgPack(bytes) => bytes[..] == [msgpack::NIL],
            RawContent::Value(value) => value.is_null(),
        }
    }

    /// The serializer in which this was written. Values read from YAML say
    /// YAML, and so do values that were never written.
    pub fn serializer(&self) -> Serializer {
        match &self.content {
            RawContent::Json(_) => Serializer::Json,
            RawContent::MsgPack(_) => Serializer::MsgPack,
            RawContent::Value(_) => Serializer::Yaml,
        }
    }

    /// The text, if this is JSON.
    pub fn as_json(&self) -> Option<&str> {
        match &self.content {
            RawContent::Json(text) => Some(text),
            _ => None,
        }
    }

    /// The same value, borrowed from this one.
    pub fn as_borrowed(&self) -> Raw<'_> {
        let content = match &self.content {
            RawContent::Json(text) => RawContent::Json(Cow::Borrowed(text)),
            RawContent::MsgPack(bytes) => RawContent::MsgPack(Cow::Borrowed(bytes)),
            RawContent::Value(value) => RawContent::Value(Cow::Borrowed(value)),
        };
        Raw { content }
    }

    /// The same value, cut loose from the message it was read from.
    pub fn into_owned(self) -> Raw<'static> {
        let content = match self.content {
            RawContent::Json(text) => RawContent::Json(Cow::Owned(text.into_owned())),
            RawContent::MsgPack(bytes) => RawContent::MsgPack(Cow::Owned(bytes.into_owned())),
            RawContent::Value(value) => RawContent::Value(Cow::Owned(value.into_owned())),
        };
        Raw { content }
    }
}

impl Raw<'static> {
    /// Python's `None`.
    pub const NULL: Self = Self::json("null");

    /// Writes a value, to be put into a message later.
    ///
    /// # Errors
    ///
    /// As [`Serializer::encode`].
    pub fn encode<T: Serialize + ?Sized>(
        serializer: Serializer,
        value: &T,
    ) -> Result<Self, EncodeError> {
        let content = match serializer {
            Serializer::Json => {
                let bytes = serializer.encode(value)?;
                let text = String::from_utf8(bytes)
                    .map_err(|_| EncodeError::new("a spliced text is not UTF-8"))?;
                RawContent::Json(Cow::Owned(text))
            }
            Serializer::MsgPack => RawContent::MsgPack(Cow::Owned(serializer.encode(value)?)),
            Serializer::Yaml => RawContent::Value(Cow::Owned(Value::from_serialize(value)?)),
        };
        Ok(Self { content })
    }
}

/// Equal when the same bytes say it; two spellings of one value differ.
impl PartialEq for Raw<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (&self.content, &other.content) {
            (RawContent::Json(a), RawContent::Json(b)) => a == b,
            (RawContent::MsgPack(a), RawContent::MsgPack(b)) => a == b,
            (RawContent::Value(a), RawContent::Value(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Debug for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            RawContent::Json(text) => f.debug_tuple("Raw::json").field(text).finish(),
            RawContent::MsgPack(bytes) => f.debug_tuple("Raw::msgpack").field(bytes).finish(),
            RawContent::Value(value) => f.debug_tuple("Raw::from_value").field(value).finish(),
        }
    }
}

/// In its own format a raw value is copied as it stands; in another one of this
/// crate it is decoded and written anew. Serializers of other crates get the
/// text or bytes as a string or byte string.
impl Serialize for Raw<'_> {
    #[inline]
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.content {
            RawContent::Json(text) => serializer.serialize_newtype_struct(token::RAW_JSON, text),
            RawContent::MsgPack(bytes) => {
                serializer.serialize_newtype_struct(token::RAW_MSGPACK, &SerializeBytes(bytes))
            }
            RawContent::Value(value) => value.serialize(serializer),
        }
    }
}

/// The JSON reader of this crate lends the span; any other deserializer is read
/// into a [`Value`].
impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(token::RAW, RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Raw<'de>, A::Error> {
        match data.variant::<SpecialTag>()? {
            (SpecialTag::Ours(tag::RAW_JSON), text) => {
                text.newtype_variant::<&'de str>().map(Raw::json)
            }
            _ => Err(A::Error::custom("expected any value, found a tagged one")),
        }
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Raw<'de>, D::Error> {
        Value::deserialize(inner).map(Raw::from_value)
    }
}

/// Bytes that serialize as bytes, where serde writes `[u8]` as numbers.
struct SerializeBytes<'a>(&'a [u8]);

impl Serialize for SerializeBytes<'_> {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

#[cold]
fn expected(what: &str, found: &Value) -> DecodeError {
    DecodeError::new(format!("expected {what}, found {}", found.describe()))
}
