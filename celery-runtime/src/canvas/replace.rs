//! Replacing a running task by a canvas.

use celery_protocol::Raw;

use crate::canvas::call::TaskCall;
use crate::canvas::error::CanvasError;
use crate::canvas::node::{Canvas, NodeKind};

impl Canvas {
    /// Returns Celery's error message if the canvas cannot replace a task.
    pub(crate) fn replacement_error(&self) -> Option<&'static str> {
        match &self.kind {
            _ if self.options.chord.is_some() => {
                Some("A signature replacing a task must not be part of a chord")
            }
            NodeKind::Chain(steps) if steps.is_empty() && self.error.is_none() => {
                Some("Cannot replace with an empty chain")
            }
            _ => None,
        }
    }

    /// Prepares the canvas to replace a task: adds the task's callbacks and errbacks, and sets how
    /// many replacements precede it (`nesting`). A group gets a body that returns its results as
    /// one list.
    ///
    /// # Errors
    ///
    /// Fails if a callback or errback cannot be decoded.
    pub(crate) fn into_replacement(
        mut self,
        callbacks: &[Raw<'static>],
        errbacks: &[Raw<'static>],
        nesting: u32,
    ) -> Result<Self, CanvasError> {
        if matches!(&self.kind, NodeKind::Group(_)) {
            self = Self::chord_of(self, accumulate_task());
        }
        if let NodeKind::Chain(steps) = &mut self.kind {
            match steps.pop() {
                Some(last) if matches!(last.kind, NodeKind::Group(_)) => {
                    steps.push(Self::chord_of(last, accumulate_task()));
                }
                last => steps.extend(last),
            }
            for step in steps {
                step.options.call.replaced_task_nesting = nesting;
            }
        }
        self.options.call.replaced_task_nesting = nesting;
        for (index, callback) in callbacks.iter().enumerate() {
            let callback = Self::read(callback);
            let in_link = |error: CanvasError| error.inside(format_args!("callbacks[{index}]"));
            self.add_callback(callback.map_err(in_link)?);
        }
        for (index, errback) in errbacks.iter().enumerate() {
            let errback = Self::read(errback);
            let in_link = |error: CanvasError| error.inside(format_args!("errbacks[{index}]"));
            self.add_errback(&errback.map_err(in_link)?);
        }
        Ok(self)
    }

    /// Sets the number of replacements of an encoded step that follows a replacement.
    ///
    /// # Errors
    ///
    /// Fails if the step cannot be decoded.
    pub(crate) fn mark_replaced(
        raw: &Raw<'static>,
        nesting: u32,
    ) -> Result<Raw<'static>, CanvasError> {
        let mut step = Self::read(raw)?;
        step.options.call.replaced_task_nesting = nesting;
        step.to_wire()
    }
}

/// Creates the task `celery.accumulate`, which returns the results of a group as a list.
fn accumulate_task() -> Canvas {
    let kwargs = Raw::json(r#"{"index": 0}"#);
    Canvas::call(TaskCall::untyped(
        "celery.accumulate",
        Raw::json("[]"),
        kwargs,
    ))
}
