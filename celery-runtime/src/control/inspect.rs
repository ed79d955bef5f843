//! Questions to workers: [`Inspect`].

use std::collections::BTreeMap;
use std::time::Duration;

use celery_protocol::{Map, Value};

use crate::control::error::ControlError;
use crate::control::info::{
    PeerState, QueriedTask, QueueInfo, RegisteredTask, RequestInfo, ScheduledTask, Stats,
};
use crate::control::replies::Replies;
use crate::control::{Control, ControlCall, info};

/// Asks workers in any language what they do. Made by
/// [`App::inspect`](crate::App::inspect) or [`Control::inspect`].
///
/// Each question waits for the answers as [`ControlCall::replies`] does, fails
/// as it does, and may be dropped as it may. The answers are by worker; a worker
/// that fails hides no other.
///
/// ```no_run
/// # async fn example(app: celery_runtime::App) -> Result<(), celery_runtime::ControlError> {
/// for (node, requests) in app.inspect().active().await?.answers() {
///     println!("{node} runs {} tasks", requests.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Inspect {
    control: Control,
}

impl Inspect {
    pub(super) fn new(control: Control) -> Self {
        Self { control }
    }

    /// As [`Control::destination`].
    #[must_use]
    pub fn destination(self, nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::new(self.control.destination(nodes))
    }

    /// As [`Control::glob`].
    #[must_use]
    pub fn glob(self, pattern: impl Into<String>) -> Self {
        Self::new(self.control.glob(pattern))
    }

    /// As [`Control::regex`].
    #[must_use]
    pub fn regex(self, pattern: impl Into<String>) -> Self {
        Self::new(self.control.regex(pattern))
    }

    /// As [`Control::timeout`].
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self::new(self.control.timeout(timeout))
    }

    /// As [`Control::limit`].
    #[must_use]
    pub fn limit(self, replies: usize) -> Self {
        Self::new(self.control.limit(replies))
    }

    /// The tasks that run.
    ///
    /// # Errors
    ///
    /// As [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn active(&self) -> Result<Replies<Vec<RequestInfo>>, ControlError> {
        let arguments = Map::from([("safe", Value::Null)]);
        self.ask("active", arguments, info::requests).await
    }

    /// The tasks that wait in a worker to run.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn reserved(&self) -> Result<Replies<Vec<RequestInfo>>, ControlError> {
        self.ask("reserved", Map::new(), info::requests).await
    }

    /// The tasks that wait in a worker for their time.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn scheduled(&self) -> Result<Replies<Vec<ScheduledTask>>, ControlError> {
        self.ask("scheduled", Map::new(), info::scheduled).await
    }

    /// What workers count.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stats(&self) -> Result<Replies<Stats>, ControlError> {
        self.ask("stats", Map::new(), info::stats).await
    }

    /// The tasks that workers can run, with the attributes of these names, such
    /// as `rate_limit`.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn registered(
        &self,
        attributes: &[&str],
    ) -> Result<Replies<Vec<RegisteredTask>>, ControlError> {
        let names: Value = attributes.iter().copied().collect();
        let arguments = Map::from([("taskinfoitems", names)]);
        self.ask("registered", arguments, info::registered).await
    }

    /// The settings of workers that somebody has set, without passwords.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn conf(&self) -> Result<Replies<Map>, ControlError> {
        let arguments = Map::from([("with_defaults", false)]);
        self.ask("conf", arguments, info::map).await
    }

    /// All settings of workers, without passwords.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn conf_with_defaults(&self) -> Result<Replies<Map>, ControlError> {
        let arguments = Map::from([("with_defaults", true)]);
        self.ask("conf", arguments, info::map).await
    }

    /// Versions and settings as a text for bug reports.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn report(&self) -> Result<Replies<String>, ControlError> {
        self.ask("report", Map::new(), info::text).await
    }

    /// Where the tasks with these ids are, by id. Workers leave out what they do
    /// not have.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn query_task(
        &self,
        ids: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Replies<BTreeMap<String, QueriedTask>>, ControlError> {
        let ids: Value = ids.into_iter().map(|id| Value::Str(id.into())).collect();
        let arguments = Map::from([("ids", ids)]);
        self.ask("query_task", arguments, info::queried).await
    }

    /// The ids of the tasks that are not to be started.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn revoked(&self) -> Result<Replies<Vec<String>>, ControlError> {
        self.ask("revoked", Map::new(), info::texts).await
    }

    /// The queues that workers consume.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn active_queues(&self) -> Result<Replies<Vec<QueueInfo>>, ControlError> {
        self.ask("active_queues", Map::new(), info::queues).await
    }

    /// What the logical clocks of workers show.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn clock(&self) -> Result<Replies<u64>, ControlError> {
        self.ask("clock", Map::new(), info::clock).await
    }

    /// Tells workers which tasks `from_node` knows to be revoked, and asks the
    /// same of them. The worker of that name itself answers nothing.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have told.
    pub async fn hello(
        &self,
        from_node: &str,
        revoked: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Replies<Option<PeerState>>, ControlError> {
        let revoked: Value = revoked
            .into_iter()
            .map(|id| Value::Str(id.into()))
            .collect();
        let arguments = Map::from([("from_node", from_node.into()), ("revoked", revoked)]);
        self.ask("hello", arguments, info::hello).await
    }

    /// How much memory workers take, as a text, where they can tell.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn memsample(&self) -> Result<Replies<Option<String>>, ControlError> {
        self.ask("memsample", Map::new(), info::optional_text).await
    }

    /// Asks who is there.
    ///
    /// # Errors
    ///
    /// As [`active`](Self::active).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ping(&self) -> Result<Replies<()>, ControlError> {
        self.control.ping().await
    }

    async fn ask<T>(
        &self,
        question: &str,
        arguments: Map,
        read: fn(&Value) -> Result<T, String>,
    ) -> Result<Replies<T>, ControlError> {
        let call: ControlCall = self.control.command(question, arguments);
        call.replies_as(read).await
    }
}
