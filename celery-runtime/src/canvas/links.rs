//! Callbacks and errbacks, by Celery's rules for each kind of canvas.

use crate::canvas::node::{Canvas, Chord, Kind};

impl Canvas {
    /// Sends `callback` with the result as its first argument after a success:
    /// of a chain's last step, of a chord's body. A group has no result of its
    /// own: its first member gets the callback, without the result.
    #[must_use]
    pub fn link(mut self, callback: &Self) -> Self {
        self.add_callback(callback.clone());
        self
    }

    /// Sends `errback` with the id of what failed as its first argument: any
    /// step of a chain, any member of a group, or a chord whose header or body
    /// fails.
    #[must_use]
    pub fn link_error(mut self, errback: &Self) -> Self {
        self.add_errback(errback);
        self
    }

    pub(super) fn add_callback(&mut self, callback: Self) {
        match &mut self.kind {
            Kind::Task(_) | Kind::Chain(_) => self.push_link(callback),
            Kind::Group(group) => match group.tasks.first_mut() {
                Some(first) => first.add_callback(callback.immutable()),
                None => self.options.link.push(callback),
            },
            Kind::Chord(chord) => chord.body.add_callback(callback),
        }
        self.deepen(self.parts_depth());
    }

    fn push_link(&mut self, callback: Self) {
        let depth = callback.depth();
        self.options.link.push(callback);
        self.deepen(depth);
    }

    pub(super) fn add_errback(&mut self, errback: &Self) {
        match &mut self.kind {
            Kind::Task(_) | Kind::Chain(_) => {
                self.options.link_error.push(errback.clone());
                self.deepen(errback.depth());
            }
            Kind::Group(group) => {
                group
                    .tasks
                    .iter_mut()
                    .for_each(|task| task.add_errback(errback));
            }
            Kind::Chord(chord) => {
                // A chord in the header sees to its own body.
                if let Kind::Group(header) = &mut chord.header.kind {
                    let inner = header.tasks.iter_mut();
                    inner
                        .filter(|task| matches!(task.kind, Kind::Chord(_)))
                        .for_each(|task| task.add_errback(errback));
                }
                chord.errbacks.push(errback.clone());
                chord.body.add_errback(errback);
            }
        }
        self.deepen(self.parts_depth());
    }

    fn parts_depth(&self) -> usize {
        match &self.kind {
            Kind::Task(_) => 0,
            Kind::Chain(steps) => Self::depth_of(steps),
            Kind::Group(group) => Self::depth_of(&group.tasks),
            Kind::Chord(chord) => chord.header.depth().max(chord.body.depth()),
        }
    }

    /// A chain's callbacks are its last step's, its errbacks every step's.
    pub(super) fn settle_links(&mut self) {
        let Kind::Chain(steps) = &mut self.kind else {
            return;
        };
        if steps.is_empty() {
            return;
        }
        for errback in std::mem::take(&mut self.options.link_error) {
            steps.iter_mut().for_each(|step| step.add_errback(&errback));
        }
        for callback in std::mem::take(&mut self.options.link) {
            if let Some(last) = steps.last_mut() {
                last.add_callback(callback);
            }
        }
    }

    fn deepen(&mut self, inside: usize) {
        let empty = Self::of(Kind::Chain(Vec::new()));
        let own = std::mem::replace(self, empty);
        *self = own.holding(inside);
    }
}

impl Chord {
    /// Links the errbacks of the chord to the tasks of its header, too, without
    /// arguments of their own: the body's are the ones that hear of the failure.
    pub(super) fn share_errbacks(&mut self) {
        let Kind::Group(header) = &mut self.header.kind else {
            return;
        };
        for errback in std::mem::take(&mut self.errbacks) {
            let errback = errback.immutable();
            let tasks = header.tasks.iter_mut();
            tasks.for_each(|task| task.add_errback(&errback));
        }
    }
}
