//! What is written is read back, in every serializer.

use std::collections::{BTreeMap, HashMap};

use celery_protocol::{BigInt, DecodeError, Extended, Raw, Serializer, Value};
use proptest::prelude::*;
use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Serialize};

use crate::values::{self, without_big_integers, without_types};

/// The serializers whose features are on.
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
    fn json_keeps_every_value(value in values::with_text_keys()) {
        prop_assert_eq!(&round_trip(Serializer::Json, &value), &value);
    }

    #[test]
    #[cfg(feature = "msgpack")]
    fn msgpack_keeps_values_as_texts(value in values::with_any_keys()) {
        let value = without_big_integers(without_types(value));
        prop_assert_eq!(&round_trip(Serializer::MsgPack, &value), &value);
    }

    #[test]
    #[cfg(feature = "yaml")]
    fn yaml_keeps_values_as_texts(value in values::with_any_keys()) {
        let value = without_types(value);
        prop_assert_eq!(&round_trip(Serializer::Yaml, &value), &value);
    }

    #[test]
    fn a_value_made_of_a_value_is_the_same(value in values::with_any_keys()) {
        prop_assert_eq!(&Value::from_serialize(&value).unwrap(), &value);
        prop_assert_eq!(&Value::deserialize(&value).unwrap(), &value);
        let copy = Value::deserialize(value.clone().into_deserializer()).unwrap();
        prop_assert_eq!(&copy, &value);
    }

    #[test]
    fn raw_parts_are_the_parts(value in prop::collection::vec(values::with_text_keys(), 0..5)) {
        for serializer in serializers() {
            let value: Vec<Value> = match serializer {
                Serializer::Json => value.clone(),
                _ => value.iter().cloned().map(|v| without_big_integers(without_types(v))).collect(),
            };
            let raw = Raw::encode(serializer, &value).unwrap();
            let elements = raw.elements().unwrap();
            let decoded: Vec<Value> = elements.iter().map(|e| e.to_value().unwrap()).collect();
            prop_assert_eq!(&decoded, &value);

            // Put into any serializer, they say the same.
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
    fn raw_entries_are_the_entries(
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
fn types_of_every_shape_are_read_back() {
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
fn texts_are_borrowed() {
    let text: &str = Serializer::Json.decode(br#""borrowed""#).unwrap();
    assert_eq!(text, "borrowed");
    let raw = Raw::json(r#"["borrowed"]"#);
    assert_eq!(raw.decode::<Vec<&str>>().unwrap(), ["borrowed"]);
    let value = Value::from("borrowed");
    assert_eq!(<&str>::deserialize(&value).unwrap(), "borrowed");
}

#[test]
fn integers_name_the_limit_they_pass() {
    let limits = [
        ("300", Serializer::Json.decode::<u8>(b"300").map(drop), "u8"),
        ("-1", Serializer::Json.decode::<u64>(b"-1").map(drop), "u64"),
        (
            "18446744073709551616",
            Serializer::Json
                .decode::<u64>(b"18446744073709551616")
                .map(drop),
            "u64",
        ),
        (
            "9223372036854775808",
            Serializer::Json
                .decode::<i64>(b"9223372036854775808")
                .map(drop),
            "i64",
        ),
    ];
    for (number, result, limit) in limits {
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains(number) && message.contains(limit),
            "{message}"
        );
    }
    let wide: i128 = Serializer::Json.decode(b"-18446744073709551617").unwrap();
    assert_eq!(wide, -18_446_744_073_709_551_617);
    let wide: u128 = Serializer::Json
        .decode(u128::MAX.to_string().as_bytes())
        .unwrap();
    assert_eq!(wide, u128::MAX);
    let float: f64 = Serializer::Json.decode(b"18446744073709551616").unwrap();
    assert_eq!(float, 18_446_744_073_709_551_616.0);
    let value: Value = Serializer::Json.decode(b"-18446744073709551616").unwrap();
    assert!(matches!(value, Value::BigInt(_)));
    let digits: BigInt = Serializer::Json.decode(b"-18446744073709551616").unwrap();
    assert_eq!(digits.as_str(), "-18446744073709551616");
}

#[test]
fn python_floats_are_read() {
    assert!(Serializer::Json.decode::<f64>(b"NaN").unwrap().is_nan());
    assert_eq!(
        Serializer::Json.decode::<f64>(b"-Infinity").unwrap(),
        f64::NEG_INFINITY
    );
    assert_eq!(
        Serializer::Json.decode::<f32>(b"Infinity").unwrap(),
        f32::INFINITY
    );
    assert_eq!(
        Serializer::Json
            .encode(&[f64::NAN, -f64::INFINITY])
            .unwrap(),
        b"[NaN,-Infinity]"
    );
    let raw = Raw::json("[NaN, [-Infinity]]");
    assert_eq!(raw.elements().unwrap()[1].as_json(), Some("[-Infinity]"));
}

#[test]
fn keys_that_are_no_texts_become_texts_in_json() {
    let map: Value = [
        (Value::Int(1), 1),
        (Value::Bool(true), 2),
        (Value::Null, 3),
        (Value::Float(1.5), 4),
    ]
    .into_iter()
    .collect::<celery_protocol::Map>()
    .into();
    assert_eq!(
        Serializer::Json.encode(&map).unwrap(),
        br#"{"1":1,"true":2,"null":3,"1.5":4}"#
    );
    for key in [
        Value::Bytes(vec![1]),
        Value::Array(vec![]),
        Value::Map([(1, 1)].into_iter().collect()),
    ] {
        let map: celery_protocol::Map = [(key, 1)].into_iter().collect();
        assert!(Serializer::Json.encode(&map).is_err());
    }
}

#[test]
fn lone_surrogates_are_a_clear_error() {
    for text in [
        r#""\ud800""#,
        r#""\udc00""#,
        r#""\ud800\ue000""#,
        r#""\ud800\ud800""#,
        r#""a\ud800z""#,
    ] {
        let error = Serializer::Json
            .decode::<Value>(text.as_bytes())
            .unwrap_err();
        assert!(
            error.to_string().contains("lone surrogate"),
            "{text}: {error}"
        );
        assert!(
            Raw::json(&format!("[1,{text}]")).elements().is_ok(),
            "{text}"
        );
    }
    let paired: String = Serializer::Json.decode(br#""\ud83d\ude00""#).unwrap();
    assert_eq!(paired, "\u{1f600}");
}

#[test]
fn errors_name_place_and_finding() {
    let decode = |text: &str| {
        Serializer::Json
            .decode::<Value>(text.as_bytes())
            .unwrap_err()
    };
    assert_eq!(
        decode("[1, 2").to_string(),
        "cannot read value as application/json at byte 5: expected `,` or `]`, found the end"
    );
    assert_eq!(decode("[1] 2").offset(), Some(4));
    assert_eq!(decode("{\"a\" 1}").offset(), Some(5));
    assert_eq!(decode("\"\u{1}\"").offset(), Some(1));
    let invalid = Serializer::Json.decode::<Value>(b"\"\xff\"").unwrap_err();
    assert_eq!(invalid.offset(), Some(1));
    let short = Serializer::Json.decode::<(i64, i64)>(b"[1]").unwrap_err();
    assert!(short.to_string().contains("length 1"), "{short}");
    let long = Serializer::Json
        .decode::<(i64, i64)>(b"[1,2,3]")
        .unwrap_err();
    assert!(long.to_string().contains("more elements"), "{long}");
    for bad in [
        "",
        " ",
        "nul",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "+1",
        "[1,]",
        "[,]",
        "{,}",
        "{\"a\":1,}",
        "{1:2}",
        "'a'",
        "\"\\x\"",
        "\"\\u12g4\"",
        "NaNa",
        "-NaN",
        "[",
        "{",
        "]",
        "\u{feff}1",
    ] {
        assert!(
            Serializer::Json.decode::<Value>(bad.as_bytes()).is_err(),
            "{bad:?}"
        );
        assert!(
            Raw::json(&format!("[{bad}]")).elements().is_err() || bad.trim().is_empty(),
            "[{bad:?}]"
        );
    }
}

#[test]
fn last_of_equal_keys_wins() {
    let value: Value = Serializer::Json.decode(br#"{"a":1,"b":2,"a":3}"#).unwrap();
    assert_eq!(value.get("a"), Some(&Value::Int(3)));
    assert_eq!(value.as_map().unwrap().len(), 2);
}

#[test]
#[cfg(feature = "msgpack")]
fn msgpack_refuses_what_it_cannot_hold() {
    let big: BigInt = "123456789012345678901234567890".parse().unwrap();
    let error = Serializer::MsgPack.encode(&big).unwrap_err();
    assert!(
        error.to_string().contains("integer beyond 64 bits"),
        "{error}"
    );
    assert!(Serializer::MsgPack.encode(&i128::MAX).is_err());
    // An extension, here msgpack's own timestamp.
    let error = Serializer::MsgPack
        .decode::<Value>(&[0xd6, 0xff, 0, 0, 0, 0])
        .unwrap_err();
    assert!(error.to_string().contains("extension"), "{error}");
    assert!(
        Serializer::MsgPack.decode::<Value>(&[0x01, 0x02]).is_err(),
        "trailing byte"
    );
    let bytes: Vec<u8> = Serializer::MsgPack.decode(&[0xc4, 2, 1, 2]).unwrap();
    assert_eq!(bytes, [1, 2]);
}

#[test]
#[cfg(feature = "msgpack")]
fn sequences_of_unknown_length_are_written() {
    struct Unsized;

    impl Serialize for Unsized {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq([1, 2, 3].iter().filter(|n| **n != 2))
        }
    }

    let bytes = Serializer::MsgPack.encode(&Unsized).unwrap();
    assert_eq!(
        Serializer::MsgPack.decode::<Vec<u8>>(&bytes).unwrap(),
        [1, 3]
    );
}

#[test]
#[cfg(feature = "yaml")]
fn yaml_is_read_as_python_means_it() {
    let text = "
- [[2, 3], {}]
- !!binary |
  /wBhYmNk
  ZWY=
- plain text
- 1.0e+16
- 12e5
- [0o17, +.5, -.inf, .5, 1.5e3, 15]
- .nan
- 123456789012345678901234567890123456789012345678901234567890
- \"\\xE9\"
- !!str 5
- 2030-01-02 03:04:05
- &shared [1]
- *shared
- 'see !!binary'
";
    let value: Value = Serializer::Yaml.decode(text.as_bytes()).unwrap();
    let big = "123456789012345678901234567890123456789012345678901234567890";
    let expected = Value::Array(vec![
        Value::Array(vec![vec![2, 3].into(), celery_protocol::Map::new().into()]),
        Value::Bytes(b"\xff\0abcdef".to_vec()),
        "plain text".into(),
        1e16.into(),
        "12e5".into(),
        Value::Array(vec![
            "0o17".into(),
            "+.5".into(),
            f64::NEG_INFINITY.into(),
            0.5.into(),
            "1.5e3".into(),
            15.into(),
        ]),
        f64::NAN.into(),
        big.parse::<BigInt>().unwrap().into(),
        "é".into(),
        "5".into(),
        "2030-01-02 03:04:05".into(),
        vec![1].into(),
        vec![1].into(),
        "see !!binary".into(),
    ]);
    assert_eq!(value, expected);
}

/// Python's dict keeps the last of equal keys before kombu looks at it.
#[test]
fn last_of_equal_keys_makes_the_typed_value() {
    let cases = [
        r#"{"__type__":"date","__value__":5,"__value__":"2030-01-02"}"#,
        r#"{"__value__":"x","__type__":"bytes","__value__":"2030-01-02","__type__":"date"}"#,
    ];
    for text in cases {
        let value: Value = Serializer::Json.decode(text.as_bytes()).unwrap();
        assert_eq!(value, Extended::date("2030-01-02").into(), "{text}");
        let date: String = Serializer::Json.decode(text.as_bytes()).unwrap();
        assert_eq!(date, "2030-01-02", "{text}");
    }
    for text in [
        r#"{"__type__":"date","__type__":"time"}"#,
        r#"{"__value__":1,"__value__":2}"#,
        r#"{"__type__":"date","__value__":"x","__value__":"y","more":1}"#,
    ] {
        let value: Value = Serializer::Json.decode(text.as_bytes()).unwrap();
        assert!(value.as_map().is_some(), "{text}");
    }
    let broken = br#"{"__type__":"date","__value__":"2030-01-02",}"#;
    assert!(Serializer::Json.decode::<Value>(broken).is_err());
}

#[test]
#[cfg(feature = "yaml")]
fn yaml_keys_of_any_length_are_read_back() {
    // Parsers take up to 1,024 characters for a key, with its quotes, and more
    // only after a question mark.
    for length in [10, 600, 1021, 1022, 1023, 1024, 1025, 5000] {
        for character in ["k", "é", "\""] {
            let key = character.repeat(length);
            let key_length = Serializer::Yaml.encode(&key).unwrap().len();
            let inner: celery_protocol::Map =
                [("a", 1), (&*key, 2), ("b", 3)].into_iter().collect();
            let outer: celery_protocol::Map = [(key, Value::from(inner))].into_iter().collect();
            let value = Value::Array(vec![outer.into(), 4.into()]);
            let text = Serializer::Yaml.encode(&value).unwrap();
            let read = Serializer::Yaml.decode::<Value>(&text);
            assert_eq!(read, Ok(value), "{length} times {character}");
            let is_marked = text.windows(3).any(|part| part == b"{? ");
            assert_eq!(is_marked, key_length > 1024, "{length} times {character}");
        }
    }
}

#[test]
#[cfg(feature = "yaml")]
fn yaml_keys_that_look_alike_are_kept() {
    let value: Value = Serializer::Yaml
        .decode(b"{1e5: 1, 1E5: 2, a: 3, a: 4}")
        .unwrap();
    let expected: celery_protocol::Map = [("1e5", 1), ("1E5", 2), ("a", 4)].into_iter().collect();
    assert_eq!(value, expected.into());
}

#[test]
#[cfg(feature = "yaml")]
fn yaml_tags_are_read_in_any_document() {
    for start in [
        "",
        "# a comment\n",
        "--- ",
        "# c\n---\n",
        "%YAML 1.1\n---\n",
    ] {
        let text = format!("{start}!!binary \"aGk=\"\n");
        let read = Serializer::Yaml.decode::<Value>(text.as_bytes());
        assert_eq!(read, Ok(Value::Bytes(b"hi".to_vec())), "{text:?}");
    }
    for text in ["!!python/object/apply:os.system ['x']", "!own 1"] {
        let error = Serializer::Yaml
            .decode::<Value>(text.as_bytes())
            .unwrap_err();
        assert!(error.to_string().contains("unknown tag"), "{error}");
    }
}

#[test]
fn serializers_without_their_feature_name_it() {
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
fn raw_parts_can_be_carried_inside_types() {
    #[derive(Serialize, Deserialize)]
    struct Carrier<'a> {
        #[serde(borrow)]
        part: Raw<'a>,
        rest: u8,
    }

    let text = r#"{"part": [1,  NaN, "\ud800"], "rest": 7}"#;
    let carrier: Carrier<'_> = Serializer::Json.decode(text.as_bytes()).unwrap();
    assert_eq!(carrier.part.as_json(), Some(r#"[1,  NaN, "\ud800"]"#));
    assert_eq!(
        Serializer::Json.encode(&carrier).unwrap(),
        br#"{"part":[1,  NaN, "\ud800"],"rest":7}"#
    );
    for serializer in serializers() {
        let bytes = serializer
            .encode(&Carrier {
                part: Raw::json("[1, 2]"),
                rest: 7,
            })
            .unwrap();
        let carrier: Carrier<'_> = serializer.decode(&bytes).unwrap();
        assert_eq!(
            carrier.part.decode::<Vec<u8>>(),
            Ok(vec![1, 2]),
            "{serializer:?}"
        );
    }
    let error: DecodeError = Raw::json("[1, 2").decode::<Value>().unwrap_err();
    assert_eq!(error.content_type(), Some("application/json"));
}
