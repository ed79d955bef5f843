//! The settings of workers.

use std::path::PathBuf;
use std::time::Duration;

/// The settings of remote control, events, rate limits, shutdown and revocation in
/// a worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSettings {
    /// `worker_enable_remote_control`.
    pub(crate) remote_control: bool,
    /// `worker_send_task_events`.
    pub(crate) task_events: bool,
    /// Whether the worker asks other workers for their revocations at its start.
    pub(crate) mingle: bool,
    /// The interval of heartbeat events; none are sent if `None`.
    pub(crate) heartbeat: Option<Duration>,
    /// `worker_disable_rate_limits`.
    pub(crate) disable_rate_limits: bool,
    /// `worker_disable_prefetch`: the worker fetches only tasks that can start at once.
    pub(crate) disable_prefetch: bool,
    /// `task_default_rate_limit`.
    pub(crate) default_rate_limit: Option<String>,
    /// `worker_soft_shutdown_timeout`: the time that a cold shutdown gives to running
    /// tasks.
    pub(crate) soft_shutdown_timeout: Duration,
    /// `worker_enable_soft_shutdown_on_idle`: the worker waits for that time also if no
    /// task runs.
    pub(crate) soft_shutdown_on_idle: bool,
    /// `worker_cancel_long_running_tasks_on_connection_loss`, for tasks that are
    /// acknowledged late.
    pub(crate) cancel_on_connection_loss: bool,
    /// `worker_deduplicate_successful_tasks`: a redelivered task with a stored success
    /// does not run again.
    pub(crate) deduplicate: bool,
    /// `worker_state_db`: the file that keeps revoked ids over a restart.
    pub(crate) state_file: Option<PathBuf>,
    /// The maximum number of revoked ids in memory.
    pub(crate) revokes_max: usize,
    /// The time for which a revoked id stays in memory.
    pub(crate) revoke_expires: Duration,
    /// `worker_durable_revokes`: the time for which the store keeps revocations; none
    /// are written if `None`.
    pub(crate) durable_revokes: Option<Duration>,
    /// The time after which one poll of a task is reported as blocking.
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
