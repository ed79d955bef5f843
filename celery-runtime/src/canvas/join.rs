//! One canvas after another, by Celery's rules for `|`.

use crate::canvas::error::CanvasError;
use crate::canvas::node::{Canvas, Chord, Kind};

/// Whether what follows a chord that ends a chain becomes part of its body.
#[derive(Clone, Copy, PartialEq)]
enum Nesting {
    /// As Celery writes it.
    Body,
    /// Beside it, which does the same: else a chain of chords would be as deep
    /// as it is long.
    Flat,
}

impl Canvas {
    /// This, and then `next` with its result as the first argument. A group and
    /// something after it are a chord.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        self.join(next, Nesting::Body)
    }

    /// The same with a group that must not be empty, since its type promises a
    /// list of its own results.
    pub(super) fn then_some(self, next: Self) -> Self {
        if next.is_empty_group() && next.flaw.is_none() {
            let cause = "an empty group, which leaves nothing to go on with; leave the step out";
            return self.failed(CanvasError::new(cause));
        }
        self.then(next)
    }

    fn join(self, next: Self, nesting: Nesting) -> Self {
        if next.is_empty_group() {
            return match next.flaw {
                Some(flaw) => self.failed(flaw),
                None => self,
            };
        }
        let next = next.unrolled();
        match self.kind {
            Kind::Group(_) => Self::chord_of(self, next),
            Kind::Chord(_) => self.after_chord(next, nesting),
            Kind::Chain(_) => self.after_chain(next, nesting),
            Kind::Task(_) => {
                let mut steps = vec![self];
                steps.extend(next.into_steps());
                Self::of_steps(steps)
            }
        }
    }

    fn after_chord(mut self, next: Self, nesting: Nesting) -> Self {
        match (&mut self.kind, &next.kind) {
            (Kind::Chord(chord), Kind::Task(_) | Kind::Chord(_)) if nesting == Nesting::Body => {
                chord.extend_body(next);
                let depth = chord.body.depth();
                self.holding(depth)
            }
            _ => {
                let mut steps = vec![self];
                steps.extend(next.into_steps());
                Self::of_steps(steps)
            }
        }
    }

    fn after_chain(mut self, next: Self, nesting: Nesting) -> Self {
        if let Kind::Chain(_) = next.kind {
            let steps = next.into_steps();
            return steps
                .into_iter()
                .fold(self, |chain, step| chain.join(step, nesting));
        }
        self.settle_links();
        // What was the result's id is that of the step that was last.
        let id = self.options.call.task_id.take();
        let Kind::Chain(steps) = &mut self.kind else {
            return self;
        };
        if let Some(last) = steps.last_mut() {
            last.options.call.task_id = last.options.call.task_id.take().or(id);
        }
        match (steps.pop(), &next.kind) {
            (None, Kind::Group(_)) => {
                return match self.flaw {
                    Some(flaw) => next.failed(flaw),
                    None => next,
                };
            }
            (None, _) => steps.push(next),
            (Some(last), Kind::Task(_) | Kind::Chord(_)) if matches!(last.kind, Kind::Group(_)) => {
                steps.push(Self::chord_of(last, next));
            }
            (Some(mut last), kind) => match (&mut last.kind, kind) {
                (Kind::Chord(chord), Kind::Task(_) | Kind::Group(_))
                    if nesting == Nesting::Body =>
                {
                    chord.extend_body(next);
                    let depth = chord.body.depth();
                    steps.push(last.holding(depth));
                }
                _ => steps.extend([last, next]),
            },
        }
        let depth = steps.last().map_or(0, Self::depth);
        self.holding(depth)
    }

    pub(super) fn of_steps(steps: Vec<Self>) -> Self {
        let depth = Self::depth_of(&steps);
        Self::of(Kind::Chain(steps)).holding(depth)
    }

    /// The steps of a chain, each with what the chain's options say for it; any
    /// other canvas is one step.
    pub(super) fn into_steps(mut self) -> Vec<Self> {
        if !matches!(self.kind, Kind::Chain(_)) {
            return vec![self];
        }
        self.settle_links();
        let Kind::Chain(mut steps) = self.kind else {
            return Vec::new();
        };
        let mut options = self.options.call;
        // These are the last step's, all others the first one's.
        let id = options.task_id.take();
        if let Some(last) = steps.last_mut() {
            last.options.call.task_id = last.options.call.task_id.take().or(id);
        }
        if let Some(first) = steps.first_mut() {
            first.options.call.overlay(&options);
            first.flaw = first.flaw.take().or(self.flaw);
            return steps;
        }
        match self.flaw {
            Some(flaw) => vec![Self::of(Kind::Chain(Vec::new())).failed(flaw)],
            None => steps,
        }
    }
}

impl Chord {
    pub(super) fn extend_body(&mut self, next: Canvas) {
        let empty = Canvas::of(Kind::Chain(Vec::new()));
        let body = std::mem::replace(&mut self.body, empty);
        self.body = body.join(next, Nesting::Flat);
    }
}
