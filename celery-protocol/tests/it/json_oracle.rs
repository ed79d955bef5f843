//! Comparison of this crate's JSON with `serde_json`, for values that both
//! support.

use celery_protocol::{Raw, Serializer, Value};
use proptest::prelude::*;
use serde::de::IgnoredAny;

use crate::values;

fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value as Json;

    let scalar = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        // With its default features, the oracle rounds longer floats
        // incorrectly.
        any::<i32>().prop_map(|n| Json::from(f64::from(n) / 64.0)),
        values::text().prop_map(Json::from),
    ];
    scalar.prop_recursive(5, 48, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Json::from),
            prop::collection::btree_map(values::text(), inner, 0..8)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

/// A JSON text with a few characters of JSON inserted, removed or changed.
fn damaged() -> impl Strategy<Value = String> {
    let edit = (
        any::<prop::sample::Index>(),
        0..3u8,
        "[\\[\\]{},:\"\\\\ 0-9eE.+\\-ntfaulrsé]",
    );
    (json(), prop::collection::vec(edit, 0..4)).prop_map(|(value, edits)| {
        let mut text: Vec<char> = value.to_string().chars().collect();
        for (position, kind, with) in edits {
            let position = position.index(text.len() + 1);
            let with = with.chars().next().unwrap_or(' ');
            match kind {
                0 => text.insert(position, with),
                1 if position < text.len() => drop(text.remove(position)),
                _ if position < text.len() => text[position] = with,
                _ => {}
            }
        }
        text.into_iter().collect()
    })
}

proptest! {
    #[test]
    fn serde_json_output_is_read_equally(expected in json()) {
        let text = expected.to_string();
        let ours: Value = Serializer::Json.decode(text.as_bytes()).unwrap();
        let written = Serializer::Json.encode(&ours).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
        prop_assert_eq!(&read, &expected);

        // serde_json's `Value` is read and written by this crate.
        let theirs: serde_json::Value = Serializer::Json.decode(text.as_bytes()).unwrap();
        prop_assert_eq!(&theirs, &expected);
        let written = Serializer::Json.encode(&expected).unwrap();
        prop_assert_eq!(String::from_utf8(written).unwrap().len(), text.len());
    }

    #[test]
    fn strings_are_escaped_as_in_serde_json(text in values::text()) {
        let ours = Serializer::Json.encode(&text).unwrap();
        prop_assert_eq!(String::from_utf8(ours).unwrap(), serde_json::to_string(&text).unwrap());
    }

    #[test]
    fn malformed_texts_are_rejected_as_in_serde_json(text in damaged()) {
        let ours = Serializer::Json.decode::<Value>(text.as_bytes());
        match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(_) => prop_assert!(ours.is_ok(), "{:?}: {:?}", text, ours),
            // serde_json rejects floats that overflow, Python reads infinity.
            Err(error) if error.to_string().contains("out of range") => {}
            Err(_) => prop_assert!(ours.is_err(), "{:?}", text),
        }
        let skipped = Serializer::Json.decode::<IgnoredAny>(text.as_bytes());
        prop_assert!(ours.is_err() || skipped.is_ok(), "{:?}", text);
        let theirs = serde_json::from_str::<IgnoredAny>(&text);
        prop_assert!(theirs.is_err() || skipped.is_ok(), "{:?}", text);
    }

    #[test]
    fn element_spans_equal_the_element_texts(values in prop::collection::vec(json(), 0..6)) {
        let texts: Vec<String> = values.iter().map(serde_json::Value::to_string).collect();
        let array = format!(" [ {} ] ", texts.join(" , "));
        let elements = Raw::json(&array).elements().unwrap();
        let spans: Vec<&str> = elements.iter().filter_map(|e| e.as_json()).collect();
        prop_assert_eq!(spans, texts);
    }
}
