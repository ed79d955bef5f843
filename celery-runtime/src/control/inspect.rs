//! Commands that read the state of workers: [`Inspect`].

use std::collections::BTreeMap;
use std::time::Duration;

use celery_protocol::{Map, Value};

use crate::control::error::ControlError;
use crate::control::info::{
    PeerState, QueriedTask, QueueInfo, RegisteredTask, RequestInfo, ScheduledTask, Stats,
};
use crate::control::replies::Replies;
use crate::control::{Control, ControlCall, info};

/// Reads the state of workers in any language, like `celery inspect`.
///
/// Created by [`App::inspect`](crate::App::inspect) or [`Control::inspect`]. Each
/// method sends a command and collects the replies, as [`ControlCall::replies`]
/// does. The replies are by worker; an error of one worker does not affect the
/// replies of others.
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

    /// Sets the names of the workers to query; see
    /// [`Control::destination`].
    #[must_use]
    pub fn destination(self, nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::new(self.control.destination(nodes))
    }

    /// Sets a shell pattern for the names of the workers to query; see
    /// [`Control::glob`].
    #[must_use]
    pub fn glob(self, pattern: impl Into<String>) -> Self {
        Self::new(self.control.glob(pattern))
    }

    /// Sets a regular expression for the names of the workers to query; see
    /// [`Control::regex`].
    #[must_use]
    pub fn regex(self, pattern: impl Into<String>) -> Self {
        Self::new(self.control.regex(pattern))
    }

    /// Sets how long to wait for replies; 1 s by default; see
    /// [`Control::timeout`].
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self::new(self.control.timeout(timeout))
    }

    /// Sets the number of replies after which the wait ends; see
    /// [`Control::limit`].
    #[must_use]
    pub fn limit(self, replies: usize) -> Self {
        Self::new(self.control.limit(replies))
    }

    /// Returns the tasks that workers are running.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn active(&self) -> Result<Replies<Vec<RequestInfo>>, ControlError> {
        let arguments = Map::from([("safe", Value::Null)]);
        self.call("active", arguments, info::requests).await
    }

    /// Returns the tasks that workers have received and not started.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn reserved(&self) -> Result<Replies<Vec<RequestInfo>>, ControlError> {
        self.call("reserved", Map::new(), info::requests).await
    }

    /// Returns the tasks that workers hold until their ETA.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn scheduled(&self) -> Result<Replies<Vec<ScheduledTask>>, ControlError> {
        self.call("scheduled", Map::new(), info::scheduled).await
    }

    /// Returns the statistics of workers.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stats(&self) -> Result<Replies<Stats>, ControlError> {
        self.call("stats", Map::new(), info::stats).await
    }

    /// Returns the registered tasks of workers, with the attributes of these names,
    /// such as `rate_limit`.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
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
        self.call("registered", arguments, info::registered).await
    }

    /// Returns the settings of workers that are set explicitly, without passwords.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn conf(&self) -> Result<Replies<Map>, ControlError> {
        let arguments = Map::from([("with_defaults", false)]);
        self.call("conf", arguments, info::map).await
    }

    /// Returns all settings of workers, without passwords.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn conf_with_defaults(&self) -> Result<Replies<Map>, ControlError> {
        let arguments = Map::from([("with_defaults", true)]);
        self.call("conf", arguments, info::map).await
    }

    /// Returns versions and settings as text for bug reports.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn report(&self) -> Result<Replies<String>, ControlError> {
        self.call("report", Map::new(), info::text).await
    }

    /// Returns the states of the tasks with these ids, by id. Workers omit tasks that
    /// they do not know.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
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
        self.call("query_task", arguments, info::queried).await
    }

    /// Returns the ids of revoked tasks.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn revoked(&self) -> Result<Replies<Vec<String>>, ControlError> {
        self.call("revoked", Map::new(), info::texts).await
    }

    /// Returns the queues that workers consume.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn active_queues(&self) -> Result<Replies<Vec<QueueInfo>>, ControlError> {
        self.call("active_queues", Map::new(), info::queues).await
    }

    /// Returns the logical clocks of workers.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn clock(&self) -> Result<Replies<u64>, ControlError> {
        self.call("clock", Map::new(), info::clock).await
    }

    /// Sends the ids of revoked tasks that the node `from_node` knows, and returns
    /// those of the workers; this is what workers do at their start (mingle). The
    /// reply of the worker named `from_node` itself is `None`.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after the future is dropped, the ids may or may not have been
    /// sent.
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
        self.call("hello", arguments, info::hello).await
    }

    /// Returns the memory usage of workers as text; `None` if a worker cannot measure
    /// it.
    ///
    /// # Errors
    ///
    /// See [`ControlCall::replies`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn memsample(&self) -> Result<Replies<Option<String>>, ControlError> {
        self.call("memsample", Map::new(), info::optional_text)
            .await
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
        self.control.ping().await
    }

    async fn call<T>(
        &self,
        command: &str,
        arguments: Map,
        read: fn(&Value) -> Result<T, String>,
    ) -> Result<Replies<T>, ControlError> {
        let call: ControlCall = self.control.command(command, arguments);
        call.replies_as(read).await
    }
}
