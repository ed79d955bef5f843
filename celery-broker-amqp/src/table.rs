//! Conversion between Celery's values and AMQP's field tables. Pure.

use celery_protocol::{Extended, Map, Value};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

/// The reason why a value cannot be encoded in AMQP.
pub(crate) type EncodeError = String;

/// Encodes a name, a key or a property, which AMQP limits to 255 bytes.
pub(crate) fn short_string(text: &str) -> Result<ShortString, EncodeError> {
    ShortString::try_new(text).map_err(|_| {
        let start: String = text.chars().take(40).collect();
        format!(
            "AMQP limits names and properties to 255 bytes, and {start:?}… has {}",
            text.len()
        )
    })
}

/// Encodes a map as a field table.
///
/// # Errors
///
/// Returns an error if a key is not a string or is longer than 255 bytes.
pub(crate) fn encode_table(map: &Map) -> Result<FieldTable, EncodeError> {
    let mut table = FieldTable::default();
    for (key, value) in map {
        let Value::Str(key) = key else {
            return Err(format!(
                "the keys of an AMQP table must be strings, found {key:?}"
            ));
        };
        table.insert(short_string(key)?, encode_value(value)?);
    }
    Ok(table)
}

/// Encodes a value as py-amqp does: integers by their size, bytes as strings.
fn encode_value(value: &Value) -> Result<AMQPValue, EncodeError> {
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    Ok(match value {
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Int(number) => match i32::try_from(*number) {
            Ok(small) => AMQPValue::LongInt(small),
            Err(_) => AMQPValue::LongLongInt(*number),
        },
        // The largest integer of a table is a signed 64-bit one.
        Value::UInt(number) => text(&number.to_string()),
        Value::BigInt(number) => text(number.as_str()),
        Value::Float(number) => AMQPValue::Double(*number),
        Value::Str(string) => text(string),
        Value::Bytes(bytes) => AMQPValue::LongString(LongString::from(bytes.as_slice())),
        Value::Extended(extended) => text(extended.as_str()),
        Value::Array(items) => {
            let items: Result<Vec<_>, _> = items.iter().map(encode_value).collect();
            AMQPValue::FieldArray(items?.into())
        }
        Value::Map(map) => AMQPValue::FieldTable(encode_table(map)?),
        _ => AMQPValue::Void,
    })
}

/// Decodes a field table.
pub(crate) fn decode_table(table: &FieldTable) -> Map {
    table
        .inner()
        .iter()
        .map(|(key, value)| (Value::Str(key.as_str().to_owned()), decode_value(value)))
        .collect()
}

/// Decodes a value. Integers of all widths become `Int`; strings that are not
/// UTF-8 become `Bytes`.
fn decode_value(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => Value::Bool(*flag),
        AMQPValue::ShortShortInt(number) => Value::Int((*number).into()),
        AMQPValue::ShortShortUInt(number) => Value::Int((*number).into()),
        AMQPValue::ShortInt(number) => Value::Int((*number).into()),
        AMQPValue::ShortUInt(number) => Value::Int((*number).into()),
        AMQPValue::LongInt(number) => Value::Int((*number).into()),
        AMQPValue::LongUInt(number) => Value::Int((*number).into()),
        AMQPValue::LongLongInt(number) => Value::Int(*number),
        AMQPValue::Float(number) => Value::Float((*number).into()),
        AMQPValue::Double(number) => Value::Float(*number),
        AMQPValue::DecimalValue(decimal) => Value::Extended(Extended::decimal(decimal_text(
            decimal.value,
            decimal.scale,
        ))),
        AMQPValue::ShortString(text) => Value::Str(text.as_str().to_owned()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => Value::Str(text.to_owned()),
            Err(_) => Value::Bytes(text.as_bytes().to_vec()),
        },
        AMQPValue::FieldArray(items) => {
            Value::Array(items.as_slice().iter().map(decode_value).collect())
        }
        // Seconds since 1970, saturating at the largest `Int`.
        AMQPValue::Timestamp(seconds) => Value::Int(i64::try_from(*seconds).unwrap_or(i64::MAX)),
        AMQPValue::FieldTable(table) => Value::Map(decode_table(table)),
        AMQPValue::ByteArray(bytes) => Value::Bytes(bytes.as_slice().to_vec()),
        AMQPValue::Void => Value::Null,
    }
}

/// Formats a decimal, which is an integer and the number of digits after the
/// point.
fn decimal_text(value: u32, scale: u8) -> String {
    let digits = format!("{value:0width$}", width = usize::from(scale) + 1);
    let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
    match fraction {
        "" => whole.to_owned(),
        _ => format!("{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(json: &str) -> Map {
        let value: Value = celery_protocol::Serializer::Json
            .decode(json.as_bytes())
            .unwrap();
        value.as_map().unwrap().clone()
    }

    #[test]
    fn encoded_table_decodes_to_the_same_map() {
        let headers = map(
            // A table is sorted by its keys.
            r#"{"eta": null, "far": 5000000000, "ignore_result": false, "ratio": 0.5, "retries": 0,
                "stamps": {"a": ["b"]}, "task": "t", "timelimit": [null, 2.5]}"#,
        );
        assert_eq!(decode_table(&encode_table(&headers).unwrap()), headers);
    }

    #[test]
    fn integer_of_any_width_decodes_to_int() {
        for value in [
            AMQPValue::ShortShortInt(7),
            AMQPValue::ShortShortUInt(7),
            AMQPValue::ShortInt(7),
            AMQPValue::ShortUInt(7),
            AMQPValue::LongInt(7),
            AMQPValue::LongUInt(7),
            AMQPValue::LongLongInt(7),
            AMQPValue::Timestamp(7),
        ] {
            assert_eq!(decode_value(&value), Value::Int(7));
        }
    }

    #[test]
    fn decimal_text_keeps_its_scale() {
        for (value, scale, text) in [(1234, 2, "12.34"), (5, 3, "0.005"), (5, 0, "5")] {
            assert_eq!(decimal_text(value, scale), text);
        }
    }

    #[test]
    fn unencodable_name_or_key_is_an_error_with_its_reason() {
        let long = "k".repeat(300);
        assert!(short_string(&long).unwrap_err().contains("255 bytes"));
        let mut odd = Map::new();
        odd.insert(Value::Int(1), Value::Null);
        assert!(encode_table(&odd).unwrap_err().contains("must be strings"));
    }
}
