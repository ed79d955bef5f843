//! Settings of workers.

use std::path::PathBuf;
use std::time::Duration;

/// How a worker deals with those who watch and steer it, and with its end.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSettings {
    /// Whether it obeys and answers remote control.
    pub(crate) remote_control: bool,
    /// Whether it tells what happens to tasks.
    pub(crate) task_events: bool,
    /// Whether it asks its peers at the start what was revoked.
    pub(crate) mingle: bool,
    /// Time between two signs of life; none are given where `None`.
    pub(crate) heartbeat: Option<Duration>,
    /// Whether limits on how often a task starts are left out.
    pub(crate) disable_rate_limits: bool,
    /// Whether nothing is taken that cannot start at once.
    pub(crate) disable_prefetch: bool,
    /// What a rate limit is where a task has none.
    pub(crate) default_rate_limit: Option<String>,
    /// How long a cold stop leaves tasks to end by themselves.
    pub(crate) soft_shutdown_timeout: Duration,
    /// Whether it waits as long when nothing runs.
    pub(crate) soft_shutdown_on_idle: bool,
    /// Whether late tasks are ended whose connection is lost.
    pub(crate) cancel_on_connection_loss: bool,
    /// Whether a redelivered task that has succeeded is not run again.
    pub(crate) deduplicate: bool,
    /// Where revoked ids are kept between two runs.
    pub(crate) state_file: Option<PathBuf>,
    /// Most revoked ids that are remembered.
    pub(crate) revokes_max: usize,
    /// How long a revoked id is remembered.
    pub(crate) revoke_expires: Duration,
    /// How long the store remembers what was revoked; it is not told where
    /// `None`.
    pub(crate) durable_revokes: Option<Duration>,
    /// A poll of a task that takes longer is reported.
    pub(crate) blocked_after: Duration,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            remote_control: true,
            task_events: false,
            mingle: true,
            heartbeat: Some(Duration::from_secs(2)),
            disable_rate_limits: false,
            disable_prefetch: false,
            default_rate_limit: None,
            soft_shutdown_timeout: Duration::ZERO,
            soft_shutdown_on_idle: false,
            cancel_on_connection_loss: false,
            deduplicate: false,
            state_file: None,
            revokes_max: 50_000,
            revoke_expires: Duration::from_secs(10_800),
            durable_revokes: None,
            blocked_after: Duration::from_secs(1),
        }
    }
}
