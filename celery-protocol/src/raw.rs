//! Values that are passed on without being decoded.

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

/// An undecoded value together with its serializer.
///
/// It is a part of the message it was read from, usually borrowed.
/// [`elements`](Self::elements) and [`entries`](Self::entries) split an array
/// or map one level at a time and do not decode the parts, so a deeply nested
/// or malformed part costs no time and causes no error until it is decoded.
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
    /// A decoded value. YAML has no spans that can be decoded separately,
    /// because anchors apply to the whole document.
    Value(Cow<'a, Value>),
}

/// The elements of an array, undecoded.
pub type Elements<'a> = SmallVec<[Raw<'a>; 8]>;

/// The entries of a map with text keys, undecoded.
pub type Entries<'a> = SmallVec<[(Cow<'a, str>, Raw<'a>); 4]>;

impl<'a> Raw<'a> {
    /// Creates a value in JSON. The text is checked when it is decoded.
    pub const fn json(text: &'a str) -> Self {
        Self {
            content: RawContent::Json(Cow::Borrowed(text)),
        }
    }

    /// Creates a value in msgpack. The bytes are checked when they are decoded.
    pub const fn msgpack(bytes: &'a [u8]) -> Self {
        Self {
            content: RawContent::MsgPack(Cow::Borrowed(bytes)),
        }
    }

    /// Creates a raw value from the bytes of a whole message body.
    ///
    /// JSON is only checked to be UTF-8 and msgpack is not checked; YAML is
    /// decoded into a [`Value`].
    ///
    /// # Errors
    ///
    /// Fails if JSON is not UTF-8, or if YAML is malformed or its feature is
    /// off.
    pub fn read(serializer: Serializer, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        match serializer {
            Serializer::Json => json::text(bytes).map(Self::json),
            Serializer::MsgPack => Ok(Self::msgpack(bytes)),
            Serializer::Yaml => serializer.decode(bytes).map(Self::from_value),
        }
    }

    /// Creates a raw value from an owned value.
    pub const fn from_value(value: Value) -> Self {
        Self {
            content: RawContent::Value(Cow::Owned(value)),
        }
    }

    /// Creates a raw value that borrows a value.
    pub const fn borrow_value(value: &'a Value) -> Self {
        Self {
            content: RawContent::Value(Cow::Borrowed(value)),
        }
    }

    /// Decodes the value into a type, which may borrow from the message.
    ///
    /// Types such as `&str` cannot borrow from a `Raw` that owns its content;
    /// decoding them fails.
    ///
    /// # Errors
    ///
    /// Fails if the value is malformed or nested deeper than 128 levels, or if
    /// `T` expects another value.
    #[inline]
    pub fn decode<T: Deserialize<'a>>(&self) -> Result<T, DecodeError> {
        match &self.content {
            RawContent::Json(Cow::Borrowed(text)) => json::read_text(text),
            RawContent::MsgPack(Cow::Borrowed(bytes)) => Serializer::MsgPack.decode(bytes),
            RawContent::Value(Cow::Borrowed(value)) => T::deserialize(*value),
            _ => T::deserialize(self.to_value()?.into_deserializer()),
        }
    }

    /// Decodes the value into a [`Value`].
    ///
    /// # Errors
    ///
    /// Fails if the value is malformed or nested deeper than 128 levels.
    pub fn to_value(&self) -> Result<Value, DecodeError> {
        match &self.content {
            RawContent::Json(text) => json::read_text(text),
            RawContent::MsgPack(bytes) => Serializer::MsgPack.decode(bytes),
            RawContent::Value(value) => Ok(value.clone().into_owned()),
        }
    }

    /// Returns the elements of an array. They are not decoded.
    ///
    /// # Errors
    ///
    /// Fails if this is not an array, is malformed, or is nested deeper than
    /// 1,000 levels.
    pub fn elements(&self) -> Result<Elements<'a>, DecodeError> {
        let mut elements = Elements::new();
        self.elements_into(&mut elements)?;
        Ok(elements)
    }

    /// Writes the elements of an array to `out`, which must be empty. See
    /// [`elements`](Self::elements). The list has some hundred bytes, which a
    /// move would copy.
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

    /// Returns the elements of an array that is not borrowed JSON.
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

    /// Returns the elements of a borrowed JSON array of three; `None` for
    /// anything else. See [`json::three_elements`].
    #[inline]
    pub(crate) fn three_elements(&self, last: &[&str]) -> Option<[Self; 3]> {
        match &self.content {
            RawContent::Json(Cow::Borrowed(text)) => {
                json::three_elements(text, last).map(|spans| spans.map(Self::json))
            }
            _ => None,
        }
    }

    /// Returns the entries of a map, including those with equal keys. The
    /// values are not decoded.
    ///
    /// # Errors
    ///
    /// Fails if this is not a map, if a key is not a text, or if it is
    /// malformed or nested deeper than 1,000 levels.
    pub fn entries(&self) -> Result<Entries<'a>, DecodeError> {
        let mut entries = Entries::new();
        self.entries_into(&mut entries)?;
        Ok(entries)
    }

    /// Writes the entries of a map to `out`, which must be empty. See
    /// [`entries`](Self::entries).
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

    /// Returns the entries of a map that is not borrowed JSON.
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

    /// Returns whether the value is null.
    pub fn is_null(&self) -> bool {
        match &self.content {
            RawContent::Json(text) => text.trim_ascii() == "null",
            RawContent::MsgPack(bytes) => bytes[..] == [msgpack::NIL],
            RawContent::Value(value) => value.is_null(),
        }
    }

    /// Returns the serializer of the value. Values that were decoded from YAML
    /// and values that were never encoded return YAML.
    pub fn serializer(&self) -> Serializer {
        match &self.content {
            RawContent::Json(_) => Serializer::Json,
            RawContent::MsgPack(_) => Serializer::MsgPack,
            RawContent::Value(_) => Serializer::Yaml,
        }
    }

    /// Returns the JSON text, or `None` for another serializer.
    pub fn as_json(&self) -> Option<&str> {
        match &self.content {
            RawContent::Json(text) => Some(text),
            _ => None,
        }
    }

    /// Returns a raw value that borrows from this one.
    pub fn as_borrowed(&self) -> Raw<'_> {
        let content = match &self.content {
            RawContent::Json(text) => RawContent::Json(Cow::Borrowed(text)),
            RawContent::MsgPack(bytes) => RawContent::MsgPack(Cow::Borrowed(bytes)),
            RawContent::Value(value) => RawContent::Value(Cow::Borrowed(value)),
        };
        Raw { content }
    }

    /// Converts into a raw value that does not borrow from the message.
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

    /// Encodes a value, to be inserted into a message later.
    ///
    /// # Errors
    ///
    /// Fails in the cases of [`Serializer::encode`].
    pub fn encode<T: Serialize + ?Sized>(
        serializer: Serializer,
        value: &T,
    ) -> Result<Self, EncodeError> {
        let content = match serializer {
            Serializer::Json => {
                let bytes = serializer.encode(value)?;
                let text = String::from_utf8(bytes)
                    .map_err(|_| EncodeError::new("a raw JSON value is not UTF-8"))?;
                RawContent::Json(Cow::Owned(text))
            }
            Serializer::MsgPack => RawContent::MsgPack(Cow::Owned(serializer.encode(value)?)),
            Serializer::Yaml => RawContent::Value(Cow::Owned(Value::from_serialize(value)?)),
        };
        Ok(Self { content })
    }
}

/// Two raw values are equal if their bytes are equal; two encodings of one
/// value differ.
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

/// In its own format, a raw value is copied unchanged; in another format of
/// this crate, it is decoded and encoded again. Serializers of other crates
/// receive the text or bytes as a string or byte string.
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

/// A raw value borrows its span from the JSON reader of this crate; from any
/// other deserializer it is decoded into a [`Value`].
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
            _ => Err(A::Error::custom(
                "expected any value, found an enum variant",
            )),
        }
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Raw<'de>, D::Error> {
        Value::deserialize(inner).map(Raw::from_value)
    }
}

/// Bytes that serialize as bytes; serde serializes `[u8]` as a list of numbers.
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
