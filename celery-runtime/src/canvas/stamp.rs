//! Stamping the parts of a canvas: [`StampingVisitor`].

use celery_protocol::{Map, Value};

use crate::canvas::node::{Canvas, NodeKind};

/// The part of a canvas that a [`StampingVisitor`] stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StampTarget<'a> {
    /// The task with this name.
    Task(&'a str),
    /// A chain; its steps inherit the stamps.
    Chain,
    /// A group; its members inherit the stamps.
    Group,
    /// The header of a chord; its tasks inherit the stamps.
    ChordHeader,
    /// The body of a chord.
    ChordBody,
    /// A callback with this name.
    Callback(&'a str),
    /// An errback with this name.
    Errback(&'a str),
}

/// A function that returns the stamps of each part of a canvas. Closures implement it.
///
/// ```
/// use celery_protocol::Map;
/// use celery_runtime::{Canvas, Signature, StampTarget, StampingVisitor};
///
/// let canvas = Canvas::from(Signature::named("tasks.add", (1, 2), ()));
/// let stamped = canvas.stamp_with(&mut |part: StampTarget<'_>| match part {
///     StampTarget::Task(name) => Map::from([("name", name)]),
///     _ => Map::new(),
/// });
/// # let _ = stamped;
/// ```
pub trait StampingVisitor {
    /// Returns the stamps of `part`, which nested parts inherit. A stamp of a nested part overrides
    /// an inherited one with the same name.
    fn stamps(&mut self, part: StampTarget<'_>) -> Map;
}

impl<F: FnMut(StampTarget<'_>) -> Map> StampingVisitor for F {
    fn stamps(&mut self, part: StampTarget<'_>) -> Map {
        self(part)
    }
}

impl Canvas {
    /// Adds a stamp to all tasks, including callbacks and errbacks. Tasks can be identified and
    /// revoked by their stamps.
    #[must_use]
    pub fn stamp(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let stamps = Map::from([(name.into(), value.into())]);
        self.stamp_with(&mut |part: StampTarget<'_>| match part {
            StampTarget::Task(_) => stamps.clone(),
            _ => Map::new(),
        })
    }

    /// Stamps every part with the stamps that `visitor` returns. A new stamp overrides an existing
    /// one with the same name; two lists are concatenated.
    #[must_use]
    pub fn stamp_with(mut self, visitor: &mut dyn StampingVisitor) -> Self {
        self.visit(visitor, &Map::new());
        self
    }

    fn visit(&mut self, visitor: &mut dyn StampingVisitor, inherited: &Map) {
        for link in &mut self.options.link {
            let stamps = visitor.stamps(StampTarget::Callback(link.task()));
            link.visit(visitor, &merged(inherited, &stamps));
        }
        for link in &mut self.options.link_error {
            let stamps = visitor.stamps(StampTarget::Errback(link.task()));
            link.visit(visitor, &merged(inherited, &stamps));
        }
        match &mut self.kind {
            NodeKind::Task(call) => {
                let stamps = merged(inherited, &visitor.stamps(StampTarget::Task(&call.task)));
                self.options.call.stamps = merged(&self.options.call.stamps, &stamps);
            }
            NodeKind::Chain(steps) => {
                let stamps = merged(inherited, &visitor.stamps(StampTarget::Chain));
                steps
                    .iter_mut()
                    .for_each(|step| step.visit(visitor, &stamps));
            }
            NodeKind::Group(group) => {
                let stamps = merged(inherited, &visitor.stamps(StampTarget::Group));
                let members = group.tasks.iter_mut();
                members.for_each(|task| task.visit(visitor, &stamps));
            }
            NodeKind::Chord(chord) => {
                let stamps = merged(inherited, &visitor.stamps(StampTarget::ChordHeader));
                if let NodeKind::Group(header) = &mut chord.header.kind {
                    let members = header.tasks.iter_mut();
                    members.for_each(|task| task.visit(visitor, &stamps));
                }
                let stamps = merged(&stamps, &visitor.stamps(StampTarget::ChordBody));
                chord.body.visit(visitor, &stamps);
            }
        }
    }
}

/// Merges two sets of stamps: a new one overrides the old one; two lists are concatenated without
/// duplicates.
fn merged(old: &Map, new: &Map) -> Map {
    let mut all = old.clone();
    for (name, value) in new.iter() {
        let before = name.as_str().and_then(|name| old.get(name));
        let value = match (before, value) {
            (Some(Value::Array(before)), Value::Array(value)) => {
                let new = value.iter().filter(|value| !before.contains(value));
                Value::Array(before.iter().chain(new).cloned().collect())
            }
            _ => value.clone(),
        };
        all.insert(name.clone(), value);
    }
    all
}
