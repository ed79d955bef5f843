//! Remote control, the client side: [`Control`] sends commands that change workers,
//! [`Inspect`] commands that read their state.
//!
//! `call.rs` builds requests, `mailbox.rs` sends them and reads the mailbox for
//! replies, `router.rs` assigns replies to calls, `replies.rs` and `info.rs` decode
//! them. The worker's side is in `worker/driver/command`.

mod call;
mod error;
mod info;
mod inspect;
mod mailbox;
mod replies;
mod router;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Map, Value};

use crate::app::inner::AppInner;
use crate::boundary::Queue;
use crate::control::mailbox::ControlMailbox;
use call::Destination;

pub use call::ControlCall;
pub use error::{CommandError, ControlError};
pub use info::{
    ExchangeInfo, PeerState, QueriedTask, QueueInfo, RegisteredTask, RequestInfo, ScheduledTask,
    Stats,
};
pub use inspect::Inspect;
pub use replies::Replies;

/// Sends commands to workers in any language, like `celery control`.
///
/// Created by [`App::control`](crate::App::control). Most methods create a
/// [`ControlCall`], which is sent with or without waiting for replies. Commands are
/// addressed to all workers unless [`destination`](Self::destination),
/// [`glob`](Self::glob) or [`regex`](Self::regex) is set.
///
/// Clones share one mailbox for replies. It is opened by the first call that waits
/// for replies, opened again after a lost connection, and closed when the last
/// clone is dropped.
///
/// ```no_run
/// # async fn example(app: celery_runtime::App) -> Result<(), celery_runtime::ControlError> {
/// let control = app.control();
/// control.revoke(["d9078da5-9915-40a0-bfa1-392c7bde42ed"]).send().await?;
///
/// let images = control.clone().destination(["images@host"]);
/// for (node, answer) in images.rate_limit("tasks.resize", "10/m").replies().await? {
///     println!("{node}: {answer:?}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Control {
    mailbox: Arc<ControlMailbox>,
    destination: Destination,
}

impl Control {
    pub(crate) fn new(app: &AppInner) -> Self {
        Self {
            mailbox: Arc::new(ControlMailbox::new(app)),
            destination: Destination::default(),
        }
    }

    /// Sets the names of the workers that commands are for. Calls then end as soon as
    /// there are as many replies as names.
    #[must_use]
    pub fn destination(self, nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let nodes = nodes.into_iter().map(Into::into).collect();
        self.with(|destination| destination.destination = Some(nodes))
    }

    /// Sets a shell pattern, such as `images*`, for the names of the workers that
    /// commands are for. A destination takes precedence.
    #[must_use]
    pub fn glob(self, pattern: impl Into<String>) -> Self {
        let pattern = (pattern.into(), "glob");
        self.with(|destination| destination.pattern = Some(pattern))
    }

    /// Sets a regular expression for the names of the workers that commands are for.
    /// It is anchored at the start of the name. A destination takes precedence.
    #[must_use]
    pub fn regex(self, pattern: impl Into<String>) -> Self {
        let pattern = (pattern.into(), "pcre");
        self.with(|destination| destination.pattern = Some(pattern))
    }

    /// Sets how long calls wait for replies; 1 s by default, as in Celery.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|destination| destination.timeout = timeout)
    }

    /// Sets the number of replies after which a call ends; by default there is no
    /// limit.
    #[must_use]
    pub fn limit(self, replies: usize) -> Self {
        self.with(|destination| destination.limit = Some(replies))
    }

    /// Returns an [`Inspect`] for the same workers and with the same mailbox.
    pub fn inspect(&self) -> Inspect {
        Inspect::new(self.clone())
    }

    /// Returns which workers reply.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ping(&self) -> Result<Replies<()>, ControlError> {
        let call = self.command("ping", Map::new());
        call.replies_as(info::pong).await
    }

    /// Revokes the tasks with these ids: workers do not start them. Running tasks are
    /// not affected.
    pub fn revoke(&self, ids: impl IntoIterator<Item = impl Into<String>>) -> ControlCall {
        self.revocation("task_id", id_or_list(ids), None)
    }

    /// Revokes the tasks with these ids durably, also for workers that start later.
    ///
    /// The revocations are kept in the app's [store](crate::App::store) for the time
    /// `ttl`. Only workers with the setting `worker_durable_revokes` check the store,
    /// which Python workers do not have. Running tasks are not affected.
    ///
    /// # Errors
    ///
    /// When there is no store, or it does not accept the revocations within
    /// [`Config::operation_timeout`](crate::Config::operation_timeout). Otherwise
    /// those of [`ControlCall::send`]; the revocations are stored then.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after the future is dropped, some revocations may be stored
    /// without having been sent to workers.
    pub async fn revoke_durably(
        &self,
        ids: impl IntoIterator<Item = impl Into<String>>,
        ttl: Duration,
    ) -> Result<(), ControlError> {
        let ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        self.mailbox.store_revoked(&ids, ttl).await?;
        self.revoke(ids).send().await
    }

    /// Revokes the tasks with these ids, and terminates running ones with a signal,
    /// `SIGTERM` or `SIGKILL`.
    pub fn terminate(
        &self,
        ids: impl IntoIterator<Item = impl Into<String>>,
        signal: &str,
    ) -> ControlCall {
        self.revocation("task_id", id_or_list(ids), Some(signal))
    }

    /// Revokes tasks by their stamps: those that have one of the given values in the
    /// stamp of that name. Running tasks are not affected.
    pub fn revoke_by_stamped_headers(&self, headers: Map) -> ControlCall {
        self.revocation("headers", Value::Map(headers), None)
    }

    /// Revokes tasks by their stamps, and terminates running ones with a signal.
    pub fn terminate_by_stamped_headers(&self, headers: Map, signal: &str) -> ControlCall {
        self.revocation("headers", Value::Map(headers), Some(signal))
    }

    /// Sets the rate limit of a task in each worker: `10/s`, `10/m`, `10/h`, or a
    /// number of tasks per second; 0 removes the limit.
    pub fn rate_limit(&self, task: &str, rate: impl Into<Value>) -> ControlCall {
        let arguments = Map::from([("task_name", task.into()), ("rate_limit", rate.into())]);
        self.command("rate_limit", arguments)
    }

    /// Sets the soft and hard time limits of a task; `None` removes a limit.
    pub fn time_limit(
        &self,
        task: &str,
        soft: Option<Duration>,
        hard: Option<Duration>,
    ) -> ControlCall {
        let seconds = |limit: Option<Duration>| Value::from(limit.map(|one| one.as_secs_f64()));
        let arguments = Map::from([
            ("task_name", task.into()),
            ("hard", seconds(hard)),
            ("soft", seconds(soft)),
        ]);
        self.command("time_limit", arguments)
    }

    /// Makes workers consume another queue. If only its name is given, workers take
    /// the rest from their settings.
    pub fn add_consumer(&self, queue: impl Into<Queue>) -> ControlCall {
        self.command("add_consumer", call::consumer(&queue.into()))
    }

    /// Makes workers stop consuming a queue.
    pub fn cancel_consumer(&self, queue: &str) -> ControlCall {
        self.command("cancel_consumer", Map::from([("queue", queue)]))
    }

    /// Increases the concurrency of workers by this number.
    pub fn pool_grow(&self, by: u32) -> ControlCall {
        self.command("pool_grow", Map::from([("n", by)]))
    }

    /// Decreases the concurrency of workers by this number.
    pub fn pool_shrink(&self, by: u32) -> ControlCall {
        self.command("pool_shrink", Map::from([("n", by)]))
    }

    /// Restarts the pool of Python workers that have `worker_pool_restarts` set.
    /// Workers of this crate reply with an error.
    pub fn pool_restart(&self) -> ControlCall {
        let arguments = Map::from([
            ("modules", Value::Null),
            ("reload", Value::Bool(false)),
            ("reloader", Value::Null),
        ]);
        self.command("pool_restart", arguments)
    }

    /// Sets the range of concurrency of workers that were started with autoscaling.
    pub fn autoscale(&self, max: u32, min: u32) -> ControlCall {
        self.command("autoscale", Map::from([("max", max), ("min", min)]))
    }

    /// Starts a warm shutdown: workers finish their running tasks and exit. Most
    /// do not reply.
    pub fn shutdown(&self) -> ControlCall {
        self.command("shutdown", Map::new())
    }

    /// Enables task events; see [`App::events`](crate::App::events).
    pub fn enable_events(&self) -> ControlCall {
        self.command("enable_events", Map::new())
    }

    /// Disables task events.
    pub fn disable_events(&self) -> ControlCall {
        self.command("disable_events", Map::new())
    }

    /// Makes workers send a heartbeat event at once.
    pub fn heartbeat(&self) -> ControlCall {
        self.command("heartbeat", Map::new())
    }

    /// Starts an election: exactly one of the workers performs `action`.
    ///
    /// Workers know the topic `task`, for which the action is the signature of a task
    /// to run. At least two workers are required: a single Python worker exits with
    /// an error.
    pub fn election(&self, id: &str, topic: &str, action: impl Into<Value>) -> ControlCall {
        let arguments = Map::from([
            ("id", id.into()),
            ("topic", topic.into()),
            ("action", action.into()),
        ]);
        self.command("election", arguments)
    }

    /// Sends a custom command without waiting for replies.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::send`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after the future is dropped, the command may or may not have
    /// been sent.
    pub async fn broadcast(&self, command: &str, arguments: Map) -> Result<(), ControlError> {
        self.command(command, arguments).send().await
    }

    /// Sends a custom command and collects the replies.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after the future is dropped, the command may or may not have
    /// been sent.
    pub async fn call(
        &self,
        command: &str,
        arguments: Map,
    ) -> Result<Replies<Value>, ControlError> {
        self.command(command, arguments).replies().await
    }

    fn command(&self, name: &str, arguments: Map) -> ControlCall {
        ControlCall::new(
            Arc::clone(&self.mailbox),
            self.destination.clone(),
            name,
            arguments,
        )
    }

    fn revocation(&self, argument: &str, value: Value, signal: Option<&str>) -> ControlCall {
        let name = match argument {
            "headers" => "revoke_by_stamped_headers",
            _ => "revoke",
        };
        let arguments = Map::from([
            (argument, value),
            ("terminate", Value::Bool(signal.is_some())),
            ("signal", signal.unwrap_or("SIGTERM").into()),
        ]);
        self.command(name, arguments)
    }

    fn with(mut self, change: impl FnOnce(&mut Destination)) -> Self {
        change(&mut self.destination);
        self
    }
}

/// Encodes ids like Celery: a single one as a string, several as a list.
fn id_or_list(ids: impl IntoIterator<Item = impl Into<String>>) -> Value {
    let mut ids: Vec<String> = ids.into_iter().map(Into::into).collect();
    match (ids.len(), ids.pop()) {
        (1, Some(id)) => Value::Str(id),
        (_, last) => ids.into_iter().chain(last).map(Value::Str).collect(),
    }
}
