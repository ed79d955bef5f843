//! Values outside serde's data model: kombu's typed values and integers beyond
//! 64 bits.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};

use super::Value;
use crate::codec::token;
use crate::error::DecodeError;

/// A date, a time, a decimal number or a UUID, stored as the text that Python
/// wrote.
///
/// JSON writes `{"__type__": "datetime", "__value__": "2030-01-02T03:04:05"}`,
/// which Python reads back as its own type; the other serializers write the
/// text. Types that deserialize from a string read the text from all of them.
///
/// ```
/// use celery_protocol::{Extended, Serializer};
///
/// let price = Extended::decimal("1.10");
/// let json = Serializer::Json.encode(&price)?;
/// assert_eq!(json, br#"{"__type__":"decimal","__value__":"1.10"}"#);
///
/// let text: String = Serializer::Json.decode(&json)?;
/// assert_eq!(text, "1.10");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Extended {
    kind: ExtendedKind,
    text: String,
}

/// The Python type of an [`Extended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExtendedKind {
    /// `datetime.datetime`, as ISO 8601.
    DateTime,
    /// `datetime.date`, as ISO 8601.
    Date,
    /// `datetime.time`, as ISO 8601.
    Time,
    /// `decimal.Decimal`, as its digits.
    Decimal,
    /// `uuid.UUID`, as 32 hexadecimal digits.
    Uuid,
}

/// One row per kind in the order of the enum, with the name in kombu and the
/// token by which writers recognise the kind.
static KINDS: [(ExtendedKind, &str, &str); 5] = [
    (ExtendedKind::DateTime, "datetime", "$celery::datetime"),
    (ExtendedKind::Date, "date", "$celery::date"),
    (ExtendedKind::Time, "time", "$celery::time"),
    (ExtendedKind::Decimal, "decimal", "$celery::decimal"),
    (ExtendedKind::Uuid, "uuid", "$celery::uuid"),
];

impl ExtendedKind {
    /// Returns the name in kombu's `__type__`.
    pub fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let row = KINDS.iter().find(|row| row.1 == name)?;
        Some(row.0)
    }

    pub(crate) fn from_token(token: &str) -> Option<Self> {
        let row = KINDS.iter().find(|row| row.2 == token)?;
        Some(row.0)
    }

    /// Returns the index in the table, which readers add to
    /// [`token::tag::EXTENDED`].
    pub(crate) fn index(self) -> u64 {
        self as u64
    }

    pub(crate) fn from_index(index: u64) -> Option<Self> {
        let row = KINDS.get(usize::try_from(index).ok()?)?;
        Some(row.0)
    }
}

impl Extended {
    /// Creates a `datetime.datetime` from an ISO 8601 text.
    pub fn datetime(text: impl Into<String>) -> Self {
        Self::new(ExtendedKind::DateTime, text)
    }

    /// Creates a `datetime.date` from an ISO 8601 text.
    pub fn date(text: impl Into<String>) -> Self {
        Self::new(ExtendedKind::Date, text)
    }

    /// Creates a `datetime.time` from an ISO 8601 text.
    pub fn time(text: impl Into<String>) -> Self {
        Self::new(ExtendedKind::Time, text)
    }

    /// Creates a `decimal.Decimal` from its digits.
    pub fn decimal(text: impl Into<String>) -> Self {
        Self::new(ExtendedKind::Decimal, text)
    }

    /// Creates a `uuid.UUID` from its hexadecimal digits, with or without
    /// hyphens.
    pub fn uuid(text: impl Into<String>) -> Self {
        Self::new(ExtendedKind::Uuid, text)
    }

    /// Creates a typed value of the given kind. The text is not checked,
    /// because the rules are those of the Python types.
    pub fn new(kind: ExtendedKind, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if kind == ExtendedKind::Uuid {
            // The form of Python's `UUID.hex`, so that equal UUIDs have equal
            // texts.
            text.retain(|c| c != '-');
            text.make_ascii_lowercase();
        }
        Self { kind, text }
    }

    /// Returns the Python type of this value.
    pub fn kind(&self) -> ExtendedKind {
        self.kind
    }

    /// Returns the text that Python wrote.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

impl fmt::Display for Extended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Extended {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(KINDS[self.kind as usize].2, &self.text)
    }
}

impl<'de> Deserialize<'de> for Extended {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Extended(extended) => Ok(extended),
            other => Err(D::Error::custom(format_args!(
                "expected a date, time, decimal or uuid, found {}",
                other.describe()
            ))),
        }
    }
}

/// An integer of any size, stored as its decimal digits.
///
/// Python's integers have no limit. JSON and YAML write the digits; msgpack
/// supports at most 64 bits and returns an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BigInt {
    digits: String,
}

impl BigInt {
    /// Returns the decimal digits, after a `-` if it is negative, without
    /// leading zeros.
    pub fn as_str(&self) -> &str {
        &self.digits
    }

    /// Creates an integer from digits that a reader has already checked.
    pub(crate) fn from_digits(digits: String) -> Self {
        Self { digits }
    }
}

impl FromStr for BigInt {
    type Err = DecodeError;

    /// Parses decimal digits with an optional sign.
    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", text.strip_prefix('+').unwrap_or(text)),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(DecodeError::new(format!("{text:?} is not an integer")));
        }
        let digits = digits.trim_start_matches('0');
        Ok(Self::from_digits(match digits {
            "" => "0".to_owned(),
            _ => format!("{sign}{digits}"),
        }))
    }
}

impl From<i128> for BigInt {
    fn from(value: i128) -> Self {
        Self::from_digits(value.to_string())
    }
}

impl From<u128> for BigInt {
    fn from(value: u128) -> Self {
        Self::from_digits(value.to_string())
    }
}

impl fmt::Display for BigInt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad_integral(
            !self.digits.starts_with('-'),
            "",
            self.digits.trim_start_matches('-'),
        )
    }
}

impl Serialize for BigInt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(token::BIG_INT, &self.digits)
    }
}

impl<'de> Deserialize<'de> for BigInt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Int(value) => Ok(Self::from_digits(value.to_string())),
            Value::UInt(value) => Ok(Self::from_digits(value.to_string())),
            Value::BigInt(value) => Ok(value),
            other => Err(D::Error::custom(format_args!(
                "expected an integer, found {}",
                other.describe()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_table_has_the_order_of_the_enum() {
        for (index, (kind, name, token)) in KINDS.iter().enumerate() {
            assert_eq!(kind.index(), index as u64);
            assert_eq!(ExtendedKind::from_index(kind.index()), Some(*kind));
            assert_eq!(ExtendedKind::from_name(name), Some(*kind));
            assert_eq!(ExtendedKind::from_token(token), Some(*kind));
        }
    }

    #[test]
    fn big_integer_digits_are_normalised() {
        assert_eq!("+007".parse::<BigInt>().unwrap().as_str(), "7");
        assert_eq!("-000".parse::<BigInt>().unwrap().as_str(), "0");
        let digits = "-123456789012345678901234567890";
        assert_eq!(digits.parse::<BigInt>().unwrap().to_string(), digits);
        for bad in ["", "-", "1.0", "1e3", "--1", "٣"] {
            assert!(bad.parse::<BigInt>().is_err(), "{bad:?}");
        }
        assert_eq!(Value::from("12".parse::<BigInt>().unwrap()), Value::Int(12));
    }

    #[test]
    fn uuid_is_stored_as_lowercase_hex() {
        let uuid = Extended::uuid("12345678-1234-4234-8234-123456789ABC");
        assert_eq!(uuid.as_str(), "12345678123442348234123456789abc");
    }
}
