//! The messages and chords that start a canvas: [`plan`].

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Map, Raw, ResultTree, Serializer, Value};

use crate::boundary::ChordStart;
use crate::canvas::call::TaskCall;
use crate::canvas::error::CanvasError;
use crate::canvas::ids::{IdSource, Position, empty_chain, flatten_groups, prepare_steps};
use crate::canvas::node::{Canvas, ChordNode, NodeKind, NodeOptions};
use crate::canvas::options::{CallOptions, Time};
use crate::canvas::wire::encode_error;

/// Everything that is needed to start a canvas.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The tasks to send, in this order.
    pub(crate) tasks: Vec<PlannedTask>,
    /// The chords to register with the result backend before the tasks are sent.
    pub(crate) chords: Vec<PlannedChord>,
    /// The group ids of the chords that workers start later.
    pub(crate) later_chords: Vec<String>,
    /// The result of the canvas.
    pub(crate) result: ResultTree,
    /// The results of the tasks to send now: children of a task that sends the canvas.
    pub(crate) children: Vec<ResultTree>,
}

/// The surroundings of a canvas; empty if a client starts it.
#[derive(Debug, Default)]
pub(crate) struct PlanContext {
    /// Options that override those of the canvas.
    pub(crate) options: CallOptions,
    /// The position of the task that the canvas replaces.
    pub(crate) position: Position,
    /// The encoded steps that follow the canvas in a chain, the next step last.
    pub(crate) chain: Vec<Raw<'static>>,
}

impl Plan {
    /// Replaces the chords by tasks `celery.chord_unlock`, which poll the header, for a result
    /// backend that does not count members.
    ///
    /// # Errors
    ///
    /// Fails if JSON cannot express a body.
    pub(crate) fn with_unlock_tasks(mut self) -> Result<Self, CanvasError> {
        for chord in std::mem::take(&mut self.chords) {
            self.tasks.push(chord.unlock_task()?);
        }
        Ok(self)
    }
}

/// A chord whose header is sent.
#[derive(Debug)]
pub(crate) struct PlannedChord {
    pub(crate) start: ChordStart,
    header: ResultTree,
    body: Arc<Raw<'static>>,
    /// The queue of the body, if its options name one.
    queue: Option<String>,
    /// The task of the body, which determines the route if there is no queue.
    task: String,
}

impl PlannedChord {
    /// Creates the task `celery.chord_unlock`, which is retried until all members of the header
    /// have ended.
    ///
    /// # Errors
    ///
    /// Fails if JSON cannot express the body.
    fn unlock_task(&self) -> Result<PlannedTask, CanvasError> {
        let args = Raw::encode(Serializer::Json, &(&self.start.group_id, &*self.body))?;
        let members = self.header.members.iter().flatten();
        let members: Vec<_> = members.map(ResultTree::to_value).collect();
        let kwargs = Map::from([
            ("interval", Value::Null),
            ("max_retries", Value::Null),
            ("result", members.into()),
            ("_chord_unlock_exchange_type", "direct".into()),
        ]);
        let kwargs = Raw::encode(Serializer::Json, &kwargs)?;
        let mut call = TaskCall::untyped("celery.chord_unlock", args, kwargs);
        call.routed_as = Some(self.task.clone().into());
        Ok(PlannedTask {
            call: Box::new(call),
            options: CallOptions {
                eta: Some(Time::In(Duration::from_secs(1))),
                ignore_result: Some(true),
                queue: self.queue.clone(),
                ..CallOptions::default()
            },
        })
    }
}

/// A task to send, with its id and its continuations.
#[derive(Debug)]
pub(crate) struct PlannedTask {
    pub(crate) call: Box<TaskCall>,
    pub(crate) options: CallOptions,
}

/// Determines what has to be sent to start a canvas: the first step of a chain, which contains the
/// other steps; all members of a group; the members of a chord's header, each of which contains
/// the body.
///
/// # Errors
///
/// Fails if a part of the canvas is invalid or cannot be expressed in JSON, and for an empty chain.
pub(crate) fn plan(
    canvas: Canvas,
    context: &PlanContext,
    mut ids: IdSource<'_>,
) -> Result<Plan, CanvasError> {
    canvas.check()?;
    let canvas = canvas.followed_by(&context.chain)?;
    // Most canvases are single tasks, of which thousands may wait at the same time.
    let mut planner = Planner {
        ids: &mut ids,
        tasks: Vec::with_capacity(1),
        chords: Vec::new(),
        children: Vec::with_capacity(1),
        group_depth: 0,
    };
    let result = planner.start(canvas, &context.position, &context.options)?;
    let Planner {
        tasks,
        chords,
        children,
        ..
    } = planner;
    Ok(Plan {
        tasks,
        chords,
        children,
        later_chords: ids.chords,
        result,
    })
}

struct Planner<'a, 'i> {
    ids: &'a mut IdSource<'i>,
    tasks: Vec<PlannedTask>,
    chords: Vec<PlannedChord>,
    children: Vec<ResultTree>,
    /// The number of groups around the current node.
    group_depth: usize,
}

/// The parts of a chord: the options of the chord are moved to header and body.
struct ChordParts {
    id: String,
    header: Canvas,
    body: Canvas,
    result: ResultTree,
    root_id: Option<String>,
}

impl Planner<'_, '_> {
    /// Plans a canvas at `position`. `outer` are the options of the surrounding canvas, which
    /// override its own.
    fn start(
        &mut self,
        canvas: Canvas,
        position: &Position,
        outer: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        if let Some(error) = canvas.error {
            return Err(error);
        }
        match &canvas.kind {
            NodeKind::Task(_) => self.start_task(canvas, position, outer),
            NodeKind::Chain(_) => self.start_chain(canvas, position, outer),
            NodeKind::Group(_) => self.start_group(canvas, position, outer),
            NodeKind::Chord(_) => self.start_chord(canvas, position, outer),
        }
    }

    /// Adds a result to the children, unless it is inside a group, which is the child then.
    fn add_child(&mut self, tree: &ResultTree) {
        if self.group_depth == 0 {
            self.children.push(tree.clone());
        }
    }

    fn start_task(
        &mut self,
        mut canvas: Canvas,
        position: &Position,
        outer: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        let tree = canvas.freeze(position, self.ids)?;
        canvas.options.call.overlay(outer);
        let callbacks = canvas.options.callbacks()?;
        let errbacks = canvas.options.errbacks()?;
        let NodeOptions {
            mut call,
            chain,
            chord,
            ..
        } = *canvas.options;
        call.embed.callbacks = callbacks;
        call.embed.errbacks = errbacks;
        call.embed.chord = chord.map(Arc::unwrap_or_clone);
        if !chain.is_empty() {
            call.embed.chain = Some(Raw::encode(Serializer::Json, &chain)?);
        }
        self.add_child(&tree);
        if let NodeKind::Task(task) = canvas.kind {
            self.tasks.push(PlannedTask {
                call: task,
                options: call,
            });
        }
        Ok(tree)
    }

    /// Plans the first step of a chain, with the other steps in it.
    fn start_chain(
        &mut self,
        canvas: Canvas,
        position: &Position,
        outer: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        let NodeKind::Chain(mut steps) = canvas.kind else {
            return Err(empty_chain());
        };
        let mut options = *canvas.options;
        options.call.overlay(outer);
        let mut call = options.call;
        let position = Position {
            id: call.task_id.take().or_else(|| position.id.clone()),
            group_id: position.group_id.clone().or(call.group_id.take()),
            group_index: position.group_index.or(call.group_index.take()),
            chord: position.chord.clone().or(options.chord),
            root_id: position.root_id.clone().or(call.root_id.take()),
        };
        if let Some(last) = steps.last_mut() {
            let callbacks = options.link.into_iter();
            callbacks.for_each(|callback| last.add_callback(callback));
        }
        let (mut steps, tree) = prepare_steps(steps, &position, &options.link_error, self.ids)?;
        let mut first = steps.pop().ok_or_else(empty_chain)?;
        if self.ids.wire_style.linked {
            let next = steps.into_iter().reduce(|next, mut step| {
                step.add_callback(next);
                step
            });
            next.into_iter().for_each(|next| first.add_callback(next));
        } else {
            let steps = steps.iter().map(Canvas::to_wire);
            let steps = steps.collect::<Result<Vec<_>, _>>()?;
            first.options.chain = options.chain;
            first.options.chain.extend(steps);
        }
        call.parent_id = None;
        self.start(first, &Position::default(), &call)?;
        Ok(tree)
    }

    /// Plans all members of a group. Those of nested groups keep the id of the outer group and are
    /// numbered within their own group, as in Celery.
    fn start_group(
        &mut self,
        canvas: Canvas,
        position: &Position,
        outer: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        let NodeKind::Group(group) = canvas.kind else {
            return Err(empty_chain());
        };
        let mut options = *canvas.options;
        options.call.overlay(outer);
        let id = options.call.task_id.take();
        let id = id.unwrap_or_else(|| (self.ids.fresh)());
        let position = Position {
            group_id: Some(id.clone()),
            chord: position.chord.clone().or(options.chord.take()),
            root_id: position.root_id.clone().or(options.call.root_id.take()),
            ..Position::default()
        };
        options.call.group_id = None;
        options.call.group_index = None;
        let mut members = self.start_members(group.tasks, &position, &options)?;
        // If the only member is a chain that ends in a group, the result is that group.
        let tree = match members.as_slice() {
            [only] if only.members.is_some() => members.remove(0),
            _ => ResultTree::group(id, members),
        };
        self.add_child(&tree);
        Ok(tree)
    }

    fn start_members(
        &mut self,
        tasks: Vec<Canvas>,
        position: &Position,
        outer: &NodeOptions,
    ) -> Result<Vec<ResultTree>, CanvasError> {
        self.group_depth += 1;
        let mut members = Vec::with_capacity(tasks.len());
        for (index, mut task) in tasks.into_iter().enumerate() {
            match &mut task.kind {
                NodeKind::Chain(steps) if steps.is_empty() && task.error.is_none() => continue,
                NodeKind::Group(inner) => {
                    let tasks = std::mem::take(&mut inner.tasks);
                    members.extend(self.start_members(tasks, position, outer)?);
                    continue;
                }
                _ => {}
            }
            let callbacks = outer.link.iter().cloned();
            callbacks.for_each(|callback| task.add_callback(callback));
            let errbacks = outer.link_error.iter();
            errbacks.for_each(|errback| task.add_errback(errback));
            let position = Position {
                group_index: i64::try_from(index).ok(),
                ..position.clone()
            };
            let member = self.start(task, &position, &outer.call);
            let in_task = |error: CanvasError| error.inside(format_args!("tasks[{index}]"));
            members.push(member.map_err(in_task)?);
        }
        self.group_depth -= 1;
        Ok(members)
    }

    /// Plans the members of a chord's header, each with the body in it.
    fn start_chord(
        &mut self,
        canvas: Canvas,
        position: &Position,
        outer: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        let NodeKind::Chord(chord) = canvas.kind else {
            return Err(empty_chain());
        };
        let mut options = *canvas.options;
        options.call.overlay(outer);
        let ChordParts {
            id,
            mut header,
            mut body,
            result,
            root_id,
        } = self.freeze_body(*chord, options, position)?;
        let NodeKind::Group(group) = &mut header.kind else {
            return Err(CanvasError::new("the header is not a group").inside("header"));
        };
        let tasks = flatten_groups(std::mem::take(&mut group.tasks));
        let size = tasks.iter().map(Canvas::size).sum();
        if size == 0 {
            body.prepend_args(&[Raw::json("[]")]);
            self.start(body, &Position::default(), &CallOptions::default())?;
            return Ok(result.after(ResultTree::group(id, Vec::new())));
        }
        let encoded_body = body.to_wire().map_err(|error| error.inside("body"))?;
        let encoded_body = Arc::new(encoded_body);
        let header_position = Position {
            group_id: Some(id.clone()),
            chord: Some(Arc::clone(&encoded_body)),
            root_id,
            ..Position::default()
        };
        let members = self.start_members(tasks, &header_position, &header.options);
        let members = members.map_err(|error| error.inside("header"))?;
        let header = ResultTree::group(id.clone(), members);
        self.add_child(&header);
        let result = result.after(header.clone());
        self.chords.push(PlannedChord {
            start: ChordStart::new(id, size, &header),
            header,
            body: encoded_body,
            queue: body.options.call.queue.clone(),
            task: body.task().to_owned(),
        });
        Ok(result)
    }

    /// Distributes the options of a chord over header and body, and freezes the body.
    fn freeze_body(
        &mut self,
        mut chord: ChordNode,
        mut options: NodeOptions,
        position: &Position,
    ) -> Result<ChordParts, CanvasError> {
        if self.ids.wire_style.header_errbacks {
            chord.share_errbacks();
        }
        let (mut header, mut body) = (chord.header, chord.body);
        let requested_id = options.call.task_id.take().filter(|_| !chord.frozen);
        let id = header.options.call.task_id.take();
        let id = id.unwrap_or_else(|| (self.ids.fresh)());

        // The body gets all options except the start time.
        let root_id = body.options.call.root_id.clone();
        let eta = options.call.eta.take();
        let callbacks = options.link.into_iter();
        callbacks.for_each(|callback| body.add_callback(callback));
        for errback in options.link_error {
            match body.kind {
                NodeKind::Group(_) => body.add_errback(&errback),
                // Workers look for errbacks in the options of the body when the header fails.
                _ => body.options.link_error.push(errback),
            }
        }
        body.options.call.overlay(&CallOptions {
            parent_id: None,
            ..options.call.clone()
        });
        body.options.chain.extend(options.chain);
        let body_position = Position {
            id: requested_id.or_else(|| position.id.clone()),
            group_id: position.group_id.clone().or_else(|| Some(id.clone())),
            root_id: position.root_id.clone().or_else(|| root_id.clone()),
            ..position.clone()
        };
        let result = body.freeze(&body_position, self.ids);
        let result = result.map_err(|error| error.inside("body"))?;

        options.call.eta = eta;
        header.options.call.overlay(&options.call);
        Ok(ChordParts {
            id,
            header,
            body,
            result,
            root_id,
        })
    }
}

impl Canvas {
    /// Adds the steps that follow the canvas in its chain, the next step last. After a canvas that
    /// ends in a group, the next step is the body of a chord.
    fn followed_by(mut self, chain: &[Raw<'static>]) -> Result<Self, CanvasError> {
        if chain.is_empty() {
            return Ok(self);
        }
        let ends_in_group = match &self.kind {
            NodeKind::Group(_) => true,
            NodeKind::Chord(chord) => matches!(chord.body.kind, NodeKind::Group(_)),
            NodeKind::Task(_) | NodeKind::Chain(_) => false,
        };
        if !ends_in_group {
            self.options.chain.splice(..0, chain.iter().cloned());
            return Ok(self);
        }
        let mut steps = chain.iter().rev().map(Self::read);
        steps.try_fold(self, |canvas, step| Ok(canvas.then(step?)))
    }

    /// Replaces a task `celery.chunks` by the equivalent group of tasks `celery.starmap`. A client
    /// does this before it sends the canvas; a worker runs the task instead. Other canvases are
    /// returned unchanged.
    ///
    /// # Errors
    ///
    /// Fails if an argument of `celery.chunks` is missing or invalid.
    pub(crate) fn expand_chunks(self) -> Result<Self, CanvasError> {
        let call = match &self.kind {
            NodeKind::Task(call) if call.task == "celery.chunks" => call,
            _ => return Ok(self),
        };
        let (args, kwargs) = call.raw_arguments()?;
        // `Canvas::chunks` uses keyword arguments only; a call with others is sent as a task.
        if args.elements().is_ok_and(|args| !args.is_empty()) {
            return Ok(self);
        }
        let entries = kwargs.entries().map_err(|error| encode_error(&error))?;
        let named = |name: &str| {
            let found = entries.iter().find(|(key, _)| key == name);
            let missing = || CanvasError::new(format!("celery.chunks without {name}"));
            found.map(|(_, raw)| raw).ok_or_else(missing)
        };
        let task = Self::read(named("task")?).map_err(|error| error.inside("task"))?;
        let items = named("it")?
            .elements()
            .map_err(|error| encode_error(&error))?;
        let n = named("n")?.to_value().ok().as_ref().and_then(Value::as_u64);
        let n = n.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let n = n.ok_or_else(|| CanvasError::new("celery.chunks: n is not a positive integer"))?;
        let chunks = items.chunks(n);
        let mut group =
            Self::group(chunks.map(|chunk| Self::mapped("celery.starmap", &task, chunk)));
        group.options = self.options;
        Ok(group)
    }
}
