//! Deliveries: a pure state machine for each, and what it works with.
//!
//! [`decode`] turns a message into a job and its execution policy; [`state`] is the
//! state machine and [`event`] its inputs and outputs; [`outcome`] turns the end of
//! a task into effects; [`in_flight`] is the table of the worker's deliveries.

pub(crate) mod decode;
pub(crate) mod event;
pub(crate) mod in_flight;
pub(crate) mod outcome;
pub(crate) mod state;
