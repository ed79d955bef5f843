//! Values of one serializer: what is read is written, and reads the same.

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
        .expect("what was written is read");
    let rewritten = SERIALIZER.encode(&again).expect("what was read is written");
    assert_eq!(rewritten, written);
});
