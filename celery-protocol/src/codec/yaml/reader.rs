//! Decoding of YAML into a [`Value`] with the meaning that Python gives it.
//!
//! The library implements YAML 1.2, Python reads and writes YAML 1.1. This
//! module corrects two differences. The library hides core tags such as
//! `!!binary`, so the handle `!!` is declared as a prefix of local tags, which
//! the library exposes. A plain `12e5` is a text in Python, which therefore
//! writes such texts without quotes: every number that may be such a text is
//! read a second time as a text.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{
    Deserialize as _, DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use crate::codec::json;
use crate::error::{DecodeError, DecodeErrorKind};
use crate::value::{BigInt, Map, Value};

/// Decodes bytes that contain exactly one document.
pub(super) fn read(bytes: &[u8]) -> Result<Value, DecodeError> {
    let text = with_visible_tags(json::text(bytes)?);
    let budget = SizeBudget::of(&text);
    let mut value = (&budget)
        .deserialize(serde_yaml::Deserializer::from_str(&text))
        .map_err(|error| decode_error(&error, &budget))?;
    let has_octals = text.contains("0o");
    if has_octals || has_floats(&value) {
        let correction = NumberCorrection {
            value: &mut value,
            has_octals,
        };
        correction
            .deserialize(serde_yaml::Deserializer::from_str(&text))
            .map_err(|error| decode_error(&error, &budget))?;
    }
    remove_duplicates(&mut value);
    Ok(value)
}

#[cold]
fn decode_error(error: &serde_yaml::Error, budget: &SizeBudget) -> DecodeError {
    if budget.left.get() == 0 {
        return DecodeErrorKind::TooLarge {
            limit: budget.limit,
        }
        .into();
    }
    let message = error.to_string();
    if message.contains("recursion limit") {
        return DecodeErrorKind::TooDeep {
            limit: crate::codec::MAX_DECODE_DEPTH,
        }
        .into();
    }
    DecodeError::malformed(message)
}

/// The prefix of the local tags that the handle `!!` is declared as.
const CORE_TAG_PREFIX: &str = "celery-core-";

/// Declares `!!` as a prefix of local tags, which the library exposes. Texts
/// without `!!` are returned unchanged.
fn with_visible_tags(text: &str) -> Cow<'_, str> {
    if memchr::memmem::find(text.as_bytes(), b"!!").is_none() {
        return Cow::Borrowed(text);
    }
    let has_start = text
        .lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .is_some_and(|line| line.starts_with("---") || line.starts_with('%'));
    let start = if has_start { "" } else { "---\n" };
    Cow::Owned(format!("%TAG !! !{CORE_TAG_PREFIX}\n{start}{text}"))
}

/// The limit of the decoded size, so that aliases cannot expand a small
/// document into a huge value.
struct SizeBudget {
    limit: usize,
    left: Cell<usize>,
}

impl SizeBudget {
    /// Creates a budget that is far above the size of any regular document: 16
    /// times the text plus 64 KiB.
    fn of(text: &str) -> Self {
        let limit = text.len().saturating_mul(16).saturating_add(64 * 1024);
        Self {
            limit,
            left: Cell::new(limit),
        }
    }

    fn spend<E: Error>(&self, amount: usize) -> Result<(), E> {
        match self.left.get().checked_sub(amount + 1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(E::custom("aliases make the document too large"))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for &SizeBudget {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! scalars {
    ($($method:ident($type:ty) => $value:expr;)+) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<Value, E> {
            self.spend(0)?;
            Ok($value(value))
        }
    )+};
}

impl<'de> Visitor<'de> for &SizeBudget {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    scalars! {
        visit_bool(bool) => Value::from;
        visit_i64(i64) => Value::from;
        visit_u64(u64) => Value::from;
        visit_i128(i128) => |value| BigInt::from(value).into();
        visit_u128(u128) => |value| BigInt::from(value).into();
        visit_f64(f64) => Value::from;
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.spend(text.len())?;
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(self)? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut map = Vec::new();
        while let Some(key) = entries.next_key_seed(self)? {
            map.push((key, entries.next_value_seed(self)?));
        }
        Ok(Value::Map(Map::with_duplicates(map)))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Value, A::Error> {
        let (tag, content) = data.variant::<String>()?;
        match tag.strip_prefix(CORE_TAG_PREFIX) {
            Some("binary") => {
                let text: String = content.newtype_variant()?;
                self.spend(text.len())?;
                binary(&text).map_err(A::Error::custom)
            }
            Some("str" | "timestamp") => {
                let text: String = content.newtype_variant()?;
                self.spend(text.len())?;
                Ok(Value::Str(text))
            }
            Some("null" | "bool" | "int" | "float" | "seq" | "map" | "set") => {
                content.newtype_variant_seed(self)
            }
            // PyYAML's safe loader also rejects other tags.
            Some(name) => Err(A::Error::custom(format_args!("unknown tag !!{name}"))),
            None => Err(A::Error::custom(format_args!("unknown tag !{tag}"))),
        }
    }
}

/// Decodes base64, which PyYAML writes in several lines.
fn binary(text: &str) -> Result<Value, base64::DecodeError> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(text).map(Value::Bytes)
}

fn has_floats(value: &Value) -> bool {
    match value {
        Value::Float(_) => true,
        Value::Array(elements) => elements.iter().any(has_floats),
        Value::Map(map) => map
            .iter()
            .any(|(key, value)| has_floats(key) || has_floats(value)),
        _ => false,
    }
}

/// Keeps only the last of equal keys. This runs after [`NumberCorrection`],
/// which needs a value with as many entries as the document.
fn remove_duplicates(value: &mut Value) {
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(remove_duplicates),
        Value::Map(map) => {
            for (key, value) in map.entries_mut() {
                remove_duplicates(key);
                remove_duplicates(value);
            }
            map.remove_duplicates();
        }
        _ => {}
    }
}

/// Corrects the numbers of a value: reads the document a second time, with each
/// number as a text.
struct NumberCorrection<'v> {
    value: &'v mut Value,
    /// Whether the document may contain a text such as `0o17`, which the
    /// library reads as an integer.
    has_octals: bool,
}

impl<'de> DeserializeSeed<'de> for NumberCorrection<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.value {
            Value::Float(_) => {
                let text = String::deserialize(deserializer)?;
                if let Some(value) = value_in_python(text) {
                    *self.value = value;
                }
                Ok(())
            }
            Value::Int(_) | Value::UInt(_) if self.has_octals => {
                let text = String::deserialize(deserializer)?;
                if text.contains("0o") {
                    *self.value = Value::Str(text);
                }
                Ok(())
            }
            Value::Array(_) => deserializer.deserialize_seq(self),
            Value::Map(_) => deserializer.deserialize_map(self),
            _ => IgnoredAny::deserialize(deserializer).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for NumberCorrection<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the array or map that was read before")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let has_octals = self.has_octals;
        if let Value::Array(array) = self.value {
            for value in array {
                elements.next_element_seed(NumberCorrection { value, has_octals })?;
            }
        }
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let has_octals = self.has_octals;
        let correction = |value| NumberCorrection { value, has_octals };
        if let Value::Map(map) = self.value {
            for (key, value) in map.entries_mut() {
                if entries.next_key_seed(correction(key))?.is_some() {
                    entries.next_value_seed(correction(value))?;
                }
            }
        }
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Returns the value that Python reads where the library reads a float, or
/// `None` if Python also reads a float. Python reads a text if there is no dot,
/// if the exponent has no sign, or if a dot follows the sign.
fn value_in_python(text: String) -> Option<Value> {
    if let Ok(integer) = text.parse::<BigInt>() {
        return Some(integer.into());
    }
    let unsigned = text.trim_start_matches(['+', '-']);
    let is_float = match unsigned.strip_prefix('.') {
        Some(rest) => unsigned.len() == text.len() || rest.eq_ignore_ascii_case("inf"),
        None => unsigned.contains('.'),
    };
    let has_sign = |(_, exponent): (&str, &str)| exponent.starts_with(['+', '-']);
    let is_float = is_float && text.split_once(['e', 'E']).is_none_or(has_sign);
    (!is_float).then_some(Value::Str(text))
}
