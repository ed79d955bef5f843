//! A workflow without types: [`Canvas`].

use std::sync::Arc;

use celery_protocol::{EncodeError, Raw, Serializer, Value};
use serde::Serialize;

use crate::canvas::call::TaskCall;
use crate::canvas::error::CanvasError;
use crate::canvas::options::CallOptions;

/// A workflow of any shape, without types: one task, or a chain, group or chord of workflows, with
/// the options of the call.
///
/// [`Signature`](crate::Signature) and [`Group`](crate::Group) are typed wrappers of it. A
/// signature in a message from Python is decoded to it.
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
    pub(super) kind: NodeKind,
    /// Boxed, because canvases are moved often.
    pub(super) options: Box<NodeOptions>,
    /// Whether arguments that are added later are ignored.
    pub(super) immutable: bool,
    /// The number of nesting levels, this one included.
    depth: usize,
    /// The first error in building the canvas, reported when it is encoded or sent.
    pub(super) error: Option<CanvasError>,
}

/// The four shapes of a canvas.
#[derive(Clone, Debug)]
pub(super) enum NodeKind {
    Task(Box<TaskCall>),
    Chain(Vec<Canvas>),
    Group(GroupNode),
    Chord(Box<ChordNode>),
}

/// The contents of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupNode {
    pub(super) tasks: Vec<Canvas>,
    /// Whether the group has ids. Celery then encodes its root and parent even if they are null.
    pub(super) frozen: bool,
    /// Whether a group of one member stays a group, because its type promises a list of results.
    pub(super) keep_group: bool,
}

/// The contents of a chord.
#[derive(Clone, Debug)]
pub(super) struct ChordNode {
    /// A group.
    pub(super) header: Canvas,
    pub(super) body: Canvas,
    /// Keyword arguments of all tasks in the header.
    pub(super) kwargs: Raw<'static>,
    /// The errbacks of the body that were linked to the chord.
    pub(super) errbacks: Vec<Canvas>,
    /// Whether the header is encoded as a group, as in Celery's frozen chords, and not as a list.
    pub(super) frozen: bool,
}

/// The options of a call, including those that are signatures.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeOptions {
    pub(super) call: CallOptions,
    pub(super) link: Vec<Canvas>,
    pub(super) link_error: Vec<Canvas>,
    /// The encoded body of the chord whose header contains the canvas.
    pub(super) chord: Option<Arc<Raw<'static>>>,
    /// The encoded steps that follow it in a chain, the next step last.
    pub(super) chain: Vec<Raw<'static>>,
}

/// The maximum number of nesting levels. Python's JSON decoder stops at 1000, and each level of a
/// canvas takes at least three levels of JSON.
pub(super) const MAX_DEPTH: usize = 100;

impl Canvas {
    pub(crate) fn call(call: TaskCall) -> Self {
        Self::of(NodeKind::Task(Box::new(call)))
    }

    pub(super) fn of(kind: NodeKind) -> Self {
        Self {
            kind,
            options: Box::default(),
            immutable: false,
            depth: 1,
            error: None,
        }
    }

    /// Creates a chain: each step receives the result of the step before as its first argument.
    /// Equivalent to [`then`](Self::then) between all steps.
    pub fn chain(steps: impl IntoIterator<Item = Self>) -> Self {
        let empty = Self::of(NodeKind::Chain(Vec::new()));
        steps.into_iter().fold(empty, Self::then)
    }

    /// Creates a group, whose tasks run in parallel.
    pub fn group(tasks: impl IntoIterator<Item = Self>) -> Self {
        let tasks: Vec<_> = tasks.into_iter().collect();
        let depth = Self::depth_of(&tasks);
        Self::of(NodeKind::Group(GroupNode {
            tasks,
            ..GroupNode::default()
        }))
        .with_nested_depth(depth)
    }

    /// Creates a chord: the tasks of the header run in parallel, then the body with the list of
    /// their results.
    pub fn chord(header: impl IntoIterator<Item = Self>, body: Self) -> Self {
        Self::chord_of(Self::group(header), body)
    }

    pub(super) fn chord_of(header: Self, body: Self) -> Self {
        let depth = header.depth.max(body.depth);
        Self::of(NodeKind::Chord(Box::new(ChordNode {
            header,
            body,
            kwargs: Raw::json("{}"),
            errbacks: Vec::new(),
            frozen: false,
        })))
        .with_nested_depth(depth)
    }

    /// Creates a task that calls another one with each item, one after the other in one process:
    /// `celery.map`, or `celery.starmap` if each item is an array of arguments.
    pub(crate) fn mapped(name: &'static str, task: &Self, items: &[Raw<'static>]) -> Self {
        Self::over_items(name, task, items, None)
    }

    /// Creates a task `celery.chunks`, which runs a `starmap` per `n` items. A client sends it as a
    /// group of starmaps; inside a larger canvas the worker expands it.
    pub fn chunks<A: Serialize>(task: &Self, items: impl IntoIterator<Item = A>, n: usize) -> Self {
        let items = items
            .into_iter()
            .map(|item| Raw::encode(Serializer::Json, &item));
        match items.collect::<Result<Vec<_>, _>>() {
            Ok(items) => Self::over_items("celery.chunks", task, &items, Some(n)),
            Err(error) => task.clone().with_error(error.into()),
        }
    }

    fn over_items(
        name: &'static str,
        task: &Self,
        items: &[Raw<'static>],
        n: Option<usize>,
    ) -> Self {
        #[derive(Serialize)]
        struct MapKwargs<'a> {
            task: &'a Raw<'static>,
            it: &'a [Raw<'static>],
            #[serde(skip_serializing_if = "Option::is_none")]
            n: Option<usize>,
        }
        let encoded = task.to_wire().and_then(|task| {
            let kwargs = MapKwargs {
                task: &task,
                it: items,
                n,
            };
            Ok(Raw::encode(Serializer::Json, &kwargs)?)
        });
        let (kwargs, error) = match encoded {
            Ok(kwargs) => (kwargs, None),
            Err(error) => (Raw::json("{}"), Some(error.inside("task"))),
        };
        let mut call = TaskCall::untyped(name, Raw::json("[]"), kwargs);
        if let NodeKind::Task(task) = &task.kind {
            call.routed_as = Some(task.task.clone());
            call.queue.clone_from(&task.queue);
        }
        Self {
            immutable: true,
            error,
            ..Self::call(call)
        }
    }

    /// Returns the name of the task; `celery.chain`, `celery.group` or `celery.chord` for a chain,
    /// group or chord.
    pub fn task(&self) -> &str {
        match &self.kind {
            NodeKind::Task(call) => &call.task,
            NodeKind::Chain(_) => "celery.chain",
            NodeKind::Group(_) => "celery.group",
            NodeKind::Chord(_) => "celery.chord",
        }
    }

    /// Sets an option of the call by its name in Celery. On a group it applies to all members, on a
    /// chain to the first step, on a chord to header and body, as in Celery. An invalid value is
    /// reported when the canvas is encoded or sent.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = Raw::from_value(value.into());
        if let Err(cause) = self.options.call.set(name, &value) {
            let cause = format!("cannot set option {name}: {cause}");
            return self.with_error(CanvasError::new(cause));
        }
        self
    }

    /// Ignores arguments that are added later, such as the result of the step before. On a group it
    /// applies to all members, on a chain to the first step, on a chord to the header.
    #[must_use]
    pub fn immutable(mut self) -> Self {
        self.make_immutable();
        self
    }

    fn make_immutable(&mut self) {
        match &mut self.kind {
            NodeKind::Task(_) => self.immutable = true,
            NodeKind::Chain(steps) => {
                self.immutable = true;
                steps.iter_mut().take(1).for_each(Self::make_immutable);
            }
            NodeKind::Group(group) => group.tasks.iter_mut().for_each(Self::make_immutable),
            NodeKind::Chord(chord) => chord.header.make_immutable(),
        }
    }

    /// Prepends arguments to those of the task, of a chain's first step, of all members of a group,
    /// or of all tasks in the header of a chord. Immutable tasks are not changed.
    #[must_use]
    pub fn given<A: Serialize>(mut self, args: A) -> Self {
        let raw = Raw::encode(Serializer::Json, &args).and_then(|raw| {
            let own = raw.elements().map(|args| args.into_vec());
            own.map_err(|error| EncodeError::new(error.to_string()))
        });
        match raw {
            Ok(args) => self.prepend_args(&args),
            Err(error) => return self.with_error(error.into()),
        }
        self
    }

    /// Prepends one encoded argument; see [`given`](Self::given).
    pub(crate) fn prepend_arg(mut self, first: &Raw<'_>) -> Self {
        self.prepend_args(&[first.clone().into_owned()]);
        self
    }

    pub(super) fn prepend_args(&mut self, args: &[Raw<'static>]) {
        if args.is_empty() || self.immutable {
            return;
        }
        match &mut self.kind {
            NodeKind::Task(call) => call.prepend_args(args),
            NodeKind::Chain(steps) => steps
                .iter_mut()
                .take(1)
                .for_each(|step| step.prepend_args(args)),
            NodeKind::Group(group) => group
                .tasks
                .iter_mut()
                .for_each(|task| task.prepend_args(args)),
            NodeKind::Chord(chord) => chord.header.prepend_args(args),
        }
    }

    pub(super) fn is_empty_group(&self) -> bool {
        matches!(&self.kind, NodeKind::Group(group) if group.tasks.is_empty())
    }

    /// Keeps a group of one member as a group.
    pub(super) fn keep_group(mut self) -> Self {
        if let NodeKind::Group(group) = &mut self.kind {
            group.keep_group = true;
        }
        self
    }

    /// Replaces a group of one member by the member, unless [`keep_group`](Self::keep_group) was
    /// called.
    pub(super) fn unrolled(mut self) -> Self {
        match &mut self.kind {
            NodeKind::Group(group) if group.tasks.len() == 1 && !group.keep_group => {
                let mut only = group.tasks.remove(0);
                only.options.call.overlay(&CallOptions {
                    task_id: None,
                    ..self.options.call
                });
                only.options.link_error.extend(self.options.link_error);
                only.error = only.error.or(self.error);
                only
            }
            _ => self,
        }
    }

    /// Returns the number of results that it contributes to a chord: for a chain that of its last
    /// step, for a chord that of its body.
    pub(crate) fn size(&self) -> usize {
        match &self.kind {
            NodeKind::Task(_) => 1,
            NodeKind::Chain(steps) => {
                let sizes = steps.iter().rev().map(Self::size);
                sizes.into_iter().find(|size| *size > 0).unwrap_or(0)
            }
            NodeKind::Group(group) => group.tasks.iter().map(Self::size).sum(),
            NodeKind::Chord(chord) => chord.body.size(),
        }
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Returns the largest depth of `canvases`, 0 if there are none.
    pub(super) fn depth_of(canvases: &[Self]) -> usize {
        canvases
            .iter()
            .map(|canvas| canvas.depth)
            .max()
            .unwrap_or(0)
    }

    /// Raises the depth for a nested canvas of depth `nested`. A canvas that is too deep is
    /// replaced by an error, which drops it one level at a time and not recursively.
    pub(super) fn with_nested_depth(mut self, nested: usize) -> Self {
        self.depth = self.depth.max(nested + 1);
        if self.depth <= MAX_DEPTH {
            return self;
        }
        let cause = format!(
            "a canvas is nested more than {MAX_DEPTH} levels deep, which decoders reject; append the \
             steps with then() instead"
        );
        Self::of(NodeKind::Chain(Vec::new())).with_error(CanvasError::new(cause))
    }

    /// Records an error, unless there is one already.
    pub(super) fn with_error(mut self, error: CanvasError) -> Self {
        self.error.get_or_insert(error);
        self
    }

    /// Returns the first error in building the canvas or a nested one.
    pub(super) fn check(&self) -> Result<(), CanvasError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let all = |name: &str, canvases: &[Self]| {
            let mut canvases = canvases.iter().enumerate();
            canvases.try_for_each(|(index, canvas)| {
                canvas
                    .check()
                    .map_err(|error| error.inside(format_args!("{name}[{index}]")))
            })
        };
        match &self.kind {
            NodeKind::Task(_) => {}
            NodeKind::Chain(steps) => all("tasks", steps)?,
            NodeKind::Group(group) => all("tasks", &group.tasks)?,
            NodeKind::Chord(chord) => {
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
