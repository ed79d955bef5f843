//! Workflows of tasks: chains, groups and chords. Pure: nothing here sends.
//!
//! - [`node`] is a canvas without types, what everything else works on;
//!   [`call`] is its leaf.
//! - [`typed`] is what users write: `Signature<Out, In>` and `Group<Out, In>`.
//! - [`join`] has Celery's rules for putting one after another, [`links`] those
//!   for callbacks, [`stamp`] those for stamps.
//! - [`wire`] reads and writes signatures.
//! - [`freeze`] gives ids; [`plan`] makes what is sent; [`replace`] puts a
//!   canvas in the place of a task.

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
