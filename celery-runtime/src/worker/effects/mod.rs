//! Effects of deliveries and workflows: storing results, sending messages.
//!
//! [`executor`] and [`workflow`] make the futures that carry effects out;
//! [`messages`] and [`documents`] make what is sent and stored, and are pure.

pub(crate) mod documents;
pub(crate) mod executor;
pub(crate) mod messages;
pub(crate) mod run_task;
pub(crate) mod workflow;
