//! JSON with the extensions of Python and kombu.

use celery_protocol::{BigInt, Map, Raw, Serializer, Value};

#[test]
fn integer_out_of_range_error_names_the_type() {
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
fn python_nan_and_infinities_are_read() {
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
fn json_keys_of_other_types_are_written_as_texts() {
    let map: Value = [
        (Value::Int(1), 1),
        (Value::Bool(true), 2),
        (Value::Null, 3),
        (Value::Float(1.5), 4),
    ]
    .into_iter()
    .collect::<Map>()
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
        let map: Map = [(key, 1)].into_iter().collect();
        assert!(Serializer::Json.encode(&map).is_err());
    }
}

#[test]
fn lone_surrogate_is_rejected_with_clear_error() {
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
fn json_error_names_offset_and_character() {
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
fn last_of_equal_json_keys_wins() {
    let value: Value = Serializer::Json.decode(br#"{"a":1,"b":2,"a":3}"#).unwrap();
    assert_eq!(value.get("a"), Some(&Value::Int(3)));
    assert_eq!(value.as_map().unwrap().len(), 2);
}
