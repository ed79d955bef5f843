//! A canvas without types: [`Canvas`].

use std::sync::Arc;

use celery_protocol::{EncodeError, Raw, Serializer, Value};
use serde::Serialize;

use crate::canvas::call::TaskCall;
use crate::canvas::error::CanvasError;
use crate::canvas::options::CallOptions;

/// A workflow of any shape, without types: one task, or a chain, group or chord
/// of such workflows, with the options of the call.
///
/// It is what [`Signature`](crate::Signature) and [`Group`](crate::Group) are
/// made of, and what is read from a message that a Python program has written.
///
/// ```
/// use celery_runtime::{Canvas, Signature};
///
/// let add = |x: i64, y: i64| Canvas::from(Signature::named("tasks.add", (x, y), ()));
/// let xsum = Canvas::from(Signature::named("tasks.xsum", (), ()));
/// let total = Canvas::group([add(1, 1), add(2, 2)]).then(xsum);
/// assert_eq!(total.task(), "celery.chord");
/// ```
#[derive(Clone, Debug)]
pub struct Canvas {
    pub(super) kind: Kind,
    /// In a box, since canvases are moved about a lot.
    pub(super) options: Box<Options>,
    /// Whether arguments given later are thrown away.
    pub(super) immutable: bool,
    /// How many levels are below, itself included.
    depth: usize,
    /// What could not be built; reported when it is written or sent.
    pub(super) flaw: Option<CanvasError>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Task(Box<TaskCall>),
    Chain(Vec<Canvas>),
    Group(Members),
    Chord(Box<Chord>),
}

/// What a group is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    pub(super) tasks: Vec<Canvas>,
    /// Its ids were given; Celery then writes its root and parent, null or not.
    pub(super) frozen: bool,
    /// It stays a group although it has one member only, since its type says
    /// that its result is a list.
    pub(super) whole: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Chord {
    /// Always a group.
    pub(super) header: Canvas,
    pub(super) body: Canvas,
    /// Keyword arguments for all tasks of the header.
    pub(super) kwargs: Raw<'static>,
    /// Those of the body's errbacks that were linked to the chord.
    pub(super) errbacks: Vec<Canvas>,
    /// Where the header came as a group of its own, as in Celery's frozen ones.
    pub(super) frozen: bool,
}

/// The options of a call, with those that are signatures themselves.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) call: CallOptions,
    pub(super) link: Vec<Canvas>,
    pub(super) link_error: Vec<Canvas>,
    /// The body of the chord that it is counted for, written.
    pub(super) chord: Option<Arc<Raw<'static>>>,
    /// What follows it in a chain, the next step last, written.
    pub(super) rest: Vec<Raw<'static>>,
}

/// More levels would be more than readers follow: Python stops at a thousand of
/// JSON, and a canvas takes at least three for each of its own.
pub(super) const MAX_DEPTH: usize = 100;

impl Canvas {
    pub(crate) fn call(call: TaskCall) -> Self {
        Self::of(Kind::Task(Box::new(call)))
    }

    pub(super) fn of(kind: Kind) -> Self {
        Self {
            kind,
            options: Box::default(),
            immutable: false,
            depth: 1,
            flaw: None,
        }
    }

    /// One after the other: each step gets the result of the one before as its
    /// first argument. The same as [`then`](Self::then) between all of them.
    pub fn chain(steps: impl IntoIterator<Item = Self>) -> Self {
        let empty = Self::of(Kind::Chain(Vec::new()));
        steps.into_iter().fold(empty, Self::then)
    }

    /// Side by side.
    pub fn group(tasks: impl IntoIterator<Item = Self>) -> Self {
        let tasks: Vec<_> = tasks.into_iter().collect();
        let depth = Self::depth_of(&tasks);
        Self::of(Kind::Group(Members {
            tasks,
            ..Members::default()
        }))
        .holding(depth)
    }

    /// Side by side, and then the body with the list of all results.
    pub fn chord(header: impl IntoIterator<Item = Self>, body: Self) -> Self {
        Self::chord_of(Self::group(header), body)
    }

    pub(super) fn chord_of(header: Self, body: Self) -> Self {
        let depth = header.depth.max(body.depth);
        Self::of(Kind::Chord(Box::new(Chord {
            header,
            body,
            kwargs: Raw::json("{}"),
            errbacks: Vec::new(),
            frozen: false,
        })))
        .holding(depth)
    }

    /// One task that calls another one with each item, one after the other in
    /// one process: Celery's `map`, and its `starmap` where each item is an
    /// array of arguments.
    pub(crate) fn mapped(name: &'static str, task: &Self, items: &[Raw<'static>]) -> Self {
        Self::over_items(name, task, items, None)
    }

    /// Celery's `chunks`: groups of `n` items, each a `starmap`. On its own it
    /// is taken apart when it is sent; the worker does it elsewhere.
    pub fn chunks<A: Serialize>(task: &Self, items: impl IntoIterator<Item = A>, n: usize) -> Self {
        let items = items
            .into_iter()
            .map(|item| Raw::encode(Serializer::Json, &item));
        match items.collect::<Result<Vec<_>, _>>() {
            Ok(items) => Self::over_items("celery.chunks", task, &items, Some(n)),
            Err(error) => task.clone().failed(error.into()),
        }
    }

    fn over_items(
        name: &'static str,
        task: &Self,
        items: &[Raw<'static>],
        n: Option<usize>,
    ) -> Self {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            task: &'a Raw<'static>,
            it: &'a [Raw<'static>],
            #[serde(skip_serializing_if = "Option::is_none")]
            n: Option<usize>,
        }
        let written = task.to_wire().and_then(|task| {
            let kwargs = Kwargs {
                task: &task,
                it: items,
                n,
            };
            Ok(Raw::encode(Serializer::Json, &kwargs)?)
        });
        let (kwargs, flaw) = match written {
            Ok(kwargs) => (kwargs, None),
            Err(error) => (Raw::json("{}"), Some(error.inside("task"))),
        };
        let mut call = TaskCall::untyped(name, Raw::json("[]"), kwargs);
        if let Kind::Task(task) = &task.kind {
            call.routed_as = Some(task.task.clone());
            call.queue.clone_from(&task.queue);
        }
        Self {
            immutable: true,
            flaw,
            ..Self::call(call)
        }
    }

    /// The name of the task; `celery.chain`, `celery.group` or `celery.chord`
    /// for those.
    pub fn task(&self) -> &str {
        match &self.kind {
            Kind::Task(call) => &call.task,
            Kind::Chain(_) => "celery.chain",
            Kind::Group(_) => "celery.group",
            Kind::Chord(_) => "celery.chord",
        }
    }

    /// Sets an option of the call by Celery's name for it. On a group it counts
    /// for all members, on a chain for its first step, on a chord for header and
    /// body, as in Celery.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = Raw::from_value(value.into());
        if let Err(cause) = self.options.call.set(name, &value) {
            let cause = format!("cannot set option {name}: {cause}");
            return self.failed(CanvasError::new(cause));
        }
        self
    }

    /// Throws arguments that come later away, such as the result of the step
    /// before: the members' of a group, the header's of a chord, the first
    /// step's of a chain.
    #[must_use]
    pub fn immutable(mut self) -> Self {
        self.make_immutable();
        self
    }

    fn make_immutable(&mut self) {
        match &mut self.kind {
            Kind::Task(_) => self.immutable = true,
            Kind::Chain(steps) => {
                self.immutable = true;
                steps.iter_mut().take(1).for_each(Self::make_immutable);
            }
            Kind::Group(group) => group.tasks.iter_mut().for_each(Self::make_immutable),
            Kind::Chord(chord) => chord.header.make_immutable(),
        }
    }

    /// The same with these arguments before those that are there: of the task,
    /// of a chain's first step, of all members of a group, of all tasks in the
    /// header of a chord. Immutable ones stay as they are.
    #[must_use]
    pub fn given<A: Serialize>(mut self, args: A) -> Self {
        let raw = Raw::encode(Serializer::Json, &args).and_then(|raw| {
            let own = raw.elements().map(|args| args.into_vec());
            own.map_err(|error| EncodeError::new(error.to_string()))
        });
        match raw {
            Ok(args) => self.give(&args),
            Err(error) => return self.failed(error.into()),
        }
        self
    }

    /// The same with one argument before those that are there.
    pub(crate) fn given_raw(mut self, first: &Raw<'_>) -> Self {
        self.give(&[first.clone().into_owned()]);
        self
    }

    pub(super) fn give(&mut self, args: &[Raw<'static>]) {
        if args.is_empty() || self.immutable {
            return;
        }
        match &mut self.kind {
            Kind::Task(call) => call.give(args),
            Kind::Chain(steps) => steps.iter_mut().take(1).for_each(|step| step.give(args)),
            Kind::Group(group) => group.tasks.iter_mut().for_each(|task| task.give(args)),
            Kind::Chord(chord) => chord.header.give(args),
        }
    }

    pub(super) fn is_empty_group(&self) -> bool {
        matches!(&self.kind, Kind::Group(group) if group.tasks.is_empty())
    }

    /// A group that is not taken apart, be it of one.
    pub(super) fn whole(mut self) -> Self {
        if let Kind::Group(group) = &mut self.kind {
            group.whole = true;
        }
        self
    }

    /// A group of one is that one.
    pub(super) fn unrolled(mut self) -> Self {
        match &mut self.kind {
            Kind::Group(group) if group.tasks.len() == 1 && !group.whole => {
                let mut only = group.tasks.remove(0);
                only.options.call.overlay(&CallOptions {
                    task_id: None,
                    ..self.options.call
                });
                only.options.link_error.extend(self.options.link_error);
                only.flaw = only.flaw.or(self.flaw);
                only
            }
            _ => self,
        }
    }

    /// How many results a chord counts for it: of a chain those of its last
    /// step, of a chord those of its body.
    pub(crate) fn size(&self) -> usize {
        match &self.kind {
            Kind::Task(_) => 1,
            Kind::Chain(steps) => {
                let sizes = steps.iter().rev().map(Self::size);
                sizes.into_iter().find(|size| *size > 0).unwrap_or(0)
            }
            Kind::Group(group) => group.tasks.iter().map(Self::size).sum(),
            Kind::Chord(chord) => chord.body.size(),
        }
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn depth_of(parts: &[Self]) -> usize {
        parts.iter().map(|part| part.depth).max().unwrap_or(0)
    }

    /// The same with a part of this depth inside. Too deep a canvas is let go
    /// of, one level at a time: only that it was too deep is kept.
    pub(super) fn holding(mut self, inside: usize) -> Self {
        self.depth = self.depth.max(inside + 1);
        if self.depth <= MAX_DEPTH {
            return self;
        }
        let cause = format!(
            "a canvas of more than {MAX_DEPTH} levels inside each other, which no reader follows; \
             put steps after each other with then() instead"
        );
        Self::of(Kind::Chain(Vec::new())).failed(CanvasError::new(cause))
    }

    pub(super) fn failed(mut self, error: CanvasError) -> Self {
        self.flaw.get_or_insert(error);
        self
    }

    /// What could not be built, here or in a part.
    pub(super) fn check(&self) -> Result<(), CanvasError> {
        if let Some(flaw) = &self.flaw {
            return Err(flaw.clone());
        }
        let all = |name: &str, parts: &[Self]| {
            let mut parts = parts.iter().enumerate();
            parts.try_for_each(|(place, part)| {
                part.check()
                    .map_err(|error| error.inside(format_args!("{name}[{place}]")))
            })
        };
        match &self.kind {
            Kind::Task(_) => {}
            Kind::Chain(steps) => all("tasks", steps)?,
            Kind::Group(group) => all("tasks", &group.tasks)?,
            Kind::Chord(chord) => {
                chord
                    .header
                    .check()
                    .map_err(|error| error.inside("header"))?;
                chord.body.check().map_err(|error| error.inside("body"))?;
            }
        }
        all("link", &self.options.link)?;
        all("link_error", &self.options.link_error)
    }
}
