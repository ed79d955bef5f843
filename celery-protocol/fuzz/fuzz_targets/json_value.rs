//! Round trip of JSON values.

#![no_main]

use celery_protocol::{Raw, Serializer, Value};
use libfuzzer_sys::fuzz_target;

const SERIALIZER: Serializer = Serializer::Json;

fuzz_target!(|data: &[u8]| {
    if let Ok(raw) = Raw::read(SERIALIZER, data) {
        let _ = (raw.elements(), raw.entries());
    }
    let Ok(value) = SERIALIZER.decode::<Value>(data) else {
        return;
    };
    if looks_typed(&value) {
        return;
    }
    let Ok(written) = SERIALIZER.encode(&value) else {
        return;
    };
    let again = SERIALIZER
        .decode::<Value>(&written)
        .expect("an encoded value is decoded");
    let rewritten = SERIALIZER
        .encode(&again)
        .expect("a decoded value is encoded");
    assert_eq!(rewritten, written);
});

/// Returns whether a value contains a plain map with exactly the keys of a
/// typed value. Its encoded form is that of a typed value. Such maps result
/// from equal keys in the input.
fn looks_typed(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(looks_typed),
        Value::Map(map) => {
            let keys = map.contains_key("__type__") && map.contains_key("__value__");
            keys && map.len() == 2 || map.iter().any(|(_, item)| looks_typed(item))
        }
        _ => false,
    }
}
