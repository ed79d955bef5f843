//! JSON values: what is read is written, and reads the same.

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
        .expect("what was written is read");
    let rewritten = SERIALIZER.encode(&again).expect("what was read is written");
    assert_eq!(rewritten, written);
});

/// Whether a plain map has exactly the keys by which kombu knows a typed value,
/// which nobody can tell apart once it is written. Equal keys in the input make
/// such maps.
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
