//! Composing canvases by the rules of Celery's operator `|`.

use crate::canvas::error::CanvasError;
use crate::canvas::node::{Canvas, ChordNode, NodeKind};

/// Whether a step after a chord at the end of a chain becomes part of the chord's body.
#[derive(Clone, Copy, PartialEq)]
enum Nesting {
    /// The step becomes part of the body, as in Celery.
    Body,
    /// The step becomes the next step of the chain, which is equivalent. Otherwise the nesting
    /// depth of a chain of chords would be its length.
    Flat,
}

impl Canvas {
    /// Appends `next`, which receives the result of this canvas as its first argument. A group with
    /// a step after it becomes a chord.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        self.join(next, Nesting::Body)
    }

    /// Appends a group that must not be empty, because its type promises a list of its own results.
    pub(super) fn then_nonempty_group(self, next: Self) -> Self {
        if next.is_empty_group() && next.error.is_none() {
            let cause =
                "a step is an empty group, which has no results for the next step; remove the step";
            return self.with_error(CanvasError::new(cause));
        }
        self.then(next)
    }

    fn join(self, next: Self, nesting: Nesting) -> Self {
        if next.is_empty_group() {
            return match next.error {
                Some(error) => self.with_error(error),
                None => self,
            };
        }
        let next = next.unrolled();
        match self.kind {
            NodeKind::Group(_) => Self::chord_of(self, next),
            NodeKind::Chord(_) => self.after_chord(next, nesting),
            NodeKind::Chain(_) => self.after_chain(next, nesting),
            NodeKind::Task(_) => {
                let mut steps = vec![self];
                steps.extend(next.into_steps());
                Self::of_steps(steps)
            }
        }
    }

    fn after_chord(mut self, next: Self, nesting: Nesting) -> Self {
        match (&mut self.kind, &next.kind) {
            (NodeKind::Chord(chord), NodeKind::Task(_) | NodeKind::Chord(_))
                if nesting == Nesting::Body =>
            {
                chord.extend_body(next);
                let depth = chord.body.depth();
                self.with_nested_depth(depth)
            }
            _ => {
                let mut steps = vec![self];
                steps.extend(next.into_steps());
                Self::of_steps(steps)
            }
        }
    }

    fn after_chain(mut self, next: Self, nesting: Nesting) -> Self {
        if let NodeKind::Chain(_) = next.kind {
            let steps = next.into_steps();
            return steps
                .into_iter()
                .fold(self, |chain, step| chain.join(step, nesting));
        }
        self.distribute_links();
        // The id of the chain is that of its last step.
        let id = self.options.call.task_id.take();
        let NodeKind::Chain(steps) = &mut self.kind else {
            return self;
        };
        if let Some(last) = steps.last_mut() {
            last.options.call.task_id = last.options.call.task_id.take().or(id);
        }
        match (steps.pop(), &next.kind) {
            (None, NodeKind::Group(_)) => {
                return match self.error {
                    Some(error) => next.with_error(error),
                    None => next,
                };
            }
            (None, _) => steps.push(next),
            (Some(last), NodeKind::Task(_) | NodeKind::Chord(_))
                if matches!(last.kind, NodeKind::Group(_)) =>
            {
                steps.push(Self::chord_of(last, next));
            }
            (Some(mut last), kind) => match (&mut last.kind, kind) {
                (NodeKind::Chord(chord), NodeKind::Task(_) | NodeKind::Group(_))
                    if nesting == Nesting::Body =>
                {
                    chord.extend_body(next);
                    let depth = chord.body.depth();
                    steps.push(last.with_nested_depth(depth));
                }
                _ => steps.extend([last, next]),
            },
        }
        let depth = steps.last().map_or(0, Self::depth);
        self.with_nested_depth(depth)
    }

    pub(super) fn of_steps(steps: Vec<Self>) -> Self {
        let depth = Self::depth_of(&steps);
        Self::of(NodeKind::Chain(steps)).with_nested_depth(depth)
    }

    /// Returns the steps of a chain, with its options distributed over them; any other canvas is
    /// one step.
    pub(super) fn into_steps(mut self) -> Vec<Self> {
        if !matches!(self.kind, NodeKind::Chain(_)) {
            return vec![self];
        }
        self.distribute_links();
        let NodeKind::Chain(mut steps) = self.kind else {
            return Vec::new();
        };
        let mut options = self.options.call;
        // The id belongs to the last step, all other options to the first one.
        let id = options.task_id.take();
        if let Some(last) = steps.last_mut() {
            last.options.call.task_id = last.options.call.task_id.take().or(id);
        }
        if let Some(first) = steps.first_mut() {
            first.options.call.overlay(&options);
            first.error = first.error.take().or(self.error);
            return steps;
        }
        match self.error {
            Some(error) => vec![Self::of(NodeKind::Chain(Vec::new())).with_error(error)],
            None => steps,
        }
    }
}

impl ChordNode {
    /// Appends `next` to the body.
    pub(super) fn extend_body(&mut self, next: Canvas) {
        let empty = Canvas::of(NodeKind::Chain(Vec::new()));
        let body = std::mem::replace(&mut self.body, empty);
        self.body = body.join(next, Nesting::Flat);
    }
}
