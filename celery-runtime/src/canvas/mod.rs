//! Workflows of tasks: chains, groups and chords. Pure: nothing here sends.
//!
//! - [`node`] is the workflow without types, on which all other modules work; [`call`] is its leaf,
//!   with [`options`].
//! - [`typed`] is the API of users: `Signature<Out, In>` and `Group<Out, In>`.
//! - [`join`] contains Celery's rules for composition, [`links`] those for callbacks, [`stamp`]
//!   those for stamps.
//! - [`wire`] encodes and decodes signatures.
//! - [`ids`] assigns ids; [`plan`] determines the messages to send; [`replace`] replaces a task by a
//!   canvas.

mod call;
mod error;
mod ids;
mod join;
mod links;
mod node;
pub(crate) mod options;
mod plan;
mod replace;
mod stamp;
mod typed;
mod wire;

#[cfg(test)]
mod tests;

pub use error::CanvasError;
pub use node::Canvas;
pub use stamp::{StampTarget, StampingVisitor};
pub use typed::{
    AcceptsResult, Group, Ignored, Members, NoMissingArgs, PartialArgs, Signature, Then, group,
};

pub(crate) use call::TaskCall;
pub(crate) use ids::{IdSource, Position};
pub(crate) use plan::{Plan, PlanContext, PlannedTask, plan};
