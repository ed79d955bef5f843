//! A canvas in the place of a task that has begun.

use celery_protocol::Raw;

use crate::canvas::call::TaskCall;
use crate::canvas::error::CanvasError;
use crate::canvas::node::{Canvas, Kind};

impl Canvas {
    /// Why it cannot take the place of a task, in Celery's words.
    pub(crate) fn is_no_replacement(&self) -> Option<&'static str> {
        match &self.kind {
            _ if self.options.chord.is_some() => {
                Some("A signature replacing a task must not be part of a chord")
            }
            Kind::Chain(steps) if steps.is_empty() && self.flaw.is_none() => {
                Some("Cannot replace with an empty chain")
            }
            _ => None,
        }
    }

    /// The same with the callbacks and errbacks of the task whose place it takes,
    /// and marked as the replacement of a replacement that it may be. The results
    /// of a group become one list.
    ///
    /// # Errors
    ///
    /// When one of the links cannot be read.
    pub(crate) fn standing_in(
        mut self,
        callbacks: &[Raw<'static>],
        errbacks: &[Raw<'static>],
        nesting: u32,
    ) -> Result<Self, CanvasError> {
        if matches!(&self.kind, Kind::Group(_)) {
            self = Self::chord_of(self, accumulated());
        }
        if let Kind::Chain(steps) = &mut self.kind {
            match steps.pop() {
                Some(last) if matches!(last.kind, Kind::Group(_)) => {
                    steps.push(Self::chord_of(last, accumulated()));
                }
                last => steps.extend(last),
            }
            for step in steps {
                step.options.call.replaced_task_nesting = nesting;
            }
        }
        self.options.call.replaced_task_nesting = nesting;
        for (place, callback) in callbacks.iter().enumerate() {
            let callback = Self::read(callback);
            let within = |error: CanvasError| error.inside(format_args!("callbacks[{place}]"));
            self.add_callback(callback.map_err(within)?);
        }
        for (place, errback) in errbacks.iter().enumerate() {
            let errback = Self::read(errback);
            let within = |error: CanvasError| error.inside(format_args!("errbacks[{place}]"));
            self.add_errback(&errback.map_err(within)?);
        }
        Ok(self)
    }

    /// A step after a replacement, marked like it.
    pub(crate) fn marked_as_replaced(
        raw: &Raw<'static>,
        nesting: u32,
    ) -> Result<Raw<'static>, CanvasError> {
        let mut step = Self::read(raw)?;
        step.options.call.replaced_task_nesting = nesting;
        step.to_wire()
    }
}

/// The list of the results of a group.
fn accumulated() -> Canvas {
    let kwargs = Raw::json(r#"{"index": 0}"#);
    Canvas::call(TaskCall::untyped(
        "celery.accumulate",
        Raw::json("[]"),
        kwargs,
    ))
}
