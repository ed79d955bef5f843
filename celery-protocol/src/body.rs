//! The body of protocol 2: `[args, kwargs, embed]`.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap, Serializer as SerdeSerializer};

use crate::codec::Serializer;
use crate::error::{DecodeError, EncodeError};
use crate::raw::{Elements, Entries, Raw};
use crate::signature::Signature;

/// The body of a task message, its three parts undecoded.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Body<'a> {
    /// The positional arguments, an array.
    pub args: Raw<'a>,
    /// The keyword arguments, a map.
    pub kwargs: Raw<'a>,
    /// What happens after the task.
    pub embed: Embed<'a>,
}

impl<'a> Body<'a> {
    /// A body with nothing to happen afterwards.
    pub fn new(args: Raw<'a>, kwargs: Raw<'a>) -> Self {
        Self {
            args,
            kwargs,
            embed: Embed::default(),
        }
    }

    /// Finds the parts of a body. The arguments are not looked into.
    ///
    /// # Errors
    ///
    /// When the body is not an array of three, or its last part is no map.
    pub fn read(raw: &Raw<'a>) -> Result<Self, DecodeError> {
        let parts = raw.elements().map_err(in_body)?;
        let count = parts.len();
        let Ok([args, kwargs, embed]) = <[Raw<'a>; 3]>::try_from(parts.into_vec()) else {
            let message = format!("expected [args, kwargs, embed], found {count} elements");
            return Err(in_body(DecodeError::new(message)));
        };
        let embed = Embed::read(&embed).map_err(|error| in_body(error.in_field("embed")))?;
        Ok(Self {
            args,
            kwargs,
            embed,
        })
    }

    /// Each argument by itself, undecoded.
    ///
    /// # Errors
    ///
    /// When `args` is not an array, or `kwargs` is not a map with text keys.
    pub fn arguments(&self) -> Result<Arguments<'a>, DecodeError> {
        let positional = self.args.elements();
        let keyword = self.kwargs.entries();
        Ok(Arguments {
            positional: positional.map_err(|error| error.in_field("args"))?,
            keyword: keyword.map_err(|error| error.in_field("kwargs"))?,
        })
    }
}

fn in_body(error: DecodeError) -> DecodeError {
    error.in_field("body")
}

/// The arguments of a call, undecoded.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Arguments<'a> {
    /// The positional ones, in order.
    pub positional: Elements<'a>,
    /// The keyword ones, in the order of the message.
    pub keyword: Entries<'a>,
}

/// What happens after a task, as it travels with the task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embed<'a> {
    /// Sent with the result when the task succeeds: an array of signatures.
    pub callbacks: Option<Raw<'a>>,
    /// Called when the task fails: an array of signatures.
    pub errbacks: Option<Raw<'a>>,
    /// The rest of the chain, an array of signatures **in reverse**: the last
    /// element is the next step.
    pub chain: Option<Raw<'a>>,
    /// The body of the chord whose header this task belongs to: one signature.
    pub chord: Option<Raw<'a>>,
    /// Entries that Celery does not define.
    pub extra: Vec<(Cow<'a, str>, Raw<'a>)>,
}

impl<'a> Embed<'a> {
    /// Finds the parts of an embed; null is an empty one.
    ///
    /// # Errors
    ///
    /// When it is not a map with text keys.
    pub fn read(raw: &Raw<'a>) -> Result<Self, DecodeError> {
        let mut embed = Self::default();
        if raw.is_null() {
            return Ok(embed);
        }
        for (name, value) in raw.entries()? {
            embed.put(name, value);
        }
        Ok(embed)
    }

    fn put(&mut self, name: Cow<'a, str>, value: Raw<'a>) {
        match self.slot(&name) {
            Some(slot) => *slot = Some(value).filter(|value| !value.is_null()),
            None => self.extra.push((name, value)),
        }
    }

    /// The place of one of the four entries that Celery defines.
    pub(crate) fn slot(&mut self, name: &str) -> Option<&mut Option<Raw<'a>>> {
        match name {
            "callbacks" => Some(&mut self.callbacks),
            "errbacks" => Some(&mut self.errbacks),
            "chain" => Some(&mut self.chain),
            "chord" => Some(&mut self.chord),
            _ => None,
        }
    }

    /// Whether nothing happens after the task.
    pub fn is_empty(&self) -> bool {
        let slots = [&self.callbacks, &self.errbacks, &self.chain, &self.chord];
        slots.iter().all(|slot| slot.is_none()) && self.extra.is_empty()
    }

    /// The signatures to send when the task succeeds.
    ///
    /// # Errors
    ///
    /// When the entry does not hold signatures.
    pub fn callbacks(&self) -> Result<Vec<Signature<'a>>, DecodeError> {
        signatures(self.callbacks.as_ref(), "embed.callbacks")
    }

    /// The signatures to call when the task fails.
    ///
    /// # Errors
    ///
    /// When the entry does not hold signatures.
    pub fn errbacks(&self) -> Result<Vec<Signature<'a>>, DecodeError> {
        signatures(self.errbacks.as_ref(), "embed.errbacks")
    }

    /// The rest of the chain as it lies in the message: **the last element is
    /// the next step**.
    ///
    /// # Errors
    ///
    /// When the entry does not hold signatures.
    pub fn chain(&self) -> Result<Vec<Signature<'a>>, DecodeError> {
        signatures(self.chain.as_ref(), "embed.chain")
    }

    /// The body of the chord.
    ///
    /// # Errors
    ///
    /// When the entry does not hold a signature.
    pub fn chord(&self) -> Result<Option<Signature<'a>>, DecodeError> {
        let Some(raw) = &self.chord else {
            return Ok(None);
        };
        let signature = Signature::read(raw);
        signature
            .map(Some)
            .map_err(|error| error.in_field("embed.chord"))
    }

    /// The same embed without borrows.
    pub fn into_owned(self) -> Embed<'static> {
        let own = |(name, value): (Cow<'_, str>, Raw<'_>)| {
            (Cow::Owned(name.into_owned()), value.into_owned())
        };
        Embed {
            callbacks: self.callbacks.map(Raw::into_owned),
            errbacks: self.errbacks.map(Raw::into_owned),
            chain: self.chain.map(Raw::into_owned),
            chord: self.chord.map(Raw::into_owned),
            extra: self.extra.into_iter().map(own).collect(),
        }
    }
}

impl Serialize for Embed<'_> {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4 + self.extra.len()))?;
        map.serialize_entry("callbacks", &self.callbacks)?;
        map.serialize_entry("errbacks", &self.errbacks)?;
        map.serialize_entry("chain", &self.chain)?;
        map.serialize_entry("chord", &self.chord)?;
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Signatures one level deep. Celery writes an array; one signature alone is
/// taken as an array of one, as Celery's `maybe_list` does.
fn signatures<'a>(slot: Option<&Raw<'a>>, field: &str) -> Result<Vec<Signature<'a>>, DecodeError> {
    let Some(raw) = slot else {
        return Ok(Vec::new());
    };
    let Ok(elements) = raw.elements() else {
        let alone = Signature::read(raw).map_err(|error| error.in_field(field))?;
        return Ok(vec![alone]);
    };
    let read = |(place, raw): (usize, &Raw<'a>)| {
        let place = format!("{field}[{place}]");
        Signature::read(raw).map_err(|error| error.in_field(place))
    };
    elements.iter().enumerate().map(read).collect()
}

/// Writes the body of protocol 2.
///
/// `args` must write an array and `kwargs` a map with text keys; `()` stands
/// for none of either.
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
/// When the arguments have another shape, or have no form in the serializer.
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
    let syntax = Syntax::of(serializer);
    let mut out = Vec::with_capacity(TYPICAL_SIZE);
    out.extend_from_slice(syntax.open);
    write_args(serializer, &mut out, args)?;
    out.extend_from_slice(syntax.separator);
    write_kwargs(serializer, &mut out, kwargs)?;
    out.extend_from_slice(syntax.separator);
    write_embed(serializer, &mut out, embed)?;
    out.extend_from_slice(syntax.close);
    Ok(out)
}

/// Larger bodies grow the buffer; most calls have a few small arguments.
pub(crate) const TYPICAL_SIZE: usize = 256;

const EMPTY_EMBED: &[u8] = br#"{"callbacks":null,"errbacks":null,"chain":null,"chord":null}"#;

/// How an array of three is written around its elements.
struct Syntax {
    open: &'static [u8],
    separator: &'static [u8],
    close: &'static [u8],
}

impl Syntax {
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

/// Writes positional arguments: an array, or `()` for none.
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
    match Shape::of(serializer, &out[start..]) {
        Shape::Array => Ok(()),
        Shape::Null => {
            out.truncate(start);
            out.extend_from_slice(if serializer == Serializer::MsgPack {
                b"\x90"
            } else {
                b"[]"
            });
            Ok(())
        }
        Shape::Map | Shape::Other => Err(wrong_shape("args", "an array")),
    }
}

/// Writes keyword arguments: a map with text keys, or `()` for none.
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
    match Shape::of(serializer, &out[start..]) {
        Shape::Map => check_keys(serializer, &out[start..]),
        Shape::Null => {
            out.truncate(start);
            out.extend_from_slice(if serializer == Serializer::MsgPack {
                b"\x80"
            } else {
                b"{}"
            });
            Ok(())
        }
        Shape::Array | Shape::Other => Err(wrong_shape("kwargs", "a map")),
    }
}

#[inline]
fn write_embed(
    serializer: Serializer,
    out: &mut Vec<u8>,
    embed: &Embed<'_>,
) -> Result<(), EncodeError> {
    if serializer == Serializer::Json && embed.is_empty() {
        out.extend_from_slice(EMPTY_EMBED);
        return Ok(());
    }
    serializer
        .encode_into(out, embed)
        .map_err(|error| error.in_field("embed"))
}

/// JSON makes a text of every key; elsewhere a number stays one, and Python
/// would refuse it as the name of an argument.
fn check_keys(serializer: Serializer, kwargs: &[u8]) -> Result<(), EncodeError> {
    if serializer == Serializer::Json {
        return Ok(());
    }
    match Raw::read(serializer, kwargs).and_then(|raw| raw.entries()) {
        Ok(_) => Ok(()),
        Err(_) => Err(wrong_shape("kwargs", "a map with text keys")),
    }
}

/// What kind of value was written, told from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Null,
    Array,
    Map,
    Other,
}

impl Shape {
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
    EncodeError::new(format!("expected a value that is written as {expected}")).in_field(field)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::value::Value;

    const NO_PARAMS: &str =
        r#"[[],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]"#;

    fn json<A: Serialize, K: Serialize>(args: A, kwargs: K) -> Result<String, EncodeError> {
        let body = encode_body(Serializer::Json, &args, &kwargs, &Embed::default())?;
        Ok(String::from_utf8(body).unwrap())
    }

    #[test]
    fn unit_means_no_arguments() {
        assert_eq!(json((), ()).unwrap(), NO_PARAMS);
        let empty: BTreeMap<String, i64> = BTreeMap::new();
        assert_eq!(json([0; 0], empty).unwrap(), NO_PARAMS);
    }

    #[test]
    fn empty_embed_is_the_constant() {
        assert_eq!(
            Serializer::Json.encode(&Embed::default()).unwrap(),
            EMPTY_EMBED
        );
    }

    #[test]
    fn other_shapes_are_errors() {
        let args = json("text", ()).unwrap_err();
        assert_eq!(args.field(), Some("args"));
        let kwargs = json((), [1]).unwrap_err();
        assert_eq!(kwargs.field(), Some("kwargs"));
        assert!(json(BTreeMap::from([("a", 1)]), ()).is_err());
    }

    #[test]
    fn every_serializer_reads_back() {
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
    fn keyword_names_must_be_text() {
        for serializer in enabled().filter(|serializer| *serializer != Serializer::Json) {
            let kwargs = BTreeMap::from([(1, 2)]);
            let error = encode_body(serializer, &(), &kwargs, &Embed::default()).unwrap_err();
            assert_eq!(error.field(), Some("kwargs"), "{serializer:?}");
        }
    }

    #[test]
    fn hostile_shapes_name_the_field() {
        let cases = [
            ("5", "body"),
            ("[[],{}]", "body"),
            ("[[],{},5]", "body.embed"),
            ("[[],{},{}] x", "body"),
            ("[[],{},{}", "body"),
        ];
        for (text, field) in cases {
            let error = Body::read(&Raw::json(text)).unwrap_err();
            assert_eq!(error.field(), Some(field), "{text}");
        }
        let body = Body::read(&Raw::json("[5,{},{}]")).unwrap();
        assert_eq!(body.arguments().unwrap_err().field(), Some("args"));
        let body = Body::read(&Raw::json("[[],[],{}]")).unwrap();
        assert_eq!(body.arguments().unwrap_err().field(), Some("kwargs"));
    }

    #[test]
    fn unknown_entries_of_embed_survive() {
        let body = Body::read(&Raw::json(r#"[[],{},{"mine":1,"chain":[]}]"#)).unwrap();
        let written = Serializer::Json.encode(&body.embed).unwrap();
        let again: Value = Serializer::Json.decode(&written).unwrap();
        assert_eq!(again.get("mine"), Some(&Value::Int(1)));
        assert_eq!(again.get("chain"), Some(&Value::Array(vec![])));
    }

    /// The serializers whose features are on.
    fn enabled() -> impl Iterator<Item = Serializer> {
        let all = [Serializer::Json, Serializer::MsgPack, Serializer::Yaml];
        all.into_iter()
            .filter(|serializer| serializer.encode(&()).is_ok())
    }
}
