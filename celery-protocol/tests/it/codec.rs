//! Round trips of values and types in every serializer.

use std::collections::{BTreeMap, HashMap};

use celery_protocol::{DecodeError, Extended, Raw, Serializer, Value};
use proptest::prelude::*;
use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Serialize};

use crate::values::{self, without_big_integers, without_types};

/// The serializers whose features are enabled.
pub(crate) fn serializers() -> Vec<Serializer> {
    let mut serializers = vec![Serializer::Json];
    if cfg!(feature = "msgpack") {
        serializers.push(Serializer::MsgPack);
    }
    if cfg!(feature = "yaml") {
        serializers.push(Serializer::Yaml);
    }
    serializers
}

fn round_trip(serializer: Serializer, value: &Value) -> Value {
    let bytes = serializer.encode(value).unwrap();
    let read = serializer.decode(&bytes);
    read.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&bytes)))
}

proptest! {
    #[test]
    fn json_round_trip_keeps_every_value(value in values::with_text_keys()) {
        prop_assert_eq!(&round_trip(Serializer::Json, &value), &value);
    }

    #[test]
    #[cfg(feature = "msgpack")]
    fn msgpack_round_trip_keeps_values(value in values::with_any_keys()) {
        let value = without_big_integers(without_types(value));
        prop_assert_eq!(&round_trip(Serializer::MsgPack, &value), &value);
    }

    #[test]
    #[cfg(feature = "yaml")]
    fn yaml_round_trip_keeps_values(value in values::with_any_keys()) {
        let value = without_types(value);
        prop_assert_eq!(&round_trip(Serializer::Yaml, &value), &value);
    }

    #[test]
    fn value_converted_from_value_is_equal(value in values::with_any_keys()) {
        prop_assert_eq!(&Value::from_serialize(&value).unwrap(), &value);
        prop_assert_eq!(&Value::deserialize(&value).unwrap(), &value);
        let copy = Value::deserialize(value.clone().into_deserializer()).unwrap();
        prop_assert_eq!(&copy, &value);
    }

    #[test]
    fn raw_elements_decode_to_the_elements(value in prop::collection::vec(values::with_text_keys(), 0..5)) {
        for serializer in serializers() {
            let value: Vec<Value> = match serializer {
                Serializer::Json => value.clone(),
                _ => value.iter().cloned().map(|v| without_big_integers(without_types(v))).collect(),
            };
            let raw = Raw::encode(serializer, &value).unwrap();
            let elements = raw.elements().unwrap();
            let decoded: Vec<Value> = elements.iter().map(|e| e.to_value().unwrap()).collect();
            prop_assert_eq!(&decoded, &value);

            // The elements decode to the same values from every serializer.
            for target in serializers() {
                let mut expected = value.clone();
                if target != Serializer::Json {
                    expected = expected.into_iter().map(without_types).collect();
                }
                let fits = |v: &Value| without_big_integers(v.clone()) == *v;
                if target == Serializer::MsgPack && !expected.iter().all(fits) {
                    prop_assert!(target.encode(&elements.as_slice()).is_err());
                    continue;
                }
                let bytes = target.encode(&elements.as_slice()).unwrap();
                let read: Vec<Value> = target.decode(&bytes).unwrap();
                prop_assert_eq!(&read, &expected);
            }
        }
    }

    #[test]
    fn raw_entries_decode_to_the_entries(
        map in prop::collection::btree_map(values::text(), any::<i64>(), 0..5)
    ) {
        for serializer in serializers() {
            let raw = Raw::encode(serializer, &map).unwrap();
            let entries = raw.entries().unwrap();
            let read: BTreeMap<String, i64> = entries
                .iter()
                .map(|(key, value)| (key.to_string(), value.decode().unwrap()))
                .collect();
            prop_assert_eq!(&read, &map);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    unit: (),
    boolean: bool,
    numbers: (i8, u8, i16, u16, i32, u32, i64, u64),
    wide: (i128, u128),
    floats: (f32, f64),
    character: char,
    text: String,
    none: Option<u8>,
    some: Option<u8>,
    newtype: Newtype,
    variants: Vec<Shape>,
    numbered: HashMap<i64, String>,
    flagged: BTreeMap<bool, u8>,
    by_shape: BTreeMap<Side, u8>,
    bytes: Vec<u8>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(Vec<u32>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle(f64),
    Line(i32, i32),
    Box { width: u8, height: u8 },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Side {
    Left,
    Right,
}

fn everything() -> Everything {
    Everything {
        unit: (),
        boolean: true,
        numbers: (-8, 8, -16, 16, -32, 32, i64::MIN, u64::MAX),
        wide: (-5, 5),
        floats: (0.1, 1e300),
        character: 'é',
        text: "a \"b\" \n \u{1f600}".to_owned(),
        none: None,
        some: Some(1),
        newtype: Newtype(vec![1, 2, 3]),
        variants: vec![
            Shape::Point,
            Shape::Circle(1.5),
            Shape::Line(1, -1),
            Shape::Box {
                width: 2,
                height: 3,
            },
        ],
        numbered: [(-1, "minus one".to_owned())].into(),
        flagged: [(true, 1), (false, 0)].into(),
        by_shape: [(Side::Left, 1), (Side::Right, 2)].into(),
        bytes: vec![1, 2, 255],
        rest: [
            ("date".to_owned(), Extended::date("2030-01-02").into()),
            ("list".to_owned(), vec![1, 2].into()),
        ]
        .into(),
    }
}

#[test]
fn struct_of_every_type_is_read_back() {
    let everything = everything();
    for serializer in serializers() {
        let bytes = serializer.encode(&everything).unwrap();
        let mut read: Everything = serializer.decode(&bytes).unwrap();
        if serializer != Serializer::Json {
            assert_eq!(read.rest["date"], Value::from("2030-01-02"));
        }
        // serde's flattening keeps only the text of a typed value.
        read.rest
            .insert("date".to_owned(), Extended::date("2030-01-02").into());
        assert_eq!(read, everything, "{serializer:?}");

        let raw = Raw::encode(serializer, &everything).unwrap();
        let mut read: Everything = raw.decode().unwrap();
        read.rest
            .insert("date".to_owned(), Extended::date("2030-01-02").into());
        assert_eq!(read, everything, "{serializer:?}, owned");

        let value = raw.to_value().unwrap();
        let mut read = Everything::deserialize(&value).unwrap();
        read.rest
            .insert("date".to_owned(), Extended::date("2030-01-02").into());
        assert_eq!(read, everything, "{serializer:?}, from a value");
    }
}

#[test]
fn text_is_borrowed_from_input() {
    let text: &str = Serializer::Json.decode(br#""borrowed""#).unwrap();
    assert_eq!(text, "borrowed");
    let raw = Raw::json(r#"["borrowed"]"#);
    assert_eq!(raw.decode::<Vec<&str>>().unwrap(), ["borrowed"]);
    let value = Value::from("borrowed");
    assert_eq!(<&str>::deserialize(&value).unwrap(), "borrowed");
}

#[test]
fn disabled_serializer_error_names_the_feature() {
    for serializer in [Serializer::MsgPack, Serializer::Yaml] {
        if serializers().contains(&serializer) {
            continue;
        }
        let expected = format!("cargo feature `{}`", serializer.name());
        let written = serializer.encode(&1).unwrap_err().to_string();
        assert!(written.contains(&expected), "{written}");
        let read = serializer.decode::<Value>(b"1").unwrap_err().to_string();
        assert!(read.contains(&expected), "{read}");
    }
}

#[test]
fn raw_field_of_struct_is_copied() {
    #[derive(Serialize, Deserialize)]
    struct WithRaw<'a> {
        #[serde(borrow)]
        part: Raw<'a>,
        rest: u8,
    }

    let text = r#"{"part": [1,  NaN, "\ud800"], "rest": 7}"#;
    let decoded: WithRaw<'_> = Serializer::Json.decode(text.as_bytes()).unwrap();
    assert_eq!(decoded.part.as_json(), Some(r#"[1,  NaN, "\ud800"]"#));
    assert_eq!(
        Serializer::Json.encode(&decoded).unwrap(),
        br#"{"part":[1,  NaN, "\ud800"],"rest":7}"#
    );
    for serializer in serializers() {
        let bytes = serializer
            .encode(&WithRaw {
                part: Raw::json("[1, 2]"),
                rest: 7,
            })
            .unwrap();
        let decoded: WithRaw<'_> = serializer.decode(&bytes).unwrap();
        assert_eq!(
            decoded.part.decode::<Vec<u8>>(),
            Ok(vec![1, 2]),
            "{serializer:?}"
        );
    }
    let error: DecodeError = Raw::json("[1, 2").decode::<Value>().unwrap_err();
    assert_eq!(error.content_type(), Some("application/json"));
}
