//! Remote control: [`Control`] tells workers what to do, [`Inspect`] asks them.
//!
//! `call.rs` makes requests, `mailbox.rs` sends them and reads the mailbox for
//! replies, `router.rs` sorts those by call, `replies.rs` and `info.rs` read
//! them.

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

/// Tells workers in any language what to do. Made by
/// [`App::control`](crate::App::control).
///
/// Every command makes a [`ControlCall`], which is either sent or sent and
/// answered. All workers are meant unless [`destination`](Self::destination),
/// [`glob`](Self::glob) or [`regex`](Self::regex) says otherwise.
///
/// Clones share the mailbox for replies, which is opened by the first call that
/// wants some, opened anew after its connection was lost, and closed when the
/// last clone is dropped.
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

    /// The same for the workers of these names alone. As soon as that many
    /// replies are there, nothing more is waited for.
    #[must_use]
    pub fn destination(self, nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let nodes = nodes.into_iter().map(Into::into).collect();
        self.with(|destination| destination.destination = Some(nodes))
    }

    /// The same for workers whose names match a shell pattern, such as
    /// `images*`. A destination goes before it.
    #[must_use]
    pub fn glob(self, pattern: impl Into<String>) -> Self {
        let pattern = (pattern.into(), "glob");
        self.with(|destination| destination.pattern = Some(pattern))
    }

    /// The same for workers whose names a regular expression matches from their
    /// beginning. A destination goes before it.
    #[must_use]
    pub fn regex(self, pattern: impl Into<String>) -> Self {
        let pattern = (pattern.into(), "pcre");
        self.with(|destination| destination.pattern = Some(pattern))
    }

    /// The same with another time in which replies have to come; 1 s by
    /// default, as in Celery.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|destination| destination.timeout = timeout)
    }

    /// The same, waiting for no more than so many replies.
    #[must_use]
    pub fn limit(self, replies: usize) -> Self {
        self.with(|destination| destination.limit = Some(replies))
    }

    /// Questions to the same workers, over the same mailbox.
    pub fn inspect(&self) -> Inspect {
        Inspect::new(self.clone())
    }

    /// Asks who is there.
    ///
    /// # Errors
    ///
    /// As [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ping(&self) -> Result<Replies<()>, ControlError> {
        let call = self.command("ping", Map::new());
        call.replies_as(info::pong).await
    }

    /// Tasks with these ids are not to be started. Those that run go on.
    pub fn revoke(&self, ids: impl IntoIterator<Item = impl Into<String>>) -> ControlCall {
        self.revocation("task_id", some_ids(ids), None)
    }

    /// Tasks with these ids are not to be started, also by workers that are away
    /// now, for as long as `remembered`. It is kept in the app's
    /// [store](crate::App::store), and only workers whose
    /// `worker_durable_revokes` is set look there: those of this
    /// implementation, none of Python's. Those that run go on.
    ///
    /// # Errors
    ///
    /// When there is no store or it does not take it within the deadline; else
    /// as [`ControlCall::send`], and the store has it then.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have revoked some, and told nobody.
    pub async fn revoke_durably(
        &self,
        ids: impl IntoIterator<Item = impl Into<String>>,
        remembered: Duration,
    ) -> Result<(), ControlError> {
        let ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        self.mailbox.remember_revoked(&ids, remembered).await?;
        self.revoke(ids).send().await
    }

    /// Tasks with these ids are not to be started, and those that run are ended
    /// by a signal, `SIGTERM` or `SIGKILL`.
    pub fn terminate(
        &self,
        ids: impl IntoIterator<Item = impl Into<String>>,
        signal: &str,
    ) -> ControlCall {
        self.revocation("task_id", some_ids(ids), Some(signal))
    }

    /// Tasks that have one of these values in the stamp of that name are not to
    /// be started.
    pub fn revoke_by_stamped_headers(&self, headers: Map) -> ControlCall {
        self.revocation("headers", Value::Map(headers), None)
    }

    /// The same, and those that run are ended by a signal.
    pub fn terminate_by_stamped_headers(&self, headers: Map, signal: &str) -> ControlCall {
        self.revocation("headers", Value::Map(headers), Some(signal))
    }

    /// How often tasks of this name may be started: `10/s`, `10/m`, `10/h`, a
    /// number for that many a second; 0 for as often as one likes.
    pub fn rate_limit(&self, task: &str, rate: impl Into<Value>) -> ControlCall {
        let arguments = Map::from([("task_name", task.into()), ("rate_limit", rate.into())]);
        self.command("rate_limit", arguments)
    }

    /// How long tasks of this name may run until they are asked to end (`soft`),
    /// and until they are ended.
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

    /// Another queue to consume, from a worker's settings or as given here.
    pub fn add_consumer(&self, queue: impl Into<Queue>) -> ControlCall {
        self.command("add_consumer", call::consumer(&queue.into()))
    }

    /// A queue that is not to be consumed any more.
    pub fn cancel_consumer(&self, queue: &str) -> ControlCall {
        self.command("cancel_consumer", Map::from([("queue", queue)]))
    }

    /// So many more tasks at once.
    pub fn pool_grow(&self, by: u32) -> ControlCall {
        self.command("pool_grow", Map::from([("n", by)]))
    }

    /// So many tasks less at once.
    pub fn pool_shrink(&self, by: u32) -> ControlCall {
        self.command("pool_shrink", Map::from([("n", by)]))
    }

    /// New processes for tasks, where the worker's settings allow it.
    pub fn pool_restart(&self) -> ControlCall {
        let arguments = Map::from([
            ("modules", Value::Null),
            ("reload", Value::Bool(false)),
            ("reloader", Value::Null),
        ]);
        self.command("pool_restart", arguments)
    }

    /// Between how many and how many tasks run at once, where a worker decides
    /// that by itself.
    pub fn autoscale(&self, max: u32, min: u32) -> ControlCall {
        self.command("autoscale", Map::from([("max", max), ("min", min)]))
    }

    /// Workers finish what they run, and end. Most of them do not answer.
    pub fn shutdown(&self) -> ControlCall {
        self.command("shutdown", Map::new())
    }

    /// Workers tell about their tasks from now on; see
    /// [`App::events`](crate::App::events).
    pub fn enable_events(&self) -> ControlCall {
        self.command("enable_events", Map::new())
    }

    /// Workers do not tell about their tasks any more.
    pub fn disable_events(&self) -> ControlCall {
        self.command("disable_events", Map::new())
    }

    /// Workers send an event that says that they live.
    pub fn heartbeat(&self) -> ControlCall {
        self.command("heartbeat", Map::new())
    }

    /// Workers agree on one of them, which does `action` if it knows `topic`:
    /// for the topic `task`, the action is the task's signature. It takes two
    /// workers: one of Celery's alone stops with an error.
    pub fn election(&self, id: &str, topic: &str, action: impl Into<Value>) -> ControlCall {
        let arguments = Map::from([
            ("id", id.into()),
            ("topic", topic.into()),
            ("action", action.into()),
        ]);
        self.command("election", arguments)
    }

    /// Sends a command of this name without waiting for replies.
    ///
    /// # Errors
    ///
    /// As [`ControlCall::send`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have sent the command.
    pub async fn broadcast(&self, command: &str, arguments: Map) -> Result<(), ControlError> {
        self.command(command, arguments).send().await
    }

    /// Sends a command of this name and collects the replies.
    ///
    /// # Errors
    ///
    /// As [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have sent the command.
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

    fn revocation(&self, by: &str, what: Value, signal: Option<&str>) -> ControlCall {
        let name = match by {
            "headers" => "revoke_by_stamped_headers",
            _ => "revoke",
        };
        let arguments = Map::from([
            (by, what),
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

/// Celery writes one id as a text, and several as a list.
fn some_ids(ids: impl IntoIterator<Item = impl Into<String>>) -> Value {
    let mut ids: Vec<String> = ids.into_iter().map(Into::into).collect();
    match (ids.len(), ids.pop()) {
        (1, Some(id)) => Value::Str(id),
        (_, last) => ids.into_iter().chain(last).map(Value::Str).collect(),
    }
}
