//! Canvases as Celery writes them: signatures.

use std::borrow::Cow;

use celery_protocol::{DecodeError, EncodeError, Map, Raw, Serializer, Value, WireSignature};
use serde::Serialize;
use serde::ser::SerializeMap;

use crate::canvas::call::TaskCall;
use crate::canvas::error::CanvasError;
use crate::canvas::node::{Canvas, Chord, Kind, MAX_DEPTH, Members, Options};
use crate::canvas::options::CallOptions;

impl Canvas {
    /// Reads a signature that any of Celery's clients has written, of any kind
    /// and depth.
    ///
    /// # Errors
    ///
    /// When it is no signature, a part of it is null or no signature, a chord
    /// has no body, or it nests deeper than 100 levels. The error says where.
    pub fn read(raw: &Raw<'_>) -> Result<Self, CanvasError> {
        read(raw, MAX_DEPTH)
    }

    /// Writes it as a signature, in JSON.
    ///
    /// # Errors
    ///
    /// When something could not be built, or an argument has no form in JSON.
    pub fn to_wire(&self) -> Result<Raw<'static>, CanvasError> {
        if let Some(flaw) = &self.flaw {
            return Err(flaw.clone());
        }
        let mut signature = WireSignature::new(self.task().to_owned());
        signature.immutable = self.immutable;
        signature.options = self.wire_options()?;
        match &self.kind {
            Kind::Task(call) => (signature.args, signature.kwargs) = call.raw_arguments()?,
            Kind::Chain(steps) => {
                signature.subtask_type = Some(Cow::Borrowed("chain"));
                signature.kwargs = tasks(steps)?;
            }
            Kind::Group(group) => {
                signature.subtask_type = Some(Cow::Borrowed("group"));
                signature.kwargs = tasks(&group.tasks)?;
            }
            Kind::Chord(chord) => {
                signature.subtask_type = Some(Cow::Borrowed("chord"));
                signature.kwargs = chord.wire_kwargs()?;
            }
        }
        Ok(Raw::encode(Serializer::Json, &signature)?)
    }

    fn wire_options(&self) -> Result<Raw<'static>, CanvasError> {
        let mut plain = Map::new();
        if let Kind::Task(call) = &self.kind {
            let queue = call.queue.as_deref().map(Value::from);
            let priority = call.priority.map(|level| Value::Int(level.into()));
            for (name, value) in [("queue", queue), ("priority", priority)] {
                if let Some(value) = value {
                    plain.insert(name, value);
                }
            }
        }
        self.options.call.write_wire(&mut plain);
        if matches!(&self.kind, Kind::Group(group) if group.frozen) {
            for name in ["root_id", "parent_id"] {
                if !plain.contains_key(name) {
                    plain.insert(name, Value::Null);
                }
            }
        }
        let mut nested = Vec::new();
        for (name, list) in [
            ("link", &self.options.link),
            ("link_error", &self.options.link_error),
        ] {
            if !list.is_empty() {
                nested.push((name, written(name, list)?));
            }
        }
        if !self.options.rest.is_empty() {
            nested.push(("chain", Raw::encode(Serializer::Json, &self.options.rest)?));
        }
        if let Some(chord) = &self.options.chord {
            nested.push(("chord", Raw::clone(chord)));
        }
        Ok(Raw::encode(
            Serializer::Json,
            &WireOptions { plain, nested },
        )?)
    }
}

impl Chord {
    fn wire_kwargs(&self) -> Result<Raw<'static>, CanvasError> {
        let header = match (&self.header.kind, self.frozen) {
            (Kind::Group(group), false) => written("header", &group.tasks)?,
            _ => self
                .header
                .to_wire()
                .map_err(|error| error.inside("header"))?,
        };
        let body = self.body.to_wire().map_err(|error| error.inside("body"))?;
        let kwargs = [
            ("kwargs", &self.kwargs),
            ("header", &header),
            ("body", &body),
        ];
        Ok(Raw::encode(Serializer::Json, &Entries(&kwargs))?)
    }
}

impl Options {
    /// All callbacks, written.
    pub(super) fn callbacks(&self) -> Result<Option<Raw<'static>>, CanvasError> {
        let some = (!self.link.is_empty()).then(|| written("link", &self.link));
        some.transpose()
    }

    /// All errbacks, written.
    pub(super) fn errbacks(&self) -> Result<Option<Raw<'static>>, CanvasError> {
        let some = (!self.link_error.is_empty()).then(|| written("link_error", &self.link_error));
        some.transpose()
    }
}

/// The options of one signature.
struct WireOptions {
    plain: Map,
    nested: Vec<(&'static str, Raw<'static>)>,
}

impl Serialize for WireOptions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.plain.len() + self.nested.len()))?;
        for (name, value) in self.plain.iter() {
            map.serialize_entry(name, value)?;
        }
        for (name, value) in &self.nested {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

struct Entries<'a>(&'a [(&'a str, &'a Raw<'static>)]);

impl Serialize for Entries<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

fn tasks(parts: &[Canvas]) -> Result<Raw<'static>, CanvasError> {
    let tasks = written("tasks", parts)?;
    Ok(Raw::encode(
        Serializer::Json,
        &Entries(&[("tasks", &tasks)]),
    )?)
}

fn written(name: &str, parts: &[Canvas]) -> Result<Raw<'static>, CanvasError> {
    let parts = parts.iter().enumerate().map(|(place, part)| {
        let wire = part.to_wire();
        wire.map_err(|error| error.inside(format_args!("{name}[{place}]")))
    });
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    Ok(Raw::encode(Serializer::Json, &parts)?)
}

fn read(raw: &Raw<'_>, levels: usize) -> Result<Canvas, CanvasError> {
    if levels == 0 {
        let cause = format!("signatures of more than {MAX_DEPTH} levels inside each other");
        return Err(CanvasError::new(cause));
    }
    if raw.is_null() {
        return Err(CanvasError::new("expected a signature, found null"));
    }
    let signature = WireSignature::read(raw).map_err(|error| not_one(&error))?;
    let kind = match signature.subtask_type.as_deref() {
        None => task(&signature)?,
        Some("chain") => Kind::Chain(parts(&signature, levels)?),
        Some("group") => Kind::Group(Members {
            frozen: option(&signature, "task_id")?.is_some(),
            tasks: parts(&signature, levels)?,
            whole: false,
        }),
        Some("chord") => Kind::Chord(Box::new(chord(&signature, levels)?)),
        Some(other) => {
            let cause = format!("a signature of the kind {other:?}, which Celery does not have");
            return Err(CanvasError::new(cause));
        }
    };
    let depth = match &kind {
        Kind::Task(_) => 0,
        Kind::Chain(steps) => Canvas::depth_of(steps),
        Kind::Group(group) => Canvas::depth_of(&group.tasks),
        Kind::Chord(chord) => chord.header.depth().max(chord.body.depth()),
    };
    let is_leaf = matches!(kind, Kind::Task(_));
    let mut canvas = Canvas::of(kind).holding(depth);
    canvas.immutable = signature.immutable;
    if !is_leaf {
        let args = signature.args.elements().map_err(|error| not_one(&error))?;
        let args: Vec<_> = args.into_iter().map(Raw::into_owned).collect();
        canvas.give(&args);
    }
    read_options(canvas, &signature, levels)
}

fn read_options(
    mut canvas: Canvas,
    signature: &WireSignature<'_>,
    levels: usize,
) -> Result<Canvas, CanvasError> {
    let call = CallOptions::from_wire(&signature.options);
    let mut call = call.map_err(CanvasError::new)?;
    let embed = std::mem::take(&mut call.embed);
    let mut depth = 0;
    for (name, list, to) in [
        ("link", embed.callbacks, &mut canvas.options.link),
        ("link_error", embed.errbacks, &mut canvas.options.link_error),
    ] {
        if let Some(list) = list {
            *to = read_list(name, &list, levels)?;
            depth = depth.max(Canvas::depth_of(to));
        }
    }
    if let Some(rest) = embed.chain {
        let rest = rest.elements().map_err(|error| not_one(&error))?;
        canvas.options.rest = rest.into_vec();
    }
    canvas.options.chord = embed.chord.map(std::sync::Arc::new);
    canvas.options.call = call;
    Ok(canvas.holding(depth))
}

fn task(signature: &WireSignature<'_>) -> Result<Kind, CanvasError> {
    // Looked at, so that an error is told now and not by the worker.
    let args = signature.args.elements();
    args.map_err(|error| not_one(&error.in_field("args")))?;
    let kwargs = signature.kwargs.entries();
    let kwargs = kwargs.map_err(|error| not_one(&error.in_field("kwargs")))?;
    let own = |raw: &Raw<'_>| raw.clone().into_owned();
    let name = signature.task.clone().into_owned();
    let mapped = matches!(
        name.as_str(),
        "celery.map" | "celery.starmap" | "celery.chunks"
    );
    let mut call = TaskCall::untyped(name, own(&signature.args), own(&signature.kwargs));
    if mapped {
        let inner = kwargs.iter().find(|(name, _)| name == "task");
        let inner = inner.and_then(|(_, raw)| WireSignature::read(raw).ok());
        call.routed_as = inner.map(|inner| Cow::Owned(inner.task.into_owned()));
    }
    Ok(Kind::Task(Box::new(call)))
}

fn chord(signature: &WireSignature<'_>, levels: usize) -> Result<Chord, CanvasError> {
    let header =
        entry(signature, "header")?.ok_or_else(|| CanvasError::new("a chord without a header"))?;
    let body = entry(signature, "body")?
        .ok_or_else(|| CanvasError::new("a chord without a body").inside("body"))?;
    let kwargs = entry(signature, "kwargs")?;
    let body = read(&body, levels - 1).map_err(|error| error.inside("body"))?;
    let (header, frozen) = match header.elements() {
        Ok(_) => (Canvas::group(read_list("header", &header, levels)?), false),
        Err(_) => {
            let read = read(&header, levels - 1).map_err(|error| error.inside("header"))?;
            match read.kind {
                Kind::Group(_) => (read, true),
                // Celery takes the steps of a chain and a task alone.
                _ => (Canvas::group(read.into_steps()), false),
            }
        }
    };
    Ok(Chord {
        header,
        body,
        kwargs: kwargs.map_or_else(|| Raw::json("{}"), Raw::into_owned),
        errbacks: Vec::new(),
        frozen,
    })
}

fn parts(signature: &WireSignature<'_>, levels: usize) -> Result<Vec<Canvas>, CanvasError> {
    match entry(signature, "tasks")? {
        Some(tasks) => read_list("tasks", &tasks, levels),
        None => {
            let cause = format!("a {} without tasks", signature.task);
            Err(CanvasError::new(cause).inside("tasks"))
        }
    }
}

fn read_list(name: &str, list: &Raw<'_>, levels: usize) -> Result<Vec<Canvas>, CanvasError> {
    let list = list
        .elements()
        .map_err(|error| not_one(&error).inside(name))?;
    let parts = list.iter().enumerate().map(|(place, part)| {
        read(part, levels - 1).map_err(|error| error.inside(format_args!("{name}[{place}]")))
    });
    parts.collect()
}

fn entry<'a>(signature: &WireSignature<'a>, name: &str) -> Result<Option<Raw<'a>>, CanvasError> {
    let entries = signature.kwargs.entries();
    let entries = entries.map_err(|error| not_one(&error.in_field("kwargs")))?;
    let found = entries.into_iter().rev().find(|(key, _)| key == name);
    Ok(found
        .map(|(_, value)| value)
        .filter(|value| !value.is_null()))
}

fn option<'a>(signature: &WireSignature<'a>, name: &str) -> Result<Option<Raw<'a>>, CanvasError> {
    signature.option(name).map_err(|error| not_one(&error))
}

fn not_one(error: &DecodeError) -> CanvasError {
    CanvasError::new(format!("cannot read a signature: {error}"))
}

/// A canvas that was put into a message cannot fail to be read back.
pub(super) fn unreadable(error: &DecodeError) -> EncodeError {
    EncodeError::new(error.to_string())
}
