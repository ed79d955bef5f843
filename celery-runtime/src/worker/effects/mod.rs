//! Carries out the effects of deliveries and workflows.
//!
//! [`executor`] and [`workflow`] create the futures, which the driver polls;
//! [`messages`] and [`documents`] build the messages and result documents, and are
//! pure; [`run_task`] runs the handler of a task.

pub(crate) mod documents;
pub(crate) mod executor;
pub(crate) mod messages;
pub(crate) mod run_task;
pub(crate) mod workflow;
