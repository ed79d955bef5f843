//! Values that msgpack supports and rejects.

use celery_protocol::{BigInt, Serializer, Value};
use serde::Serialize;

#[test]
fn msgpack_rejects_unsupported_values() {
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
fn sequence_of_unknown_length_is_written() {
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
