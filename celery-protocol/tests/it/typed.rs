//! kombu's typed values in JSON.

use celery_protocol::{Extended, Map, Raw, Serializer, Value};
use serde::{Deserialize, Serialize};

fn decode(text: &str) -> Value {
    let read = Serializer::Json.decode(text.as_bytes());
    read.unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn typed_value_of_each_kind_is_read_and_written() {
    let cases: [(&str, Value); 7] = [
        (
            r#"{"__type__":"datetime","__value__":"2030-01-02T03:04:05.678901+00:00"}"#,
            Extended::datetime("2030-01-02T03:04:05.678901+00:00").into(),
        ),
        (
            r#"{"__type__":"date","__value__":"2030-01-02"}"#,
            Extended::date("2030-01-02").into(),
        ),
        (
            r#"{"__type__":"time","__value__":"03:04:05.678901"}"#,
            Extended::time("03:04:05.678901").into(),
        ),
        (
            r#"{"__type__":"decimal","__value__":"1.10"}"#,
            Extended::decimal("1.10").into(),
        ),
        (
            r#"{"__type__":"uuid","__value__":{"hex":"12345678123442348234123456789abc"}}"#,
            Extended::uuid("12345678-1234-4234-8234-123456789abc").into(),
        ),
        (
            r#"{"__type__":"bytes","__value__":"abc"}"#,
            Value::Bytes(b"abc".to_vec()),
        ),
        (
            r#"{"__type__":"base64","__value__":"/wA="}"#,
            Value::Bytes(vec![0xff, 0]),
        ),
    ];
    for (text, value) in cases {
        assert_eq!(decode(text), value);
        let written = Serializer::Json.encode(&value).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), text);
    }
}

#[test]
fn older_typed_value_forms_are_read() {
    assert_eq!(
        decode(r#"{"__type__":"uuid","__value__":"12345678-1234-4234-8234-123456789abc"}"#),
        Extended::uuid("12345678123442348234123456789abc").into()
    );
    assert_eq!(
        decode(r#" { "__value__" : "2030-01-02" , "__type__" : "date" } "#),
        Extended::date("2030-01-02").into()
    );
    assert_eq!(
        decode(r#"{"__type__":"bytes","__value__":"\u00e9"}"#),
        Value::Bytes("é".as_bytes().to_vec())
    );
}

#[test]
fn map_with_other_keys_is_not_a_typed_value() {
    for text in [
        r#"{"__type__":"date"}"#,
        r#"{"__type__":"date","__value__":"x","more":1}"#,
        r#"{"__type__":"date","__type__":"date"}"#,
        r#"{"__value__":1}"#,
    ] {
        assert!(decode(text).as_map().is_some(), "{text}");
    }
}

#[test]
fn unknown_typed_value_is_rejected() {
    for text in [
        r#"{"__type__":"complex","__value__":"1j"}"#,
        r#"[1, {"__type__":"date","__value__":5}]"#,
        r#"{"__type__":5,"__value__":5}"#,
        r#"{"__type__":"base64","__value__":"!"}"#,
        r#"{"__type__":"uuid","__value__":{"int":5}}"#,
        r#"{"__type__":{"__type__":1,"__value__":2},"__value__":{}}"#,
    ] {
        assert!(
            Serializer::Json.decode::<Value>(text.as_bytes()).is_err(),
            "{text}"
        );
        assert!(Raw::json(&format!("[{text}]")).elements().is_ok(), "{text}");
    }
}

#[test]
fn typed_values_deserialize_into_text_and_bytes() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct WithTypedValues {
        date: String,
        id: String,
        bytes: Vec<u8>,
        maybe: Option<String>,
    }

    let text = r#"{
        "date": {"__type__":"date","__value__":"2030-01-02"},
        "id": {"__type__":"uuid","__value__":{"hex":"12345678123442348234123456789abc"}},
        "bytes": {"__type__":"base64","__value__":"/wA="},
        "maybe": {"__type__":"decimal","__value__":"1.10"}
    }"#;
    let expected = WithTypedValues {
        date: "2030-01-02".to_owned(),
        id: "12345678123442348234123456789abc".to_owned(),
        bytes: vec![0xff, 0],
        maybe: Some("1.10".to_owned()),
    };
    assert_eq!(
        Serializer::Json
            .decode::<WithTypedValues>(text.as_bytes())
            .unwrap(),
        expected
    );
    assert_eq!(
        Raw::json(text)
            .into_owned()
            .decode::<WithTypedValues>()
            .unwrap(),
        expected
    );
    assert_eq!(
        WithTypedValues::deserialize(&decode(text)).unwrap(),
        expected
    );
    let borrowed: &str = Serializer::Json
        .decode(br#"{"__type__":"date","__value__":"2030-01-02"}"#)
        .unwrap();
    assert_eq!(borrowed, "2030-01-02");
}

#[test]
fn struct_reads_typed_value_as_map() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Tagged {
        __type__: String,
        __value__: i64,
    }

    let text = br#"{"__type__":"own","__value__":5}"#;
    let tagged: Tagged = Serializer::Json.decode(text).unwrap();
    assert_eq!((tagged.__type__.as_str(), tagged.__value__), ("own", 5));
}

#[test]
fn extended_value_keeps_its_text_in_other_serializers() {
    let value: Value = [("when", Extended::date("2030-01-02"))]
        .into_iter()
        .collect::<Map>()
        .into();
    for serializer in crate::codec::serializers() {
        let bytes = serializer.encode(&value).unwrap();
        let when: Extended = match serializer.decode::<Value>(&bytes).unwrap().get("when") {
            Some(Value::Extended(extended)) => extended.clone(),
            Some(Value::Str(text)) => Extended::date(text.as_str()),
            other => panic!("{other:?}"),
        };
        assert_eq!(when, Extended::date("2030-01-02"));
    }
}

/// A Python dict keeps the last of equal keys, before kombu converts it.
#[test]
fn typed_value_uses_last_of_equal_keys() {
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
