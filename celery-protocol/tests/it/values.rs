//! Arbitrary values for the property tests.

use celery_protocol::{BigInt, Extended, Map, Value};
use proptest::prelude::*;

/// Strategy for values whose map keys are texts.
pub(crate) fn with_text_keys() -> impl Strategy<Value = Value> {
    nested(text().prop_map(Value::Str).boxed())
}

/// Strategy for values whose map keys are scalars other than floats, which have
/// several encodings.
pub(crate) fn with_any_keys() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        4 => text().prop_map(Value::Str),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    nested(key.boxed())
}

/// Replaces typed values such as dates by their texts, which is what
/// serializers other than JSON preserve.
pub(crate) fn without_types(value: Value) -> Value {
    match value {
        Value::Extended(extended) => extended.as_str().into(),
        Value::Array(elements) => elements.into_iter().map(without_types).collect(),
        Value::Map(map) => {
            let entries = map
                .into_iter()
                .map(|(key, value)| (key, without_types(value)));
            entries.collect::<Map>().into()
        }
        other => other,
    }
}

/// Replaces integers beyond 64 bits, which msgpack rejects, by null.
pub(crate) fn without_big_integers(value: Value) -> Value {
    match value {
        Value::BigInt(_) => Value::Null,
        Value::Array(elements) => elements.into_iter().map(without_big_integers).collect(),
        Value::Map(map) => {
            let entries = map
                .into_iter()
                .map(|(key, value)| (key, without_big_integers(value)));
            entries.collect::<Map>().into()
        }
        other => other,
    }
}

fn nested(key: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    scalar().prop_recursive(5, 48, 8, move |inner| {
        let entries = prop::collection::vec((key.clone(), inner.clone()), 0..8);
        prop_oneof![
            prop::collection::vec(inner, 0..8).prop_map(Value::from),
            entries.prop_map(|entries| entries.into_iter().collect::<Map>().into()),
        ]
    })
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "-?[1-9][0-9]{19,60}".prop_map(|digits| digits.parse::<BigInt>().unwrap().into()),
        float().prop_map(Value::from),
        text().prop_map(Value::Str),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
        extended().prop_map(Value::from),
    ]
}

fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_map(|value| if value.is_nan() { f64::NAN } else { value }),
        any::<i32>().prop_map(f64::from),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(-0.0),
    ]
}

/// Strategy for texts of any characters, and texts that look like other values.
pub(crate) fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z_]{1,12}",
        "[\"\\\\\u{0}-\u{1f}\u{7f}-\u{a0}\u{2028}\u{feff}\u{ffff}é\u{1f600}]{0,12}",
        "[-+.0-9eExo_:~!&*#|>%@`'?, ]{0,12}",
        prop::sample::select(vec![
            "",
            "null",
            "true",
            "yes",
            "~",
            ".nan",
            "NaN",
            "1e5",
            "2030-01-02",
            "<<",
            "!!binary",
        ])
        .prop_map(str::to_owned),
    ]
}

fn extended() -> impl Strategy<Value = Extended> {
    prop_oneof![
        text().prop_map(Extended::datetime),
        text().prop_map(Extended::date),
        text().prop_map(Extended::time),
        text().prop_map(Extended::decimal),
        "[0-9a-f]{32}".prop_map(Extended::uuid),
    ]
}
