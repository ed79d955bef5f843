//! Encoding and decoding canvases as signatures of Celery.

use std::borrow::Cow;

use celery_protocol::{DecodeError, EncodeError, Map, Raw, Serializer, Value, WireSignature};
use serde::Serialize;
use serde::ser::SerializeMap;

use crate::canvas::call::TaskCall;
use crate::canvas::error::CanvasError;
use crate::canvas::node::{Canvas, ChordNode, GroupNode, MAX_DEPTH, NodeKind, NodeOptions};
use crate::canvas::options::CallOptions;

impl Canvas {
    /// Decodes a signature of any kind, as Celery's clients encode it.
    ///
    /// # Errors
    ///
    /// Fails if it or a part of it is not a signature, if a chord has no body, or if it is nested
    /// more than 100 levels deep. The error contains the path of the part.
    pub fn read(raw: &Raw<'_>) -> Result<Self, CanvasError> {
        decode(raw, MAX_DEPTH)
    }

    /// Encodes the canvas as a signature in JSON.
    ///
    /// # Errors
    ///
    /// Fails if a part of the canvas is invalid, or if JSON cannot express an argument.
    pub fn to_wire(&self) -> Result<Raw<'static>, CanvasError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let mut signature = WireSignature::new(self.task().to_owned());
        signature.immutable = self.immutable;
        signature.options = self.wire_options()?;
        match &self.kind {
            NodeKind::Task(call) => (signature.args, signature.kwargs) = call.raw_arguments()?,
            NodeKind::Chain(steps) => {
                signature.subtask_type = Some(Cow::Borrowed("chain"));
                signature.kwargs = tasks_kwargs(steps)?;
            }
            NodeKind::Group(group) => {
                signature.subtask_type = Some(Cow::Borrowed("group"));
                signature.kwargs = tasks_kwargs(&group.tasks)?;
            }
            NodeKind::Chord(chord) => {
                signature.subtask_type = Some(Cow::Borrowed("chord"));
                signature.kwargs = chord.wire_kwargs()?;
            }
        }
        Ok(Raw::encode(Serializer::Json, &signature)?)
    }

    fn wire_options(&self) -> Result<Raw<'static>, CanvasError> {
        let mut plain = Map::new();
        if let NodeKind::Task(call) = &self.kind {
            let queue = call.queue.as_deref().map(Value::from);
            let priority = call.priority.map(|level| Value::Int(level.into()));
            for (name, value) in [("queue", queue), ("priority", priority)] {
                if let Some(value) = value {
                    plain.insert(name, value);
                }
            }
        }
        self.options.call.write_wire(&mut plain);
        if matches!(&self.kind, NodeKind::Group(group) if group.frozen) {
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
                nested.push((name, encode_list(name, list)?));
            }
        }
        if !self.options.chain.is_empty() {
            nested.push(("chain", Raw::encode(Serializer::Json, &self.options.chain)?));
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

impl ChordNode {
    fn wire_kwargs(&self) -> Result<Raw<'static>, CanvasError> {
        let header = match (&self.header.kind, self.frozen) {
            (NodeKind::Group(group), false) => encode_list("header", &group.tasks)?,
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
        Ok(Raw::encode(Serializer::Json, &MapEntries(&kwargs))?)
    }
}

impl NodeOptions {
    /// Encodes the callbacks; `None` if there are none.
    pub(super) fn callbacks(&self) -> Result<Option<Raw<'static>>, CanvasError> {
        let list = (!self.link.is_empty()).then(|| encode_list("link", &self.link));
        list.transpose()
    }

    /// Encodes the errbacks; `None` if there are none.
    pub(super) fn errbacks(&self) -> Result<Option<Raw<'static>>, CanvasError> {
        let list =
            (!self.link_error.is_empty()).then(|| encode_list("link_error", &self.link_error));
        list.transpose()
    }
}

/// The options of a signature: plain values, and those that contain signatures.
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

/// Encoded values by name, as a map.
struct MapEntries<'a>(&'a [(&'a str, &'a Raw<'static>)]);

impl Serialize for MapEntries<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// Encodes the keyword arguments of a chain or group: `{"tasks": [...]}`.
fn tasks_kwargs(parts: &[Canvas]) -> Result<Raw<'static>, CanvasError> {
    let tasks = encode_list("tasks", parts)?;
    Ok(Raw::encode(
        Serializer::Json,
        &MapEntries(&[("tasks", &tasks)]),
    )?)
}

/// Encodes canvases as a list. `name` is the field in error paths.
fn encode_list(name: &str, parts: &[Canvas]) -> Result<Raw<'static>, CanvasError> {
    let parts = parts.iter().enumerate().map(|(index, part)| {
        let wire = part.to_wire();
        wire.map_err(|error| error.inside(format_args!("{name}[{index}]")))
    });
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    Ok(Raw::encode(Serializer::Json, &parts)?)
}

/// Decodes a signature with at most `levels` nesting levels.
fn decode(raw: &Raw<'_>, levels: usize) -> Result<Canvas, CanvasError> {
    if levels == 0 {
        let cause = format!("signatures are nested more than {MAX_DEPTH} levels deep");
        return Err(CanvasError::new(cause));
    }
    if raw.is_null() {
        return Err(CanvasError::new("expected a signature, found null"));
    }
    let signature = WireSignature::read(raw).map_err(|error| invalid_signature(&error))?;
    let kind = match signature.subtask_type.as_deref() {
        None => decode_task(&signature)?,
        Some("chain") => NodeKind::Chain(decode_tasks(&signature, levels)?),
        Some("group") => NodeKind::Group(GroupNode {
            frozen: option(&signature, "task_id")?.is_some(),
            tasks: decode_tasks(&signature, levels)?,
            keep_group: false,
        }),
        Some("chord") => NodeKind::Chord(Box::new(decode_chord(&signature, levels)?)),
        Some(other) => {
            let cause = format!("unknown subtask_type {other:?}; expected chain, group or chord");
            return Err(CanvasError::new(cause));
        }
    };
    let depth = match &kind {
        NodeKind::Task(_) => 0,
        NodeKind::Chain(steps) => Canvas::depth_of(steps),
        NodeKind::Group(group) => Canvas::depth_of(&group.tasks),
        NodeKind::Chord(chord) => chord.header.depth().max(chord.body.depth()),
    };
    let is_leaf = matches!(kind, NodeKind::Task(_));
    let mut canvas = Canvas::of(kind).with_nested_depth(depth);
    canvas.immutable = signature.immutable;
    if !is_leaf {
        let args = signature
            .args
            .elements()
            .map_err(|error| invalid_signature(&error))?;
        let args: Vec<_> = args.into_iter().map(Raw::into_owned).collect();
        canvas.prepend_args(&args);
    }
    decode_options(canvas, &signature, levels)
}

fn decode_options(
    mut canvas: Canvas,
    signature: &WireSignature<'_>,
    levels: usize,
) -> Result<Canvas, CanvasError> {
    let call = CallOptions::from_wire(&signature.options);
    let mut call = call.map_err(CanvasError::new)?;
    let embed = std::mem::take(&mut call.embed);
    let mut depth = 0;
    for (name, list, target) in [
        ("link", embed.callbacks, &mut canvas.options.link),
        ("link_error", embed.errbacks, &mut canvas.options.link_error),
    ] {
        if let Some(list) = list {
            *target = decode_list(name, &list, levels)?;
            depth = depth.max(Canvas::depth_of(target));
        }
    }
    if let Some(chain) = embed.chain {
        let chain = chain
            .elements()
            .map_err(|error| invalid_signature(&error))?;
        canvas.options.chain = chain.into_vec();
    }
    canvas.options.chord = embed.chord.map(std::sync::Arc::new);
    canvas.options.call = call;
    Ok(canvas.with_nested_depth(depth))
}

fn decode_task(signature: &WireSignature<'_>) -> Result<NodeKind, CanvasError> {
    // Decoded here so that an error is reported before the task is sent.
    let args = signature.args.elements();
    args.map_err(|error| invalid_signature(&error.in_field("args")))?;
    let kwargs = signature.kwargs.entries();
    let kwargs = kwargs.map_err(|error| invalid_signature(&error.in_field("kwargs")))?;
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
    Ok(NodeKind::Task(Box::new(call)))
}

fn decode_chord(signature: &WireSignature<'_>, levels: usize) -> Result<ChordNode, CanvasError> {
    let header =
        entry(signature, "header")?.ok_or_else(|| CanvasError::new("a chord without a header"))?;
    let body = entry(signature, "body")?
        .ok_or_else(|| CanvasError::new("a chord without a body").inside("body"))?;
    let kwargs = entry(signature, "kwargs")?;
    let body = decode(&body, levels - 1).map_err(|error| error.inside("body"))?;
    let (header, frozen) = match header.elements() {
        Ok(_) => (
            Canvas::group(decode_list("header", &header, levels)?),
            false,
        ),
        Err(_) => {
            let header = decode(&header, levels - 1).map_err(|error| error.inside("header"))?;
            match header.kind {
                NodeKind::Group(_) => (header, true),
                // Celery accepts a chain, whose steps are the tasks, and a single task.
                _ => (Canvas::group(header.into_steps()), false),
            }
        }
    };
    Ok(ChordNode {
        header,
        body,
        kwargs: kwargs.map_or_else(|| Raw::json("{}"), Raw::into_owned),
        errbacks: Vec::new(),
        frozen,
    })
}

fn decode_tasks(signature: &WireSignature<'_>, levels: usize) -> Result<Vec<Canvas>, CanvasError> {
    match entry(signature, "tasks")? {
        Some(tasks) => decode_list("tasks", &tasks, levels),
        None => {
            let cause = format!("a {} without tasks", signature.task);
            Err(CanvasError::new(cause).inside("tasks"))
        }
    }
}

fn decode_list(name: &str, list: &Raw<'_>, levels: usize) -> Result<Vec<Canvas>, CanvasError> {
    let list = list
        .elements()
        .map_err(|error| invalid_signature(&error).inside(name))?;
    let parts = list.iter().enumerate().map(|(index, part)| {
        decode(part, levels - 1).map_err(|error| error.inside(format_args!("{name}[{index}]")))
    });
    parts.collect()
}

/// Returns a keyword argument of the signature that is not null.
fn entry<'a>(signature: &WireSignature<'a>, name: &str) -> Result<Option<Raw<'a>>, CanvasError> {
    let entries = signature.kwargs.entries();
    let entries = entries.map_err(|error| invalid_signature(&error.in_field("kwargs")))?;
    let found = entries.into_iter().rev().find(|(key, _)| key == name);
    Ok(found
        .map(|(_, value)| value)
        .filter(|value| !value.is_null()))
}

fn option<'a>(signature: &WireSignature<'a>, name: &str) -> Result<Option<Raw<'a>>, CanvasError> {
    signature
        .option(name)
        .map_err(|error| invalid_signature(&error))
}

fn invalid_signature(error: &DecodeError) -> CanvasError {
    CanvasError::new(format!("cannot read a signature: {error}"))
}

/// Converts an error in decoding a part that this crate has encoded.
pub(super) fn encode_error(error: &DecodeError) -> EncodeError {
    EncodeError::new(error.to_string())
}
