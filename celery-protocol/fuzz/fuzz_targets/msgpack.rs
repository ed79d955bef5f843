//! Round trip of msgpack values.

#![no_main]

use celery_protocol::{Raw, Serializer, Value};
use libfuzzer_sys::fuzz_target;

const SERIALIZER: Serializer = Serializer::MsgPack;

fuzz_target!(|data: &[u8]| {
    if let Ok(raw) = Raw::read(SERIALIZER, data) {
        let _ = (raw.elements(), raw.entries());
    }
    let Ok(value) = SERIALIZER.decode::<Value>(data) else {
        return;
    };
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
