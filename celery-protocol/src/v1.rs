//! Protocol 1, in which the whole task is a mapping in the body and there are
//! no headers.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::body::{self, Body};
use crate::codec::{Serializer, json};
use crate::embed::Embed;
use crate::error::{DecodeError, EncodeError};
use crate::headers::Headers;
use crate::raw::Raw;
use crate::task_headers::{Header, HeaderValue, ParsedHeaders, TaskHeaders};
use crate::value::Value;

/// Reads the mapping of protocol 1 as Celery's worker does: the old name
/// `taskset` of a group takes precedence over `group`, and there is no chain.
pub(crate) fn read<'a>(raw: &Raw<'a>) -> Result<(TaskHeaders<'a>, Body<'a>), DecodeError> {
    let found: ParsedHeaders<'a> = match raw.decode() {
        Ok(found) => found,
        Err(error) => return Err(diagnose(raw, error)),
    };
    let headers = found.task().map_err(in_body)?;
    let Some(mut headers) = headers else {
        let message = "a message without task headers must have this entry in its body";
        return Err(in_body(DecodeError::new(message).in_field("task")));
    };
    let body = take_body(&mut headers)?;
    Ok((headers, body))
}

/// Reads a message that has both the headers of protocol 2 and the body of
/// protocol 1. The headers override the body.
pub(crate) fn read_mixed<'a>(
    headers: &Headers,
    body: &Raw<'_>,
) -> Result<(TaskHeaders<'a>, Body<'a>), DecodeError> {
    let Value::Map(mut merged) = body.to_value().map_err(in_body)? else {
        return Err(in_body(DecodeError::new("expected a mapping")));
    };
    if !merged.contains_key("args") {
        let message = "a task's body must be [args, kwargs, embed] or a mapping with args";
        return Err(in_body(DecodeError::new(message)));
    }
    for (name, value) in headers.to_map()? {
        merged.insert(name, value);
    }
    read(&Raw::from_value(Value::Map(merged)))
}

/// Moves the arguments and the embed from `extra`, where the reader stores
/// unknown entries, into a body.
fn take_body<'a>(headers: &mut TaskHeaders<'a>) -> Result<Body<'a>, DecodeError> {
    let mut body = Body::new(Raw::json("[]"), Raw::json("{}"));
    for (name, value) in std::mem::take(&mut headers.extra) {
        match &*name {
            "args" => body.args = value,
            "kwargs" => body.kwargs = value,
            "utc" => {}
            "taskset" => headers.group = text(&value).map_err(|e| in_body(e.in_field(name)))?,
            // Protocol 1 has no chain; its steps are nested callbacks.
            _ => match body.embed.slot(&name).filter(|_| name != "chain") {
                Some(slot) => *slot = Some(value).filter(|value| !value.is_null()),
                None => headers.extra.push((name, value)),
            },
        }
    }
    Ok(body)
}

fn text<'a>(value: &Raw<'a>) -> Result<Option<Cow<'a, str>>, DecodeError> {
    let text: Option<crate::cow_str::CowStr<'a>> = value.decode()?;
    Ok(text.map(|text| text.0))
}

/// Returns an error that names the entry that could not be decoded.
#[cold]
fn diagnose(raw: &Raw<'_>, error: DecodeError) -> DecodeError {
    let entries = match raw.entries() {
        Ok(entries) => entries,
        Err(error) => return in_body(error),
    };
    for (name, value) in entries {
        let Ok(value) = value.to_value() else {
            continue;
        };
        let alone = Value::Map([(Value::from(&*name), value)].into_iter().collect());
        if let Err(error) = ParsedHeaders::deserialize(&alone) {
            return in_body(error.in_field(name));
        }
    }
    in_body(error)
}

fn in_body(error: DecodeError) -> DecodeError {
    error.in_field("body")
}

/// Writes the body of protocol 1, which also contains the entries that protocol
/// 2 has in headers.
///
/// `args` must serialize to an array and `kwargs` to a map with text keys; `()`
/// means no arguments in both. `utc` states whether times without an offset are
/// UTC, which is Celery's default.
///
/// # Errors
///
/// Fails if the arguments have another shape or the serializer cannot represent
/// them, or if `embed` has a chain: in protocol 1, the steps of a chain are
/// nested callbacks.
pub fn encode_body<A, K>(
    serializer: Serializer,
    headers: &TaskHeaders<'_>,
    args: &A,
    kwargs: &K,
    embed: &Embed<'_>,
    utc: bool,
) -> Result<Vec<u8>, EncodeError>
where
    A: Serialize + ?Sized,
    K: Serialize + ?Sized,
{
    if embed.chain.is_some() {
        let message = "protocol 1 has no chain, nest the steps as callbacks";
        return Err(EncodeError::new(message).in_field("embed.chain"));
    }
    let mut out = Vec::with_capacity(2 * body::INITIAL_CAPACITY);
    if serializer == Serializer::Json {
        write_json(&mut out, headers, args, kwargs, embed, utc)?;
        return Ok(out);
    }
    write_entries(serializer, &mut out, headers, args, kwargs, embed, utc)?;
    Ok(out)
}

/// Writes the mapping in JSON, in which the text between the values is
/// constant.
#[inline]
fn write_json<A, K>(
    out: &mut Vec<u8>,
    headers: &TaskHeaders<'_>,
    args: &A,
    kwargs: &K,
    embed: &Embed<'_>,
    utc: bool,
) -> Result<(), EncodeError>
where
    A: Serialize + ?Sized,
    K: Serialize + ?Sized,
{
    out.extend_from_slice(b"{\"task\":");
    json::write_str(out, &headers.task);
    out.extend_from_slice(b",\"id\":");
    json::write_str(out, &headers.id);
    out.extend_from_slice(b",\"args\":");
    body::write_args(Serializer::Json, out, args)?;
    out.extend_from_slice(b",\"kwargs\":");
    body::write_kwargs(Serializer::Json, out, kwargs)?;
    write_json_metadata(out, headers, embed, utc)
}

/// Writes the entries that do not depend on the types of the arguments.
fn write_json_metadata(
    out: &mut Vec<u8>,
    headers: &TaskHeaders<'_>,
    embed: &Embed<'_>,
    utc: bool,
) -> Result<(), EncodeError> {
    let header = |out: &mut Vec<u8>, header: Header| {
        let written = headers.header_value(header).write(Serializer::Json, out);
        written.map_err(|error| error.in_field(header.name()))
    };
    let slot = |out: &mut Vec<u8>, name, slot: &Option<Raw<'_>>| {
        write_slot(Serializer::Json, out, name, slot)
    };
    // Most tasks belong to no group.
    if headers.group.is_none() && headers.group_index.is_none() {
        out.extend_from_slice(b",\"group\":null,\"group_index\":null,\"retries\":");
    } else {
        out.extend_from_slice(b",\"group\":");
        header(out, Header::Group)?;
        out.extend_from_slice(b",\"group_index\":");
        header(out, Header::GroupIndex)?;
        out.extend_from_slice(b",\"retries\":");
    }
    header(out, Header::Retries)?;
    out.extend_from_slice(b",\"eta\":");
    header(out, Header::Eta)?;
    out.extend_from_slice(b",\"expires\":");
    header(out, Header::Expires)?;
    out.extend_from_slice(if utc {
        &b",\"utc\":true"[..]
    } else {
        b",\"utc\":false"
    });
    if embed.callbacks.is_none() && embed.errbacks.is_none() {
        out.extend_from_slice(b",\"callbacks\":null,\"errbacks\":null,\"timelimit\":");
    } else {
        out.extend_from_slice(b",\"callbacks\":");
        slot(out, "callbacks", &embed.callbacks)?;
        out.extend_from_slice(b",\"errbacks\":");
        slot(out, "errbacks", &embed.errbacks)?;
        out.extend_from_slice(b",\"timelimit\":");
    }
    header(out, Header::TimeLimit)?;
    if headers.group.is_none() && embed.chord.is_none() {
        out.extend_from_slice(b",\"taskset\":null,\"chord\":null}");
        return Ok(());
    }
    out.extend_from_slice(b",\"taskset\":");
    header(out, Header::Group)?;
    out.extend_from_slice(b",\"chord\":");
    slot(out, "chord", &embed.chord)?;
    out.push(b'}');
    Ok(())
}

/// Writes the mapping in any serializer.
fn write_entries<A, K>(
    serializer: Serializer,
    out: &mut Vec<u8>,
    headers: &TaskHeaders<'_>,
    args: &A,
    kwargs: &K,
    embed: &Embed<'_>,
    utc: bool,
) -> Result<(), EncodeError>
where
    A: Serialize + ?Sized,
    K: Serialize + ?Sized,
{
    for entry in &ENTRIES {
        entry.write_name(serializer, out);
        let name = entry.name;
        match entry.source {
            EntrySource::Args => body::write_args(serializer, out, args)?,
            EntrySource::Kwargs => body::write_kwargs(serializer, out, kwargs)?,
            EntrySource::Utc => write(serializer, out, name, &utc)?,
            EntrySource::Callbacks => write_slot(serializer, out, name, &embed.callbacks)?,
            EntrySource::Errbacks => write_slot(serializer, out, name, &embed.errbacks)?,
            EntrySource::Chord => write_slot(serializer, out, name, &embed.chord)?,
            EntrySource::Header(header) => headers
                .header_value(header)
                .write(serializer, out)
                .map_err(|error| error.in_field(name))?,
        }
    }
    if serializer != Serializer::MsgPack {
        out.push(b'}');
    }
    Ok(())
}

/// One entry of the mapping.
struct BodyEntry {
    name: &'static str,
    /// The JSON text before the value: punctuation and the name in quotes.
    json: &'static str,
    source: EntrySource,
}

/// The source of the value of an entry.
#[derive(Clone, Copy)]
enum EntrySource {
    Header(Header),
    Args,
    Kwargs,
    Utc,
    Callbacks,
    Errbacks,
    Chord,
}

/// The entries of the mapping in Python's order. The group is also written
/// under its old name.
const ENTRIES: [BodyEntry; 15] = [
    entry("task", "{\"task\":", EntrySource::Header(Header::Task)),
    entry("id", ",\"id\":", EntrySource::Header(Header::Id)),
    entry("args", ",\"args\":", EntrySource::Args),
    entry("kwargs", ",\"kwargs\":", EntrySource::Kwargs),
    entry("group", ",\"group\":", EntrySource::Header(Header::Group)),
    entry(
        "group_index",
        ",\"group_index\":",
        EntrySource::Header(Header::GroupIndex),
    ),
    entry(
        "retries",
        ",\"retries\":",
        EntrySource::Header(Header::Retries),
    ),
    entry("eta", ",\"eta\":", EntrySource::Header(Header::Eta)),
    entry(
        "expires",
        ",\"expires\":",
        EntrySource::Header(Header::Expires),
    ),
    entry("utc", ",\"utc\":", EntrySource::Utc),
    entry("callbacks", ",\"callbacks\":", EntrySource::Callbacks),
    entry("errbacks", ",\"errbacks\":", EntrySource::Errbacks),
    entry(
        "timelimit",
        ",\"timelimit\":",
        EntrySource::Header(Header::TimeLimit),
    ),
    entry(
        "taskset",
        ",\"taskset\":",
        EntrySource::Header(Header::Group),
    ),
    entry("chord", ",\"chord\":", EntrySource::Chord),
];

const fn entry(name: &'static str, json: &'static str, source: EntrySource) -> BodyEntry {
    BodyEntry { name, json, source }
}

/// The msgpack marker of a "fixmap" of fifteen entries, which is the maximum.
const FIXMAP_15: u8 = 0x8f;

/// The msgpack marker of a "fixstr", to which its length below 32 is added.
const FIXSTR: u8 = 0xa0;

impl BodyEntry {
    /// Writes the name and the punctuation before the value.
    #[inline]
    fn write_name(&self, serializer: Serializer, out: &mut Vec<u8>) {
        match serializer {
            Serializer::Json => out.extend_from_slice(self.json.as_bytes()),
            Serializer::Yaml => {
                // YAML requires a space after the colon.
                out.extend_from_slice(self.json.as_bytes());
                out.push(b' ');
            }
            Serializer::MsgPack => {
                if out.is_empty() {
                    out.push(FIXMAP_15);
                }
                out.push(FIXSTR | self.name.len() as u8);
                out.extend_from_slice(self.name.as_bytes());
            }
        }
    }
}

/// Writes an entry of the embed, which is null in most messages.
#[inline]
fn write_slot(
    serializer: Serializer,
    out: &mut Vec<u8>,
    name: &str,
    slot: &Option<Raw<'_>>,
) -> Result<(), EncodeError> {
    let field = slot.as_ref().map_or(HeaderValue::Null, HeaderValue::Raw);
    let written = field.write(serializer, out);
    written.map_err(|error| error.in_field(name))
}

#[inline]
fn write<T: Serialize>(
    serializer: Serializer,
    out: &mut Vec<u8>,
    name: &str,
    value: &T,
) -> Result<(), EncodeError> {
    let written = serializer.encode_into(out, value);
    written.map_err(|error| error.in_field(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_json(text: &str) -> Result<(TaskHeaders<'_>, Body<'_>), DecodeError> {
        read(&Raw::json(text))
    }

    #[test]
    fn written_json_equals_general_encoding() {
        let mut in_group = TaskHeaders::new("tasks.add", "id-1");
        in_group.group = Some("group-1".into());
        in_group.group_index = Some(3);
        in_group.eta = Some("2009-11-17T12:30:56Z".into());
        let linked = |slot| {
            let mut embed = Embed::default();
            *embed.slot(slot).unwrap() = Some(Raw::json("[{}]"));
            embed
        };
        let embeds = ["callbacks", "errbacks", "chord"].map(linked);
        let headers = [TaskHeaders::new("tasks.add", "id-1"), in_group];
        for headers in &headers {
            for embed in embeds.iter().chain([&Embed::default()]) {
                let fast = encode_body(Serializer::Json, headers, &(2,), &(), embed, true);
                let mut general = Vec::new();
                let json = Serializer::Json;
                write_entries(json, &mut general, headers, &(2,), &(), embed, true).unwrap();
                assert_eq!(fast.unwrap(), general);
            }
        }
    }

    #[test]
    fn entry_json_matches_its_name() {
        for (position, entry) in ENTRIES.iter().enumerate() {
            let open = if position == 0 { '{' } else { ',' };
            assert_eq!(entry.json, format!("{open}\"{}\":", entry.name));
        }
    }

    #[test]
    fn body_is_written_in_pythons_order() {
        let mut headers = TaskHeaders::new("tasks.add", "id-1");
        headers.group = Some("g-1".into());
        let body = encode_body(
            Serializer::Json,
            &headers,
            &(2, 3),
            &(),
            &Embed::default(),
            true,
        );
        let expected = concat!(
            r#"{"task":"tasks.add","id":"id-1","args":[2,3],"kwargs":{},"group":"g-1","#,
            r#""group_index":null,"retries":0,"eta":null,"expires":null,"utc":true,"#,
            r#""callbacks":null,"errbacks":null,"timelimit":[null,null],"taskset":"g-1","#,
            r#""chord":null}"#,
        );
        assert_eq!(String::from_utf8(body.unwrap()).unwrap(), expected);
    }

    #[test]
    fn body_is_read_back_in_every_serializer() {
        let all = [Serializer::Json, Serializer::MsgPack, Serializer::Yaml];
        for serializer in all
            .into_iter()
            .filter(|serializer| serializer.encode(&()).is_ok())
        {
            let mut headers = TaskHeaders::new("tasks.add", "id-1");
            headers.retries = 2;
            let embed = Embed {
                callbacks: Some(Raw::json(r#"[{"task":"tasks.mul"}]"#)),
                ..Embed::default()
            };
            let bytes = encode_body(serializer, &headers, &(2, "é"), &(), &embed, true).unwrap();
            let (read_headers, body) = read(&Raw::read(serializer, &bytes).unwrap()).unwrap();
            assert_eq!(
                (&*read_headers.task, read_headers.retries),
                ("tasks.add", 2)
            );
            assert!(read_headers.extra.is_empty());
            let arguments = body.arguments().unwrap();
            assert_eq!(arguments.positional[1].decode::<String>().unwrap(), "é");
            assert_eq!(body.embed.callbacks().unwrap()[0].task, "tasks.mul");
        }
    }

    #[test]
    fn taskset_overrides_group() {
        let text = r#"{"task":"t","id":"i","args":[1],"group":"new","taskset":"old","mine":1}"#;
        let (headers, body) = read_json(text).unwrap();
        assert_eq!(headers.group.as_deref(), Some("old"));
        assert_eq!(headers.extra.len(), 1);
        assert_eq!(body.args.as_json(), Some("[1]"));
        assert_eq!(body.kwargs.as_json(), Some("{}"));
    }

    #[test]
    fn chain_is_rejected() {
        let embed = Embed {
            chain: Some(Raw::json("[]")),
            ..Embed::default()
        };
        let headers = TaskHeaders::new("t", "i");
        let error = encode_body(Serializer::Json, &headers, &(), &(), &embed, true).unwrap_err();
        assert_eq!(error.field(), Some("embed.chain"));
    }

    #[test]
    fn malformed_body_error_names_the_field() {
        let cases = [
            (r#"{"id":"i"}"#, "body.task"),
            (r#"{"task":"t"}"#, "body.id"),
            (r#"{"task":"t","id":"i","eta":5}"#, "body.eta"),
            (r#"{"task":"t","id":"i","taskset":5}"#, "body.taskset"),
            ("[]", "body"),
            ("", "body"),
            (r#"{"task":"#, "body"),
        ];
        for (text, field) in cases {
            assert_eq!(read_json(text).unwrap_err().field(), Some(field), "{text}");
        }
    }

    #[test]
    fn headers_override_the_body_of_a_mixed_message() {
        let map = [("task", "t"), ("id", "i"), ("eta", "2030-01-02T03:04:05")];
        let map = map
            .into_iter()
            .map(|(name, text)| (Value::from(name), Value::from(text)));
        let headers = Headers::from_map(map.collect());
        let body = Raw::json(r#"{"task":"other","args":[1],"eta":null,"retries":4}"#);
        let (read, body) = read_mixed(&headers, &body).unwrap();
        assert_eq!((&*read.task, &*read.id, read.retries), ("t", "i", 4));
        assert!(read.eta_time().unwrap().is_some());
        assert_eq!(body.arguments().unwrap().positional.len(), 1);
        assert!(read_mixed(&headers, &Raw::json("{}")).is_err());
    }
}
