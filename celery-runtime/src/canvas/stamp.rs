//! Stamps on all parts of a canvas: [`StampingVisitor`].

use celery_protocol::{Map, Value};

use crate::canvas::node::{Canvas, Kind};

/// What is stamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StampTarget<'a> {
    /// A task with this name.
    Task(&'a str),
    /// A chain; its stamps go on to its steps.
    Chain,
    /// A group; its stamps go on to its members.
    Group,
    /// The header of a chord; its stamps go on to its tasks.
    ChordHeader,
    /// The body of a chord.
    ChordBody,
    /// A callback with this name.
    Callback(&'a str),
    /// An errback with this name.
    Errback(&'a str),
}

/// Says which stamps the parts of a canvas get. Closures do it, too.
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
    /// The stamps of this part, and of what is inside; those of the inside go
    /// first where both name one.
    fn stamps(&mut self, part: StampTarget<'_>) -> Map;
}

impl<F: FnMut(StampTarget<'_>) -> Map> StampingVisitor for F {
    fn stamps(&mut self, part: StampTarget<'_>) -> Map {
        self(part)
    }
}

impl Canvas {
    /// Puts one stamp on all tasks in it, callbacks included, by which they can
    /// be told apart and revoked.
    #[must_use]
    pub fn stamp(self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let stamps = Map::from([(name.into(), value.into())]);
        self.stamp_with(&mut |part: StampTarget<'_>| match part {
            StampTarget::Task(_) => stamps.clone(),
            _ => Map::new(),
        })
    }

    /// Lets `visitor` stamp every part. A stamp that is there already gives way
    /// to a new one; lists are joined.
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
            Kind::Task(call) => {
                let stamps = merged(inherited, &visitor.stamps(StampTarget::Task(&call.task)));
                self.options.call.stamps = merged(&self.options.call.stamps, &stamps);
            }
            Kind::Chain(steps) => {
                let stamps = merged(inherited, &visitor.stamps(StampTarget::Chain));
                steps
                    .iter_mut()
                    .for_each(|step| step.visit(visitor, &stamps));
            }
            Kind::Group(group) => {
                let stamps = merged(inherited, &visitor.stamps(StampTarget::Group));
                let members = group.tasks.iter_mut();
                members.for_each(|task| task.visit(visitor, &stamps));
            }
            Kind::Chord(chord) => {
                let stamps = merged(inherited, &visitor.stamps(StampTarget::ChordHeader));
                if let Kind::Group(header) = &mut chord.header.kind {
                    let members = header.tasks.iter_mut();
                    members.for_each(|task| task.visit(visitor, &stamps));
                }
                let stamps = merged(&stamps, &visitor.stamps(StampTarget::ChordBody));
                chord.body.visit(visitor, &stamps);
            }
        }
    }
}

/// The new ones count; two lists become one.
fn merged(old: &Map, new: &Map) -> Map {
    let mut all = old.clone();
    for (name, value) in new.iter() {
        let before = name.as_str().and_then(|name| old.get(name));
        let value = match (before, value) {
            (Some(Value::Array(before)), Value::Array(value)) => {
                let more = value.iter().filter(|one| !before.contains(one));
                Value::Array(before.iter().chain(more).cloned().collect())
            }
            _ => value.clone(),
        };
        all.insert(name.clone(), value);
    }
    all
}
