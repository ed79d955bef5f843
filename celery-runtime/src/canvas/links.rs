//! Callbacks and errbacks, by the rules of Celery for each kind of canvas.

use crate::canvas::node::{Canvas, ChordNode, NodeKind};

impl Canvas {
    /// Adds a callback, which is sent with the result as its first argument when the task succeeds:
    /// the last step of a chain, or the body of a chord. A group has no result of its own; its
    /// first member gets the callback, which is sent without the result.
    #[must_use]
    pub fn link(mut self, callback: &Self) -> Self {
        self.add_callback(callback.clone());
        self
    }

    /// Adds an errback, which is sent with the id of the failed task as its first argument: any
    /// step of a chain, any member of a group, or the header or body of a chord.
    #[must_use]
    pub fn link_error(mut self, errback: &Self) -> Self {
        self.add_errback(errback);
        self
    }

    pub(super) fn add_callback(&mut self, callback: Self) {
        match &mut self.kind {
            NodeKind::Task(_) | NodeKind::Chain(_) => self.push_link(callback),
            NodeKind::Group(group) => match group.tasks.first_mut() {
                Some(first) => first.add_callback(callback.immutable()),
                None => self.options.link.push(callback),
            },
            NodeKind::Chord(chord) => chord.body.add_callback(callback),
        }
        self.raise_depth(self.contents_depth());
    }

    fn push_link(&mut self, callback: Self) {
        let depth = callback.depth();
        self.options.link.push(callback);
        self.raise_depth(depth);
    }

    pub(super) fn add_errback(&mut self, errback: &Self) {
        match &mut self.kind {
            NodeKind::Task(_) | NodeKind::Chain(_) => {
                self.options.link_error.push(errback.clone());
                self.raise_depth(errback.depth());
            }
            NodeKind::Group(group) => {
                group
                    .tasks
                    .iter_mut()
                    .for_each(|task| task.add_errback(errback));
            }
            NodeKind::Chord(chord) => {
                // A chord in the header has a body of its own.
                if let NodeKind::Group(header) = &mut chord.header.kind {
                    let inner = header.tasks.iter_mut();
                    inner
                        .filter(|task| matches!(task.kind, NodeKind::Chord(_)))
                        .for_each(|task| task.add_errback(errback));
                }
                chord.errbacks.push(errback.clone());
                chord.body.add_errback(errback);
            }
        }
        self.raise_depth(self.contents_depth());
    }

    fn contents_depth(&self) -> usize {
        match &self.kind {
            NodeKind::Task(_) => 0,
            NodeKind::Chain(steps) => Self::depth_of(steps),
            NodeKind::Group(group) => Self::depth_of(&group.tasks),
            NodeKind::Chord(chord) => chord.header.depth().max(chord.body.depth()),
        }
    }

    /// Moves the callbacks of a chain to its last step and its errbacks to every step.
    pub(super) fn distribute_links(&mut self) {
        let NodeKind::Chain(steps) = &mut self.kind else {
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

    fn raise_depth(&mut self, nested: usize) {
        let empty = Self::of(NodeKind::Chain(Vec::new()));
        let own = std::mem::replace(self, empty);
        *self = own.with_nested_depth(nested);
    }
}

impl ChordNode {
    /// Also links the errbacks of the chord to the tasks of its header, as immutable ones: only
    /// those of the body receive the id of the failed task.
    pub(super) fn share_errbacks(&mut self) {
        let NodeKind::Group(header) = &mut self.header.kind else {
            return;
        };
        for errback in std::mem::take(&mut self.errbacks) {
            let errback = errback.immutable();
            let tasks = header.tasks.iter_mut();
            tasks.for_each(|task| task.add_errback(&errback));
        }
    }
}
