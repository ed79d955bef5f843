//! Ids for all parts of a canvas, and the tree of their results.

use std::collections::VecDeque;
use std::sync::Arc;

use celery_protocol::{Raw, ResultTree};

use crate::canvas::error::CanvasError;
use crate::canvas::node::{Canvas, Chord, Kind};
use crate::config::WireStyle;

/// Where ids come from.
pub(crate) struct IdSource<'a> {
    pub(crate) fresh: &'a mut dyn FnMut() -> String,
    /// The sender's queue for replies.
    pub(crate) reply_to: &'a str,
    /// The header's id of each chord that starts later.
    pub(crate) chords: Vec<String>,
    pub(crate) wire_style: WireStyle,
}

/// What surrounds a canvas when it gets its ids.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position {
    /// The id of its result, unless it has one.
    pub(crate) id: Option<String>,
    pub(crate) group_id: Option<String>,
    pub(crate) group_index: Option<i64>,
    /// The body of the chord that counts it.
    pub(crate) chord: Option<Arc<Raw<'static>>>,
    pub(crate) root_id: Option<String>,
}

impl Position {
    /// Of those before the last one in a chain.
    fn only_root(&self) -> Self {
        Self {
            root_id: self.root_id.clone(),
            ..Self::default()
        }
    }
}

impl Canvas {
    /// Gives ids to all parts that have none, as they are found in `place`, and
    /// puts chains and chords into the form in which they travel.
    pub(crate) fn freeze(
        &mut self,
        place: &Position,
        ids: &mut IdSource<'_>,
    ) -> Result<ResultTree, CanvasError> {
        if let Some(flaw) = &self.flaw {
            return Err(flaw.clone());
        }
        match &self.kind {
            Kind::Task(_) => Ok(self.freeze_task(place, ids)),
            Kind::Chain(_) => self.freeze_chain(place, ids),
            Kind::Group(_) => self.freeze_group(place, ids),
            Kind::Chord(_) => self.freeze_chord(place, ids),
        }
    }

    fn freeze_task(&mut self, place: &Position, ids: &mut IdSource<'_>) -> ResultTree {
        let call = &mut self.options.call;
        let id = call
            .task_id
            .get_or_insert_with(|| place.id.clone().unwrap_or_else(|| (ids.fresh)()));
        let tree = ResultTree::task(id.clone());
        call.reply_to.get_or_insert_with(|| ids.reply_to.to_owned());
        self.freeze_options(place);
        tree
    }

    fn freeze_options(&mut self, place: &Position) {
        let call = &mut self.options.call;
        if place.root_id.is_some() {
            call.root_id.clone_from(&place.root_id);
        }
        if call.group_id.is_none() {
            call.group_id.clone_from(&place.group_id);
        }
        if place.group_index.is_some() {
            call.group_index = place.group_index;
        }
        if place.chord.is_some() {
            self.options.chord.clone_from(&place.chord);
        }
    }

    fn freeze_chain(
        &mut self,
        place: &Position,
        ids: &mut IdSource<'_>,
    ) -> Result<ResultTree, CanvasError> {
        let place = Position {
            id: self
                .options
                .call
                .task_id
                .take()
                .or_else(|| place.id.clone()),
            ..place.clone()
        };
        let Kind::Chain(steps) = &mut self.kind else {
            return Err(nothing_to_run());
        };
        let (mut prepared, tree) = prepare(std::mem::take(steps), &place, &[], ids)?;
        prepared.reverse();
        *steps = prepared;
        self.options.call.task_id = Some(tree.id.clone());
        Ok(tree)
    }

    fn freeze_group(
        &mut self,
        place: &Position,
        ids: &mut IdSource<'_>,
    ) -> Result<ResultTree, CanvasError> {
        let id = self
            .options
            .call
            .task_id
            .get_or_insert_with(|| (ids.fresh)());
        let id = id.clone();
        self.freeze_options(place);
        let Kind::Group(group) = &mut self.kind else {
            return Err(nothing_to_run());
        };
        group.frozen = true;
        group.tasks = flat(std::mem::take(&mut group.tasks));
        let mut members = Vec::with_capacity(group.tasks.len());
        for (index, task) in group.tasks.iter_mut().enumerate() {
            let place = Position {
                id: None,
                group_index: i64::try_from(index).ok(),
                // It is in the group's own options, from where all members get it
                // when they are sent. Celery writes it into each: a body that goes
                // through several such groups grows by their product.
                chord: None,
                ..place.clone()
            };
            let member = task.freeze(&place, ids);
            let within = |error: CanvasError| error.inside(format_args!("tasks[{index}]"));
            members.push(member.map_err(within)?);
        }
        Ok(ResultTree::group(id, members))
    }

    /// A chord that waits for its turn: the tasks of its header do not carry the
    /// body, which is there already; who starts it puts it into them.
    fn freeze_chord(
        &mut self,
        place: &Position,
        ids: &mut IdSource<'_>,
    ) -> Result<ResultTree, CanvasError> {
        let Kind::Chord(chord) = &mut self.kind else {
            return Err(nothing_to_run());
        };
        let call = &mut self.options.call;
        // Until then an id that was asked for is that of the result.
        let asked = if chord.frozen {
            None
        } else {
            call.task_id.take()
        };
        chord.frozen = true;
        if ids.wire_style.header_errbacks {
            chord.share_errbacks();
        }
        let header = chord.header.freeze(&place.only_root(), ids);
        let header = header.map_err(|error| error.inside("header"))?;
        ids.chords.push(header.id.clone());
        call.task_id = Some(header.id.clone());
        let place = Position {
            id: asked.or_else(|| place.id.clone()),
            ..place.clone()
        };
        let body = chord.body.freeze(&place, ids);
        Ok(body.map_err(|error| error.inside("body"))?.after(header))
    }
}

/// The steps of a chain as they are sent, **the last one first**, frozen, and
/// the tree of their results.
pub(crate) fn prepare(
    steps: Vec<Canvas>,
    place: &Position,
    errbacks: &[Canvas],
    ids: &mut IdSource<'_>,
) -> Result<(Vec<Canvas>, ResultTree), CanvasError> {
    let mut prepared = joined(spliced(steps, ids.wire_style.linked));
    let mut tree: Option<ResultTree> = None;
    let count = prepared.len();
    for (number, step) in prepared.iter_mut().enumerate() {
        errbacks
            .iter()
            .for_each(|errback| step.add_errback(errback));
        let frozen = match number {
            0 => step.freeze(place, ids),
            _ => step.freeze(&place.only_root(), ids),
        };
        let within =
            |error: CanvasError| error.inside(format_args!("tasks[{}]", count - number - 1));
        let frozen = frozen.map_err(within)?;
        tree = Some(match tree {
            Some(tree) => tree.after(frozen),
            None => frozen,
        });
    }
    let tree = tree.ok_or_else(nothing_to_run)?;
    Ok((prepared, tree))
}

/// The tasks of a group, those of groups inside of it in their places. Empty
/// chains are nothing.
pub(crate) fn flat(tasks: Vec<Canvas>) -> Vec<Canvas> {
    let mut flat = Vec::with_capacity(tasks.len());
    for mut task in tasks {
        match &mut task.kind {
            Kind::Group(_) => flat.extend(task.into_members()),
            Kind::Chain(steps) if steps.is_empty() && task.flaw.is_none() => {}
            _ => flat.push(task),
        }
    }
    flat
}

impl Canvas {
    /// The tasks of a group inside of a group.
    fn into_members(self) -> Vec<Self> {
        match self.kind {
            Kind::Group(group) => flat(group.tasks),
            _ => vec![self],
        }
    }
}

/// No chains inside of the chain, no empty groups, and no chord whose body could
/// as well be the next steps: each task of its header would carry them. Where
/// steps are `linked` it has to: a failed header fails them by it.
fn spliced(steps: Vec<Canvas>, linked: bool) -> Vec<Canvas> {
    let mut pending = VecDeque::from(steps);
    let mut spliced = Vec::with_capacity(pending.len());
    let mut empty = None;
    while let Some(step) = pending.pop_front() {
        if step.is_empty_group() {
            empty = Some(step);
            continue;
        }
        let mut step = step.unrolled();
        let inner = match &mut step.kind {
            Kind::Chain(_) if step.flaw.is_none() => step.into_steps(),
            Kind::Chord(chord) if !linked && chord.body.is_led_by_task() => {
                let nothing = Canvas::of(Kind::Chain(Vec::new()));
                let body = std::mem::replace(&mut chord.body, nothing);
                let mut following = body.into_steps().into_iter();
                if let Some(first) = following.next() {
                    chord.body = first;
                }
                spliced.push(step);
                following.collect()
            }
            _ => {
                spliced.push(step);
                continue;
            }
        };
        for step in inner.into_iter().rev() {
            pending.push_front(step);
        }
    }
    if spliced.is_empty() {
        spliced.extend(empty);
    }
    spliced
}

/// Makes a chord of each group that something follows. The last one first.
fn joined(steps: Vec<Canvas>) -> Vec<Canvas> {
    let mut joined: Vec<Canvas> = Vec::with_capacity(steps.len());
    for mut step in steps.into_iter().rev() {
        let body_goes_on = |chord: &Chord| !matches!(chord.body.kind, Kind::Task(_));
        match &mut step.kind {
            Kind::Group(_) => {
                if let Some(body) = joined.pop() {
                    step = Canvas::chord_of(step, body);
                }
            }
            Kind::Chord(chord) if body_goes_on(chord) => {
                if let Some(next) = joined.pop() {
                    chord.extend_body(next);
                    let depth = chord.body.depth();
                    step = step.holding(depth);
                }
            }
            _ => {}
        }
        joined.push(step);
    }
    joined
}

impl Canvas {
    /// Whether it is a chain that begins with one task or chord.
    fn is_led_by_task(&self) -> bool {
        let Kind::Chain(steps) = &self.kind else {
            return false;
        };
        let first = steps.first();
        first.is_some_and(|first| !matches!(first.kind, Kind::Group(_)))
    }
}

pub(crate) fn nothing_to_run() -> CanvasError {
    CanvasError::new("an empty chain, in which there is nothing to run")
}
