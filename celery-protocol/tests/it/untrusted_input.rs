//! Untrusted input: no bytes cause a panic, a stack overflow or unbounded
//! memory use.

use celery_protocol::{Compression, Raw, Serializer, Value};
use proptest::prelude::*;
use serde::Deserialize;

use crate::codec::serializers;
use crate::values;

/// Reads bytes with every decoding method.
fn read_everything(serializer: Serializer, bytes: &[u8]) {
    let _ = serializer.decode::<Value>(bytes);
    let _ = serializer.decode::<serde::de::IgnoredAny>(bytes);
    let _ = serializer.decode::<(Vec<i64>, std::collections::HashMap<String, f64>)>(bytes);
    if let Ok(raw) = Raw::read(serializer, bytes) {
        let _ = raw.to_value();
        let _ = raw.is_null();
        for element in raw.elements().into_iter().flatten() {
            let _ = element.decode::<String>();
            let _ = element.entries();
        }
        for (_, value) in raw.entries().into_iter().flatten() {
            let _ = value.elements();
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for serializer in serializers() {
            read_everything(serializer, &bytes);
        }
        for compression in Compression::all() {
            let _ = compression.decompress(&bytes, 1 << 16);
        }
    }

    #[test]
    fn damaged_values_do_not_panic(
        value in values::with_text_keys(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let value = values::without_big_integers(value);
        for serializer in serializers() {
            let mut bytes = serializer.encode(&value).unwrap();
            for (position, byte) in &edits {
                let position = position.index(bytes.len());
                bytes[position] = *byte;
            }
            read_everything(serializer, &bytes);
            bytes.truncate(bytes.len() / 2);
            read_everything(serializer, &bytes);
        }
    }

    #[test]
    fn yaml_like_texts_do_not_panic(text in "[-\\[\\]{},:\"'!&*#|>%@~?a1. \n]{0,60}") {
        for serializer in serializers() {
            read_everything(serializer, text.as_bytes());
        }
    }

    #[test]
    fn truncated_compressed_bytes_are_rejected(
        content in prop::collection::vec(any::<u8>(), 1..300),
        cut in any::<prop::sample::Index>(),
    ) {
        for compression in compressions() {
            let compressed = compression.compress(&content).unwrap();
            prop_assert_eq!(&compression.decompress(&compressed, content.len()).unwrap(), &content);
            let cut = &compressed[..cut.index(compressed.len())];
            prop_assert!(compression.decompress(cut, 1 << 20).is_err(), "{:?}", compression);
        }
    }
}

/// The compressions whose features are enabled.
fn compressions() -> Vec<Compression> {
    let compressions = Compression::all();
    compressions
        .filter(|compression| compression.compress(b"").is_ok())
        .collect()
}

#[test]
fn compression_works_if_its_feature_is_on() {
    for (compression, is_on) in [
        (Compression::Zlib, cfg!(feature = "zlib")),
        (Compression::Bzip2, cfg!(feature = "bzip2")),
        (Compression::Lzma, cfg!(feature = "lzma")),
        (Compression::Brotli, cfg!(feature = "brotli")),
        (Compression::Zstd, cfg!(feature = "zstd")),
    ] {
        assert_eq!(
            compressions().contains(&compression),
            is_on,
            "{compression:?}"
        );
        if !is_on {
            let error = compression.decompress(b"", 1).unwrap_err();
            let expected = format!("cargo feature `{}`", compression.name());
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}

#[test]
fn decompression_bomb_stops_at_the_limit() {
    let zeros = vec![0; 4 << 20];
    for compression in compressions() {
        let bomb = compression.compress(&zeros).unwrap();
        assert!(bomb.len() < 1 << 13, "{compression:?}");
        let error = compression.decompress(&bomb, 1 << 20).unwrap_err();
        assert!(error.is_too_large(), "{error}");
        assert_eq!(
            compression.decompress(&bomb, zeros.len()).unwrap().len(),
            zeros.len()
        );
    }
}

#[test]
fn bytes_after_compressed_stream_are_rejected() {
    // Brotli's decoder does not report the end of its stream.
    for compression in compressions()
        .into_iter()
        .filter(|c| *c != Compression::Brotli)
    {
        let mut compressed = compression.compress(b"content").unwrap();
        compressed.extend_from_slice(b"more");
        let result = compression.decompress(&compressed, 100);
        assert!(result.is_err(), "{compression:?}");
    }
}

/// Runs a test on a thread with a stack of 2 MiB, the default of Rust threads.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(test)
        .unwrap();
    thread.join().unwrap();
}

fn nested(open: &str, close: &str, depth: usize) -> Vec<u8> {
    format!("{}1{}", open.repeat(depth), close.repeat(depth)).into_bytes()
}

#[derive(Debug, Deserialize)]
struct Node {
    #[allow(dead_code, reason = "only its depth matters")]
    n: Option<Box<Self>>,
}

#[test]
fn deep_json_is_rejected_without_stack_overflow() {
    on_a_small_stack(|| {
        for (open, close) in [("[", "]"), ("{\"n\":", "}"), ("[{\"n\":", "}]")] {
            let each = open.matches(['[', '{']).count();
            let read = |depth| {
                let text = nested(open, close, depth / each);
                Serializer::Json.decode::<Value>(&text).map(|value| {
                    assert_eq!(Serializer::Json.encode(&value).unwrap(), text);
                    let copy = Value::from_serialize(&value).unwrap();
                    assert_eq!(Value::deserialize(&copy).unwrap(), value);
                    format!("{value:?}").len()
                })
            };
            assert!(read(128).is_ok());
            for depth in [130, 1000, 100_000] {
                assert!(read(depth).unwrap_err().is_too_deep(), "{depth}");
            }
        }
        let chain = |depth: usize| {
            format!("{}null{}", "{\"n\":".repeat(depth), "}".repeat(depth)).into_bytes()
        };
        assert!(Serializer::Json.decode::<Node>(&chain(128)).is_ok());
        let error = Serializer::Json.decode::<Node>(&chain(129)).unwrap_err();
        assert!(error.is_too_deep());
    });
}

#[test]
fn raw_elements_are_skipped_to_a_thousand_levels() {
    on_a_small_stack(|| {
        for (open, close) in [("[", "]"), ("{\"n\":", "}")] {
            let text = |depth| {
                format!(
                    "[{}]",
                    String::from_utf8(nested(open, close, depth)).unwrap()
                )
            };
            assert!(Raw::json(&text(1000)).elements().is_ok());
            for depth in [1001, 1_000_000] {
                let deep = text(depth);
                let error = Raw::json(&deep).elements().unwrap_err();
                assert!(error.is_too_deep(), "{error}");
            }
        }
    });
}

#[test]
#[cfg(feature = "msgpack")]
fn deep_msgpack_is_rejected_without_stack_overflow() {
    on_a_small_stack(|| {
        for head in [&[0x91][..], &[0x81, 0xa1, b'n']] {
            let bytes = |depth: usize| [head.repeat(depth), vec![0xc0]].concat();
            let read = |depth| Serializer::MsgPack.decode::<Value>(&bytes(depth));
            assert!(read(100).is_ok());
            for depth in [130, 900, 1001, 1_000_000] {
                assert!(read(depth).unwrap_err().is_too_deep(), "{depth}");
            }
        }
        let deep = [vec![0x91; 1001], vec![0xc0]].concat();
        assert!(Raw::msgpack(&deep).elements().is_ok());
        let deeper = [vec![0x91; 1002], vec![0xc0]].concat();
        assert!(Raw::msgpack(&deeper).elements().unwrap_err().is_too_deep());
    });
}

#[test]
#[cfg(feature = "msgpack")]
fn false_length_allocates_no_memory() {
    for head in [
        &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
    ] {
        let read = Serializer::MsgPack.decode::<Value>(head);
        assert!(read.is_err());
        assert!(Raw::msgpack(head).elements().is_err());
        assert!(Raw::msgpack(head).entries().is_err());
    }
}

#[test]
#[cfg(feature = "yaml")]
fn deep_yaml_is_rejected_without_stack_overflow() {
    on_a_small_stack(|| {
        for (open, close) in [("[", "]"), ("{\"n\": ", "}")] {
            let read = |depth| Serializer::Yaml.decode::<Value>(&nested(open, close, depth));
            assert!(read(100).is_ok());
            for depth in [130, 1000, 3000] {
                let error = read(depth).unwrap_err();
                assert!(error.is_too_deep(), "{error}");
            }
        }
    });
}

#[test]
#[cfg(feature = "yaml")]
fn yaml_alias_expansion_is_limited() {
    let mut laughs = String::from("- &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n");
    for i in 1..9 {
        let alias = format!("*a{}", i - 1);
        laughs += &format!("- &a{i} [{}]\n", vec![alias; 9].join(", "));
    }
    assert!(Serializer::Yaml.decode::<Value>(laughs.as_bytes()).is_err());

    let long = format!(
        "- &a \"{}\"\n{}",
        "x".repeat(20_000),
        "- *a\n".repeat(2_000)
    );
    let error = Serializer::Yaml
        .decode::<Value>(long.as_bytes())
        .unwrap_err();
    assert!(error.is_too_large(), "{error}");
}

#[test]
fn many_equal_keys_are_read_in_linear_time() {
    let text = format!("{{{}\"last\":1}}", "\"k\":0,".repeat(200_000));
    let value: Value = Serializer::Json.decode(text.as_bytes()).unwrap();
    assert_eq!(value.as_map().map(celery_protocol::Map::len), Some(2));
    let distinct: Vec<String> = (0..100_000).map(|i| format!("\"{i}\":0")).collect();
    let text = format!("{{{}}}", distinct.join(","));
    let value: Value = Serializer::Json.decode(text.as_bytes()).unwrap();
    assert_eq!(value.as_map().map(celery_protocol::Map::len), Some(100_000));
}
