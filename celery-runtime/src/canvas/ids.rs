//! Assigning ids to all parts of a canvas, and the tree of their results.

use std::collections::VecDeque;
use std::sync::Arc;

use celery_protocol::{Raw, ResultTree};

use crate::canvas::error::CanvasError;
use crate::canvas::node::{Canvas, ChordNode, NodeKind};
use crate::config::WireStyle;

/// The source of ids, and the chords found while they are assigned.
pub(crate) struct IdSource<'a> {
    /// Creates a new id.
    pub(crate) fresh: &'a mut dyn FnMut() -> String,
    /// The reply queue of the sender.
    pub(crate) reply_to: &'a str,
    /// The group ids of the chords that start later.
    pub(crate) chords: Vec<String>,
    pub(crate) wire_style: WireStyle,
}

/// The position of a canvas in the surrounding one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position {
    /// The id of its result, if the canvas itself has none.
    pub(crate) id: Option<String>,
    pub(crate) group_id: Option<String>,
    pub(crate) group_index: Option<i64>,
    /// The encoded body of the chord whose header contains it.
    pub(crate) chord: Option<Arc<Raw<'static>>>,
    pub(crate) root_id: Option<String>,
}

impl Position {
    /// Returns the position of a step before the last one of a chain, which has only the root.
    fn only_root(&self) -> Self {
        Self {
            root_id: self.root_id.clone(),
            ..Self::default()
        }
    }
}

impl Canvas {
    /// Assigns ids to all parts that have none, and converts chains and chords to the form in which
    /// they are sent.
    ///
    /// # Errors
    ///
    /// Fails if a part of the canvas is invalid, and for an empty chain.
    pub(crate) fn freeze(
        &mut self,
        position: &Position,
        ids: &mut IdSource<'_>,
    ) -> Result<ResultTree, CanvasError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        match &self.kind {
            NodeKind::Task(_) => Ok(self.freeze_task(position, ids)),
            NodeKind::Chain(_) => self.freeze_chain(position, ids),
            NodeKind::Group(_) => self.freeze_group(position, ids),
            NodeKind::Chord(_) => self.freeze_chord(position, ids),
        }
    }

    fn freeze_task(&mut self, position: &Position, ids: &mut IdSource<'_>) -> ResultTree {
        let call = &mut self.options.call;
        let id = call
            .task_id
            .get_or_insert_with(|| position.id.clone().unwrap_or_else(|| (ids.fresh)()));
        let tree = ResultTree::task(id.clone());
        call.reply_to.get_or_insert_with(|| ids.reply_to.to_owned());
        self.freeze_options(position);
        tree
    }

    fn freeze_options(&mut self, position: &Position) {
        let call = &mut self.options.call;
        if position.root_id.is_some() {
            call.root_id.clone_from(&position.root_id);
        }
        if call.group_id.is_none() {
            call.group_id.clone_from(&position.group_id);
        }
        if position.group_index.is_some() {
            call.group_index = position.group_index;
        }
        if position.chord.is_some() {
            self.options.chord.clone_from(&position.chord);
        }
    }

    fn freeze_chain(
        &mut self,
        position: &Position,
        ids: &mut IdSource<'_>,
    ) -> Result<ResultTree, CanvasError> {
        let position = Position {
            id: self
                .options
                .call
                .task_id
                .take()
                .or_else(|| position.id.clone()),
            ..position.clone()
        };
        let NodeKind::Chain(steps) = &mut self.kind else {
            return Err(empty_chain());
        };
        let (mut prepared, tree) = prepare_steps(std::mem::take(steps), &position, &[], ids)?;
        prepared.reverse();
        *steps = prepared;
        self.options.call.task_id = Some(tree.id.clone());
        Ok(tree)
    }

    fn freeze_group(
        &mut self,
        position: &Position,
        ids: &mut IdSource<'_>,
    ) -> Result<ResultTree, CanvasError> {
        let id = self
            .options
            .call
            .task_id
            .get_or_insert_with(|| (ids.fresh)());
        let id = id.clone();
        self.freeze_options(position);
        let NodeKind::Group(group) = &mut self.kind else {
            return Err(empty_chain());
        };
        group.frozen = true;
        group.tasks = flatten_groups(std::mem::take(&mut group.tasks));
        let mut members = Vec::with_capacity(group.tasks.len());
        for (index, task) in group.tasks.iter_mut().enumerate() {
            let position = Position {
                id: None,
                group_index: i64::try_from(index).ok(),
                // The chord is in the options of the group, from which the members get it when they
                // are sent. Celery copies it to each member, which multiplies the size of the body
                // with every nested group.
                chord: None,
                ..position.clone()
            };
            let member = task.freeze(&position, ids);
            let in_task = |error: CanvasError| error.inside(format_args!("tasks[{index}]"));
            members.push(member.map_err(in_task)?);
        }
        Ok(ResultTree::group(id, members))
    }

    /// Freezes a chord that starts later. The tasks of its header do not contain the body; the
    /// worker that starts the chord adds it.
    fn freeze_chord(
        &mut self,
        position: &Position,
        ids: &mut IdSource<'_>,
    ) -> Result<ResultTree, CanvasError> {
        let NodeKind::Chord(chord) = &mut self.kind else {
            return Err(empty_chain());
        };
        let call = &mut self.options.call;
        // The id of a chord that is not frozen is that of its result.
        let requested_id = if chord.frozen {
            None
        } else {
            call.task_id.take()
        };
        chord.frozen = true;
        if ids.wire_style.header_errbacks {
            chord.share_errbacks();
        }
        let header = chord.header.freeze(&position.only_root(), ids);
        let header = header.map_err(|error| error.inside("header"))?;
        ids.chords.push(header.id.clone());
        call.task_id = Some(header.id.clone());
        let position = Position {
            id: requested_id.or_else(|| position.id.clone()),
            ..position.clone()
        };
        let body = chord.body.freeze(&position, ids);
        Ok(body.map_err(|error| error.inside("body"))?.after(header))
    }
}

/// Freezes the steps of a chain. Returns them in the form in which they are sent, **the last one
/// first**, and the tree of their results.
pub(super) fn prepare_steps(
    steps: Vec<Canvas>,
    position: &Position,
    errbacks: &[Canvas],
    ids: &mut IdSource<'_>,
) -> Result<(Vec<Canvas>, ResultTree), CanvasError> {
    let mut prepared = upgrade_groups(splice_steps(steps, ids.wire_style.linked));
    let mut tree: Option<ResultTree> = None;
    let count = prepared.len();
    for (number, step) in prepared.iter_mut().enumerate() {
        errbacks
            .iter()
            .for_each(|errback| step.add_errback(errback));
        let frozen = match number {
            0 => step.freeze(position, ids),
            _ => step.freeze(&position.only_root(), ids),
        };
        let in_step =
            |error: CanvasError| error.inside(format_args!("tasks[{}]", count - number - 1));
        let frozen = frozen.map_err(in_step)?;
        tree = Some(match tree {
            Some(tree) => tree.after(frozen),
            None => frozen,
        });
    }
    let tree = tree.ok_or_else(empty_chain)?;
    Ok((prepared, tree))
}

/// Replaces nested groups by their tasks and removes empty chains.
pub(super) fn flatten_groups(tasks: Vec<Canvas>) -> Vec<Canvas> {
    let mut flattened = Vec::with_capacity(tasks.len());
    for mut task in tasks {
        match &mut task.kind {
            NodeKind::Group(_) => flattened.extend(task.into_members()),
            NodeKind::Chain(steps) if steps.is_empty() && task.error.is_none() => {}
            _ => flattened.push(task),
        }
    }
    flattened
}

impl Canvas {
    /// Returns the tasks of a nested group.
    fn into_members(self) -> Vec<Self> {
        match self.kind {
            NodeKind::Group(group) => flatten_groups(group.tasks),
            _ => vec![self],
        }
    }
}

/// Splices nested chains into the steps, removes empty groups, and moves the steps of a chord's
/// body after its first one to the chain, because each task of the header contains the whole body.
/// If steps are `linked` (protocol 1), the body keeps its steps: they fail with it if the header
/// fails.
fn splice_steps(steps: Vec<Canvas>, linked: bool) -> Vec<Canvas> {
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
            NodeKind::Chain(_) if step.error.is_none() => step.into_steps(),
            NodeKind::Chord(chord) if !linked && chord.body.begins_with_task() => {
                let placeholder = Canvas::of(NodeKind::Chain(Vec::new()));
                let body = std::mem::replace(&mut chord.body, placeholder);
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

/// Upgrades each group that is not the last step to a chord with the next step as its body. Returns
/// the steps **the last one first**.
fn upgrade_groups(steps: Vec<Canvas>) -> Vec<Canvas> {
    let mut upgraded: Vec<Canvas> = Vec::with_capacity(steps.len());
    for mut step in steps.into_iter().rev() {
        let body_is_workflow = |chord: &ChordNode| !matches!(chord.body.kind, NodeKind::Task(_));
        match &mut step.kind {
            NodeKind::Group(_) => {
                if let Some(body) = upgraded.pop() {
                    step = Canvas::chord_of(step, body);
                }
            }
            NodeKind::Chord(chord) if body_is_workflow(chord) => {
                if let Some(next) = upgraded.pop() {
                    chord.extend_body(next);
                    let depth = chord.body.depth();
                    step = step.with_nested_depth(depth);
                }
            }
            _ => {}
        }
        upgraded.push(step);
    }
    upgraded
}

impl Canvas {
    /// Returns whether it is a chain that begins with a task or a chord.
    fn begins_with_task(&self) -> bool {
        let NodeKind::Chain(steps) = &self.kind else {
            return false;
        };
        let first = steps.first();
        first.is_some_and(|first| !matches!(first.kind, NodeKind::Group(_)))
    }
}

pub(super) fn empty_chain() -> CanvasError {
    CanvasError::new("an empty chain cannot be sent")
}
