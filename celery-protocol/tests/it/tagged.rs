//! Python values in the form of the fixtures: plain JSON where JSON is exact,
//! otherwise an object whose key `$` names the Python type.

use celery_protocol::{BigInt, Extended, Map, Value};
use serde_json::{Value as Json, json};

/// Converts the form of the fixtures into a value; `None` for a text with lone
/// surrogates, which Rust cannot represent.
pub(crate) fn value(tagged: &Json) -> Option<Value> {
    Some(match tagged {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::UInt(number.as_u64().expect("floats are tagged")),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::Array(items.iter().map(value).collect::<Option<_>>()?),
        Json::Object(object) => match object.get("$") {
            Some(kind) => special(kind.as_str().expect("a text under $"), tagged)?,
            None => Value::Map(
                object
                    .iter()
                    .map(|(key, item)| Some((Value::from(key.as_str()), value(item)?)))
                    .collect::<Option<Map>>()?,
            ),
        },
    })
}

fn special(kind: &str, tagged: &Json) -> Option<Value> {
    let text = || tagged["text"].as_str().expect("a text");
    Some(match kind {
        "surrogates" => return None,
        "int" => Value::from(text().parse::<BigInt>().expect("digits")),
        "float" => Value::Float(text().parse().expect("a float as Rust spells it")),
        "bytes" => Value::Bytes(from_hex(tagged["hex"].as_str().expect("hex digits"))),
        "datetime" => Value::Extended(Extended::datetime(text())),
        "date" => Value::Extended(Extended::date(text())),
        "time" => Value::Extended(Extended::time(text())),
        "decimal" => Value::Extended(Extended::decimal(text())),
        "uuid" => Value::Extended(Extended::uuid(text())),
        "map" => {
            let items = tagged["items"].as_array().expect("pairs");
            let pair = |item: &Json| Some((value(&item[0])?, value(&item[1])?));
            Value::Map(items.iter().map(pair).collect::<Option<Map>>()?)
        }
        other => panic!("unknown tag {other}"),
    })
}

/// Converts a value into the form of the fixtures.
pub(crate) fn tag(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(flag) => json!(flag),
        Value::Int(number) => json!(number),
        Value::UInt(number) => json!(number),
        Value::BigInt(number) => json!({"$": "int", "text": number.to_string()}),
        Value::Float(number) => json!({"$": "float", "text": number.to_string()}),
        Value::Str(text) => json!(text),
        Value::Bytes(bytes) => json!({"$": "bytes", "hex": to_hex(bytes)}),
        Value::Extended(extended) => {
            json!({"$": extended.kind().name(), "text": extended.as_str()})
        }
        Value::Array(items) => items.iter().map(tag).collect(),
        Value::Map(map) if map.keys().all(|key| key.as_str().is_some()) => {
            let entry =
                |(key, item): (&Value, &Value)| (key.as_str().unwrap().to_owned(), tag(item));
            Json::Object(map.iter().map(entry).collect())
        }
        Value::Map(map) => {
            let pairs: Vec<Json> = map
                .iter()
                .map(|(key, item)| json!([tag(key), tag(item)]))
                .collect();
            json!({"$": "map", "items": pairs})
        }
        other => panic!("no tag for {other:?}"),
    }
}

/// Sorts every map in a value by its keys, for comparison.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Map(map) => {
            let mut entries: Vec<(Value, Value)> = map
                .into_iter()
                .map(|(key, item)| (key, sorted(item)))
                .collect();
            entries.sort_by_key(|(key, _)| format!("{key:?}"));
            Value::Map(entries.into_iter().collect())
        }
        other => other,
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .map(|c| c.to_digit(16).expect("hex") as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
