//! Encoding of the body of protocol 2, and of the arguments in both protocols.

use serde::Serialize;

use crate::codec::Serializer;
use crate::embed::{self, Embed};
use crate::error::EncodeError;
use crate::raw::Raw;

/// Writes the body of protocol 2.
///
/// `args` must serialize to an array and `kwargs` to a map with text keys; `()`
/// means no arguments in both.
///
/// ```
/// use celery_protocol::{Embed, Serializer, encode_body};
///
/// let body = encode_body(Serializer::Json, &(2, 3), &(), &Embed::default())?;
/// assert!(body.starts_with(b"[[2,3],{},{"));
/// # Ok::<(), celery_protocol::EncodeError>(())
/// ```
///
/// # Errors
///
/// Fails if the arguments have another shape, or if the serializer cannot
/// represent them.
#[inline]
pub fn encode_body<A, K>(
    serializer: Serializer,
    args: &A,
    kwargs: &K,
    embed: &Embed<'_>,
) -> Result<Vec<u8>, EncodeError>
where
    A: Serialize + ?Sized,
    K: Serialize + ?Sized,
{
    let syntax = ArraySyntax::of(serializer);
    let mut out = Vec::with_capacity(INITIAL_CAPACITY);
    out.extend_from_slice(syntax.open);
    write_args(serializer, &mut out, args)?;
    out.extend_from_slice(syntax.separator);
    write_kwargs(serializer, &mut out, kwargs)?;
    out.extend_from_slice(syntax.separator);
    write_embed(serializer, &mut out, embed)?;
    out.extend_from_slice(syntax.close);
    Ok(out)
}

/// The initial capacity of the buffer for a body. Most calls have a few small
/// arguments; the buffer grows for larger bodies.
pub(crate) const INITIAL_CAPACITY: usize = 256;

/// The bytes around and between the three elements of a body.
struct ArraySyntax {
    open: &'static [u8],
    separator: &'static [u8],
    close: &'static [u8],
}

impl ArraySyntax {
    #[inline]
    fn of(serializer: Serializer) -> Self {
        match serializer {
            Serializer::Json | Serializer::Yaml => Self {
                open: b"[",
                separator: if serializer == Serializer::Json {
                    b","
                } else {
                    b", "
                },
                close: b"]",
            },
            // A "fixarray" of three, whose elements follow without separators.
            Serializer::MsgPack => Self {
                open: b"\x93",
                separator: b"",
                close: b"",
            },
        }
    }
}

/// Writes positional arguments, which serialize to an array, or to null if
/// there are none.
#[inline]
pub(crate) fn write_args<A: Serialize + ?Sized>(
    serializer: Serializer,
    out: &mut Vec<u8>,
    args: &A,
) -> Result<(), EncodeError> {
    let start = out.len();
    serializer
        .encode_into(out, args)
        .map_err(|error| error.in_field("args"))?;
    match WrittenShape::of(serializer, &out[start..]) {
        WrittenShape::Array => Ok(()),
        WrittenShape::Null => {
            out.truncate(start);
            out.extend_from_slice(if serializer == Serializer::MsgPack {
                b"\x90"
            } else {
                b"[]"
            });
            Ok(())
        }
        WrittenShape::Map | WrittenShape::Other => Err(wrong_shape("args", "an array")),
    }
}

/// Writes keyword arguments, which serialize to a map with text keys, or to
/// null if there are none.
#[inline]
pub(crate) fn write_kwargs<K: Serialize + ?Sized>(
    serializer: Serializer,
    out: &mut Vec<u8>,
    kwargs: &K,
) -> Result<(), EncodeError> {
    let start = out.len();
    serializer
        .encode_into(out, kwargs)
        .map_err(|error| error.in_field("kwargs"))?;
    match WrittenShape::of(serializer, &out[start..]) {
        WrittenShape::Map => check_keys(serializer, &out[start..]),
        WrittenShape::Null => {
            out.truncate(start);
            out.extend_from_slice(if serializer == Serializer::MsgPack {
                b"\x80"
            } else {
                b"{}"
            });
            Ok(())
        }
        WrittenShape::Array | WrittenShape::Other => Err(wrong_shape("kwargs", "a map")),
    }
}

#[inline]
fn write_embed(
    serializer: Serializer,
    out: &mut Vec<u8>,
    embed: &Embed<'_>,
) -> Result<(), EncodeError> {
    if serializer == Serializer::Json && embed.is_empty() {
        out.extend_from_slice(embed::EMPTY.as_bytes());
        return Ok(());
    }
    serializer
        .encode_into(out, embed)
        .map_err(|error| error.in_field("embed"))
}

/// Checks that the keys of `kwargs` are texts. JSON converts every key to a
/// text; the other serializers keep a number, and Python rejects it as the name
/// of a parameter.
fn check_keys(serializer: Serializer, kwargs: &[u8]) -> Result<(), EncodeError> {
    if serializer == Serializer::Json {
        return Ok(());
    }
    match Raw::read(serializer, kwargs).and_then(|raw| raw.entries()) {
        Ok(_) => Ok(()),
        Err(_) => Err(wrong_shape("kwargs", "a map with text keys")),
    }
}

/// The kind of value that was written, determined from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WrittenShape {
    Null,
    Array,
    Map,
    Other,
}

impl WrittenShape {
    #[inline]
    fn of(serializer: Serializer, written: &[u8]) -> Self {
        match (serializer, written) {
            (Serializer::Json | Serializer::Yaml, [b'[', ..]) => Self::Array,
            (Serializer::Json | Serializer::Yaml, [b'{', ..]) => Self::Map,
            (Serializer::Json | Serializer::Yaml, b"null") => Self::Null,
            // Markers of msgpack: nil; fixarray, array 16, array 32; fixmap,
            // map 16, map 32.
            (Serializer::MsgPack, [0xc0]) => Self::Null,
            (Serializer::MsgPack, [0x90..=0x9f | 0xdc | 0xdd, ..]) => Self::Array,
            (Serializer::MsgPack, [0x80..=0x8f | 0xde | 0xdf, ..]) => Self::Map,
            _ => Self::Other,
        }
    }
}

#[cold]
fn wrong_shape(field: &str, expected: &str) -> EncodeError {
    EncodeError::new(format!("expected a value that serializes to {expected}")).in_field(field)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::body::{Arguments, Body};

    const NO_PARAMS: &str =
        r#"[[],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]"#;

    fn json<A: Serialize, K: Serialize>(args: A, kwargs: K) -> Result<String, EncodeError> {
        let body = encode_body(Serializer::Json, &args, &kwargs, &Embed::default())?;
        Ok(String::from_utf8(body).unwrap())
    }

    #[test]
    fn unit_arguments_are_written_as_empty() {
        assert_eq!(json((), ()).unwrap(), NO_PARAMS);
        let empty: BTreeMap<String, i64> = BTreeMap::new();
        assert_eq!(json([0; 0], empty).unwrap(), NO_PARAMS);
    }

    #[test]
    fn arguments_of_other_shapes_are_rejected() {
        let args = json("text", ()).unwrap_err();
        assert_eq!(args.field(), Some("args"));
        let kwargs = json((), [1]).unwrap_err();
        assert_eq!(kwargs.field(), Some("kwargs"));
        assert!(json(BTreeMap::from([("a", 1)]), ()).is_err());
    }

    #[test]
    fn encoded_body_is_read_back_in_every_serializer() {
        for serializer in enabled() {
            let kwargs = BTreeMap::from([("y", 3)]);
            let embed = Embed {
                callbacks: Some(Raw::json(r#"[{"task":"tasks.mul"}]"#)),
                ..Embed::default()
            };
            let bytes = encode_body(serializer, &(2, "é"), &kwargs, &embed).unwrap();
            let body = Body::read(&Raw::read(serializer, &bytes).unwrap()).unwrap();
            let arguments = body.arguments().unwrap();
            assert_eq!(arguments.positional[0].decode::<i64>().unwrap(), 2);
            assert_eq!(arguments.positional[1].decode::<String>().unwrap(), "é");
            assert_eq!(arguments.keyword[0].0, "y");
            assert_eq!(arguments.keyword[0].1.decode::<i64>().unwrap(), 3);
            assert_eq!(body.embed.callbacks().unwrap()[0].task, "tasks.mul");
            assert!(body.embed.errbacks.is_none());

            let bytes = encode_body(serializer, &(), &(), &Embed::default()).unwrap();
            let body = Body::read(&Raw::read(serializer, &bytes).unwrap()).unwrap();
            assert_eq!(body.arguments().unwrap(), Arguments::default());
            assert!(body.embed.is_empty());
        }
    }

    #[test]
    fn keyword_argument_with_number_key_is_rejected() {
        for serializer in enabled().filter(|serializer| *serializer != Serializer::Json) {
            let kwargs = BTreeMap::from([(1, 2)]);
            let error = encode_body(serializer, &(), &kwargs, &Embed::default()).unwrap_err();
            assert_eq!(error.field(), Some("kwargs"), "{serializer:?}");
        }
    }

    /// Returns the serializers whose features are enabled.
    fn enabled() -> impl Iterator<Item = Serializer> {
        let all = [Serializer::Json, Serializer::MsgPack, Serializer::Yaml];
        all.into_iter()
            .filter(|serializer| serializer.encode(&()).is_ok())
    }
}
