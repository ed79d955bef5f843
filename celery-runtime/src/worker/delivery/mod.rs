//! The life of one delivery, as a pure state machine.
//!
//! [`state`] decides; [`event`] has its inputs and outputs; [`decode`] reads a
//! message into the task and policy that it starts with, [`outcome`] turns the
//! end of a task into effects.

pub(crate) mod decode;
pub(crate) mod event;
pub(crate) mod in_flight;
pub(crate) mod outcome;
pub(crate) mod state;
