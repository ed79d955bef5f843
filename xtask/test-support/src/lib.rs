//! Helpers that the integration tests of several crates share: bounded waits,
//! workers inside the test process, temporary folders, processes, deliveries,
//! and the state of a Redis broker.
//!
//! The servers themselves are in [`test_servers`]. Unit tests of
//! `celery-runtime` cannot use this crate, since it depends on that crate; the
//! tests in its `tests/` can.
//!
//! Helpers panic on failure, as tests do.

#![allow(clippy::unwrap_used, reason = "a test helper may panic")]

mod delivery;
mod message;
mod process;
mod redis_state;
mod running_worker;
mod temp_dir;
mod wait;

pub use delivery::{all, id, ids, message_id, receive, receive_one};
pub use message::MessageExt;
pub use process::{example, send_signal};
pub use redis_state::RedisState;
pub use running_worker::{ConnectionCounts, RunningWorker};
pub use temp_dir::TempDir;
pub use wait::{TIMEOUT, blocking, eventually, wait_until, within};
