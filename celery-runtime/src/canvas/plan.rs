//! What is sent for a canvas: [`plan`].

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Map, Raw, ResultTree, Serializer, Value};

use crate::boundary::ChordStart;
use crate::canvas::call::TaskCall;
use crate::canvas::error::CanvasError;
use crate::canvas::ids::{IdSource, Position, flat, nothing_to_run, prepare};
use crate::canvas::node::{Canvas, Kind, Options};
use crate::canvas::options::{CallOptions, Time};
use crate::canvas::wire::unreadable;

/// Everything that starts a canvas.
#[derive(Debug)]
pub(crate) struct Plan {
    /// To be sent, in this order.
    pub(crate) letters: Vec<PlannedTask>,
    /// To be told to the result backend before that.
    pub(crate) chords: Vec<PlannedChord>,
    /// The chords that workers start later, by the ids of their headers.
    pub(crate) later_chords: Vec<String>,
    /// The result of the whole.
    pub(crate) result: ResultTree,
    /// The results of what is sent now, as the sender's children.
    pub(crate) children: Vec<ResultTree>,
}

/// What surrounds a canvas that is started; nothing, where a client does it.
#[derive(Debug, Default)]
pub(crate) struct PlanContext {
    /// Laid over the options of the canvas.
    pub(crate) over: CallOptions,
    /// Where it stands, if it stands in for a task.
    pub(crate) place: Position,
    /// What follows it in a chain, the next step last, written.
    pub(crate) rest: Vec<Raw<'static>>,
}

impl Plan {
    /// The same with a task for each chord that looks after its header, where the
    /// result backend does not count.
    ///
    /// # Errors
    ///
    /// Where a body has no form in JSON.
    pub(crate) fn unlocked_by_tasks(mut self) -> Result<Self, CanvasError> {
        for chord in std::mem::take(&mut self.chords) {
            self.letters.push(chord.unlocking()?);
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
    /// Where the body is to be sent to: what it says, else as its task is routed.
    queue: Option<String>,
    task: String,
}

impl PlannedChord {
    /// What looks after the header, where the result backend does not count its
    /// parts: a task that is tried again until they are all there.
    ///
    /// # Errors
    ///
    /// Where the body has no form in JSON.
    fn unlocking(&self) -> Result<PlannedTask, CanvasError> {
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

/// One task to send, with its id and all that follows it.
#[derive(Debug)]
pub(crate) struct PlannedTask {
    pub(crate) call: Box<TaskCall>,
    pub(crate) options: CallOptions,
}

/// Works out what has to be sent for a canvas: the first step of a chain with
/// the rest in it, all tasks of a group, the header of a chord with its body in
/// each.
///
/// # Errors
///
/// When something in it could not be built or has no form in JSON, and for an
/// empty chain.
pub(crate) fn plan(
    canvas: Canvas,
    context: &PlanContext,
    mut ids: IdSource<'_>,
) -> Result<Plan, CanvasError> {
    canvas.check()?;
    let canvas = canvas.followed_by(&context.rest)?;
    let mut planner = Planner {
        ids: &mut ids,
        letters: Vec::new(),
        chords: Vec::new(),
        children: Vec::new(),
        groups: 0,
    };
    let result = planner.run(canvas, &context.place, &context.over)?;
    let Planner {
        letters,
        chords,
        children,
        ..
    } = planner;
    Ok(Plan {
        letters,
        chords,
        children,
        later_chords: ids.chords,
        result,
    })
}

struct Planner<'a, 'i> {
    ids: &'a mut IdSource<'i>,
    letters: Vec<PlannedTask>,
    chords: Vec<PlannedChord>,
    children: Vec<ResultTree>,
    /// How many groups there are around what is planned.
    groups: usize,
}

impl Planner<'_, '_> {
    fn begun(&mut self, tree: &ResultTree) {
        if self.groups == 0 {
            self.children.push(tree.clone());
        }
    }
}

impl Planner<'_, '_> {
    /// Starts a canvas in its place, with the options of what it is part of
    /// laid over its own.
    fn run(
        &mut self,
        canvas: Canvas,
        place: &Position,
        over: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        if let Some(flaw) = canvas.flaw {
            return Err(flaw);
        }
        match &canvas.kind {
            Kind::Task(_) => self.run_task(canvas, place, over),
            Kind::Chain(_) => self.run_chain(canvas, place, over),
            Kind::Group(_) => self.run_group(canvas, place, over),
            Kind::Chord(_) => self.run_chord(canvas, place, over),
        }
    }

    fn run_task(
        &mut self,
        mut canvas: Canvas,
        place: &Position,
        over: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        let tree = canvas.freeze(place, self.ids)?;
        canvas.options.call.overlay(over);
        let callbacks = canvas.options.callbacks()?;
        let errbacks = canvas.options.errbacks()?;
        let Options {
            mut call,
            rest,
            chord,
            ..
        } = *canvas.options;
        call.embed.callbacks = callbacks;
        call.embed.errbacks = errbacks;
        call.embed.chord = chord.map(Arc::unwrap_or_clone);
        if !rest.is_empty() {
            call.embed.chain = Some(Raw::encode(Serializer::Json, &rest)?);
        }
        self.begun(&tree);
        if let Kind::Task(task) = canvas.kind {
            self.letters.push(PlannedTask {
                call: task,
                options: call,
            });
        }
        Ok(tree)
    }

    /// The first step goes out, with the others in it.
    fn run_chain(
        &mut self,
        canvas: Canvas,
        place: &Position,
        over: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        let Kind::Chain(mut steps) = canvas.kind else {
            return Err(nothing_to_run());
        };
        let mut options = *canvas.options;
        options.call.overlay(over);
        let mut call = options.call;
        let place = Position {
            id: call.task_id.take().or_else(|| place.id.clone()),
            group_id: place.group_id.clone().or(call.group_id.take()),
            group_index: place.group_index.or(call.group_index.take()),
            chord: place.chord.clone().or(options.chord),
            root_id: place.root_id.clone().or(call.root_id.take()),
        };
        if let Some(last) = steps.last_mut() {
            options
                .link
                .into_iter()
                .for_each(|link| last.add_callback(link));
        }
        let (mut steps, tree) = prepare(steps, &place, &options.link_error, self.ids)?;
        let mut first = steps.pop().ok_or_else(nothing_to_run)?;
        if self.ids.wire_style.linked {
            let following = steps.into_iter().reduce(|following, mut step| {
                step.add_callback(following);
                step
            });
            following
                .into_iter()
                .for_each(|step| first.add_callback(step));
        } else {
            let rest = steps.iter().map(Canvas::to_wire);
            first.options.rest = options.rest;
            first
                .options
                .rest
                .extend(rest.collect::<Result<Vec<_>, _>>()?);
        }
        call.parent_id = None;
        self.run(first, &Position::default(), &call)?;
        Ok(tree)
    }

    /// All members go out. Those of groups inside keep the outer group's id and
    /// are numbered afresh, as Celery does it.
    fn run_group(
        &mut self,
        canvas: Canvas,
        place: &Position,
        over: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        let Kind::Group(group) = canvas.kind else {
            return Err(nothing_to_run());
        };
        let mut options = *canvas.options;
        options.call.overlay(over);
        let id = options.call.task_id.take();
        let id = id.unwrap_or_else(|| (self.ids.fresh)());
        let place = Position {
            group_id: Some(id.clone()),
            chord: place.chord.clone().or(options.chord.take()),
            root_id: place.root_id.clone().or(options.call.root_id.take()),
            ..Position::default()
        };
        options.call.group_id = None;
        options.call.group_index = None;
        let mut members = self.run_members(group.tasks, &place, &options)?;
        // A chain that ends in a group is that group, if it is alone.
        let tree = match members.as_slice() {
            [only] if only.members.is_some() => members.remove(0),
            _ => ResultTree::group(id, members),
        };
        self.begun(&tree);
        Ok(tree)
    }

    fn run_members(
        &mut self,
        tasks: Vec<Canvas>,
        place: &Position,
        over: &Options,
    ) -> Result<Vec<ResultTree>, CanvasError> {
        self.groups += 1;
        let mut members = Vec::with_capacity(tasks.len());
        for (index, mut task) in tasks.into_iter().enumerate() {
            match &mut task.kind {
                Kind::Chain(steps) if steps.is_empty() && task.flaw.is_none() => continue,
                Kind::Group(inner) => {
                    let tasks = std::mem::take(&mut inner.tasks);
                    members.extend(self.run_members(tasks, place, over)?);
                    continue;
                }
                _ => {}
            }
            over.link
                .iter()
                .for_each(|link| task.add_callback(link.clone()));
            over.link_error
                .iter()
                .for_each(|link| task.add_errback(link));
            let place = Position {
                group_index: i64::try_from(index).ok(),
                ..place.clone()
            };
            let member = self.run(task, &place, &over.call);
            let context = |error: CanvasError| error.inside(format_args!("tasks[{index}]"));
            members.push(member.map_err(context)?);
        }
        self.groups -= 1;
        Ok(members)
    }

    /// The header goes out, each task of it with the body.
    fn run_chord(
        &mut self,
        canvas: Canvas,
        place: &Position,
        over: &CallOptions,
    ) -> Result<ResultTree, CanvasError> {
        let Kind::Chord(chord) = canvas.kind else {
            return Err(nothing_to_run());
        };
        let mut options = *canvas.options;
        options.call.overlay(over);
        let mut chord = chord;
        if self.ids.wire_style.header_errbacks {
            chord.share_errbacks();
        }
        let (mut header, mut body) = (chord.header, chord.body);
        let asked = options.call.task_id.take().filter(|_| !chord.frozen);
        let id = header.options.call.task_id.take();
        let id = id.unwrap_or_else(|| (self.ids.fresh)());

        // The body gets all of it, but when to begin.
        let root_id = body.options.call.root_id.clone();
        let eta = options.call.eta.take();
        options
            .link
            .into_iter()
            .for_each(|link| body.add_callback(link));
        for errback in options.link_error {
            match body.kind {
                Kind::Group(_) => body.add_errback(&errback),
                // Where it is looked for when the header fails.
                _ => body.options.link_error.push(errback),
            }
        }
        body.options.call.overlay(&CallOptions {
            parent_id: None,
            ..options.call.clone()
        });
        body.options.rest.extend(options.rest);
        let group_id = place.group_id.clone().or_else(|| Some(id.clone()));
        let body_place = Position {
            id: asked.or_else(|| place.id.clone()),
            group_id,
            root_id: place.root_id.clone().or_else(|| root_id.clone()),
            ..place.clone()
        };
        let tree = body.freeze(&body_place, self.ids);
        let tree = tree.map_err(|error| error.inside("body"))?;

        let Kind::Group(group) = &mut header.kind else {
            return Err(CanvasError::new("a header that is no group").inside("header"));
        };
        let tasks = flat(std::mem::take(&mut group.tasks));
        let size = tasks.iter().map(Canvas::size).sum();
        if size == 0 {
            body.give(&[Raw::json("[]")]);
            self.run(body, &Position::default(), &CallOptions::default())?;
            return Ok(tree.after(ResultTree::group(id, Vec::new())));
        }
        let queue = body.options.call.queue.clone();
        let task = body.task().to_owned();
        let written = body.to_wire().map_err(|error| error.inside("body"))?;
        let written = Arc::new(written);
        let header_place = Position {
            group_id: Some(id.clone()),
            chord: Some(Arc::clone(&written)),
            root_id,
            ..Position::default()
        };
        options.call.eta = eta;
        header.options.call.overlay(&options.call);
        let members = self.run_members(tasks, &header_place, &header.options);
        let members = members.map_err(|error| error.inside("header"))?;
        let header = ResultTree::group(id.clone(), members);
        self.begun(&header);
        let result = tree.after(header.clone());
        self.chords.push(PlannedChord {
            start: ChordStart::new(id, size, &header),
            header,
            body: written,
            queue,
            task,
        });
        Ok(result)
    }
}

impl Canvas {
    /// The same with the rest of its chain after it. What has several last
    /// tasks goes on as one: after a group comes a chord's body.
    fn followed_by(mut self, rest: &[Raw<'static>]) -> Result<Self, CanvasError> {
        if rest.is_empty() {
            return Ok(self);
        }
        let ends_in_group = match &self.kind {
            Kind::Group(_) => true,
            Kind::Chord(chord) => matches!(chord.body.kind, Kind::Group(_)),
            Kind::Task(_) | Kind::Chain(_) => false,
        };
        if !ends_in_group {
            self.options.rest.splice(..0, rest.iter().cloned());
            return Ok(self);
        }
        let mut steps = rest.iter().rev().map(Self::read);
        steps.try_fold(self, |canvas, step| Ok(canvas.then(step?)))
    }

    /// In the place of `celery.chunks` the group of `celery.starmap`s that it
    /// stands for, as a client sends it; a worker leaves it to the task of that
    /// name.
    pub(crate) fn taken_apart(self) -> Result<Self, CanvasError> {
        let call = match &self.kind {
            Kind::Task(call) if call.task == "celery.chunks" => call,
            _ => return Ok(self),
        };
        let (args, kwargs) = call.raw_arguments()?;
        // Called by hand, as a task.
        if args.elements().is_ok_and(|args| !args.is_empty()) {
            return Ok(self);
        }
        let entries = kwargs.entries().map_err(|error| unreadable(&error))?;
        let named = |name: &str| {
            let found = entries.iter().find(|(key, _)| key == name);
            let missing = || CanvasError::new(format!("celery.chunks without {name}"));
            found.map(|(_, raw)| raw).ok_or_else(missing)
        };
        let task = Self::read(named("task")?).map_err(|error| error.inside("task"))?;
        let items = named("it")?
            .elements()
            .map_err(|error| unreadable(&error))?;
        let n = named("n")?.to_value().ok().as_ref().and_then(Value::as_u64);
        let n = n.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let n =
            n.ok_or_else(|| CanvasError::new("celery.chunks of no positive number of items"))?;
        let parts = items.chunks(n);
        let mut group = Self::group(parts.map(|part| Self::mapped("celery.starmap", &task, part)));
        group.options = self.options;
        Ok(group)
    }
}
