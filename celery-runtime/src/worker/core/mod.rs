//! State and decisions of a worker that need no I/O. Pure; used by the driver.

pub(crate) mod counters;
pub(crate) mod describe;
pub(crate) mod destination;
pub(crate) mod elections;
pub(crate) mod failure;
pub(crate) mod queue_selection;
pub(crate) mod rate_limits;
pub(crate) mod revocations;
pub(crate) mod scheduled;
pub(crate) mod shutdown;
pub(crate) mod slots;
pub(crate) mod window;
