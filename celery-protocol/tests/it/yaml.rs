//! YAML as Python reads and writes it.

use celery_protocol::{BigInt, Map, Serializer, Value};

#[test]
fn yaml_is_read_as_in_python() {
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
        Value::Array(vec![vec![2, 3].into(), Map::new().into()]),
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

#[test]
fn yaml_key_of_any_length_is_read_back() {
    // Parsers take up to 1,024 characters for a key, with its quotes, and more
    // only after a question mark.
    for length in [10, 600, 1021, 1022, 1023, 1024, 1025, 5000] {
        for character in ["k", "é", "\""] {
            let key = character.repeat(length);
            let key_length = Serializer::Yaml.encode(&key).unwrap().len();
            let inner: Map = [("a", 1), (&*key, 2), ("b", 3)].into_iter().collect();
            let outer: Map = [(key, Value::from(inner))].into_iter().collect();
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
fn yaml_keys_of_equal_numbers_stay_distinct() {
    let value: Value = Serializer::Yaml
        .decode(b"{1e5: 1, 1E5: 2, a: 3, a: 4}")
        .unwrap();
    let expected: Map = [("1e5", 1), ("1E5", 2), ("a", 4)].into_iter().collect();
    assert_eq!(value, expected.into());
}

#[test]
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
