//! The view that a running task has of itself: [`Context`].

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use celery_protocol::{DecodeError, DeliveryInfo, Map, Properties, Raw, State, TaskHeaders, Value};
use serde::Serialize;

use crate::boundary::ServiceError;
use crate::execution::job::Job;

/// The context of a running task, passed to handlers that take it as their first argument: the
/// task's ids, its message, the application's state, and methods to report progress and to send
/// other tasks.
///
/// Cloning is cheap. A clone that outlives the task stays usable, but the worker does not wait for
/// anything that it reports after the task has ended.
pub struct Context<S = ()> {
    job: Arc<Job>,
    state: Arc<S>,
}

/// An error of [`Context::update_state`]: the progress report was not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The state is one that the worker sets itself.
    #[error("cannot report state {0} from inside a task: the worker sets it")]
    Reserved(String),
    /// The result serializer cannot encode the value.
    #[error("cannot encode the progress of task {id}: {cause}")]
    Encode {
        /// The task's id.
        id: String,
        /// The error of the serializer.
        cause: celery_protocol::EncodeError,
    },
    /// The result backend failed.
    #[error(transparent)]
    Backend(#[from] ServiceError),
}

impl<S> Context<S> {
    /// Returns the id of this task.
    pub fn id(&self) -> &str {
        &self.job.id
    }

    /// Returns the name under which the task is registered.
    pub fn task(&self) -> &str {
        &self.job.task
    }

    /// Returns the number of retries before this execution; 0 for the first one.
    pub fn retries(&self) -> u32 {
        self.job.retries
    }

    /// Returns the application's state that was passed to
    /// [`Tasks::with_state`](crate::Tasks::with_state).
    pub fn state(&self) -> &S {
        &self.state
    }

    /// Returns the id of the first task of the workflow.
    pub fn root_id(&self) -> Option<String> {
        self.text(|headers| headers.root_id)
    }

    /// Returns the id of the task that sent this one.
    pub fn parent_id(&self) -> Option<String> {
        self.text(|headers| headers.parent_id)
    }

    /// Returns the id of the group that this task is a member of.
    pub fn group_id(&self) -> Option<String> {
        self.text(|headers| headers.group)
    }

    /// Returns all headers of the message.
    ///
    /// # Errors
    ///
    /// Fails if a header has a type that Celery does not give it.
    pub fn headers(&self) -> Result<TaskHeaders<'_>, DecodeError> {
        self.job.headers()
    }

    /// Returns a header of the message by name, such as one from the sender's `headers` option;
    /// `None` if it is missing or cannot be decoded.
    pub fn header(&self, name: &str) -> Option<Value> {
        self.job
            .message
            .headers
            .find(name)
            .ok()
            .flatten()?
            .to_value()
            .ok()
    }

    /// Returns the headers of the message that Celery does not define: those of the sender's
    /// `headers` option.
    pub fn custom_headers(&self) -> Map {
        let headers = self.job.headers();
        let extra = headers.map(|headers| headers.extra).unwrap_or_default();
        let values = extra.into_iter().filter_map(|(name, value)| {
            let value = value.to_value().ok()?;
            Some((name.into_owned(), value))
        });
        values.collect()
    }

    /// Returns the transport properties of the message. Its `extra` contains `app_id` and other
    /// properties that the sender has set.
    pub fn properties(&self) -> &Properties {
        &self.job.message.properties
    }

    /// Returns the priority of the message, if it has one.
    pub fn priority(&self) -> Option<u8> {
        self.job.message.properties.priority
    }

    /// Returns the time before which the task was not allowed to start (`eta`).
    pub fn eta(&self) -> Option<SystemTime> {
        self.job.headers().ok()?.eta_time().ok()?
    }

    /// Returns the time after which the task is not started any more (`expires`).
    pub fn expires(&self) -> Option<SystemTime> {
        self.job.headers().ok()?.expires_time().ok()?
    }

    /// Returns the soft and the hard time limit of this execution. They come from the message, from
    /// remote control, from the declaration or from the configuration, in this order.
    pub fn time_limits(&self) -> (Option<Duration>, Option<Duration>) {
        (self.job.soft_limit, self.job.hard_limit)
    }

    /// Returns the exchange, the routing key and the flags of the delivery.
    pub fn delivery_info(&self) -> &DeliveryInfo {
        &self.job.message.properties.delivery_info
    }

    /// Returns whether the broker delivered the message before, in which case the task may have
    /// run already.
    pub fn is_redelivered(&self) -> bool {
        self.job.redelivered
    }

    /// Returns the name of the worker.
    pub fn hostname(&self) -> &str {
        &self.job.services.hostname
    }

    /// Stores a custom state such as `PROGRESS` with any value. Readers of the result see them as
    /// `state` and `info` until the next state is stored. Does nothing without a result backend, or
    /// if the result is ignored.
    ///
    /// # Errors
    ///
    /// See [`UpdateError`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have stored the state.
    pub async fn update_state(
        &self,
        state: &str,
        meta: impl Serialize + Send,
    ) -> Result<(), UpdateError> {
        let parsed = State::from(state);
        if parsed.is_ready() {
            return Err(UpdateError::Reserved(state.to_owned()));
        }
        let job = &self.job;
        let Some(backend) = job
            .services
            .backend
            .as_deref()
            .filter(|_| job.stores_result)
        else {
            return Ok(());
        };
        let result = Raw::encode(job.services.result_serializer, &meta).map_err(|cause| {
            UpdateError::Encode {
                id: job.id.clone(),
                cause,
            }
        })?;
        let document = job.document(parsed, result);
        backend.store(job.record(&document)).await?;
        Ok(())
    }

    /// Resolves when the soft time limit is reached. After a call of this method the worker aborts
    /// the task only at its hard limit; without one it aborts the task at the soft limit with
    /// `SoftTimeLimitExceeded`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn soft_time_limit(&self) {
        self.job.control.wait_soft_limit().await;
    }

    /// Resolves when the worker begins to shut down. A long task can then finish early, or fail
    /// with [`TaskError::retry`](crate::TaskError::retry) to continue in another worker. A task
    /// that ignores the shutdown runs until it ends or a cold shutdown aborts it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn shutdown_requested(&self) {
        self.job.control.shutdown_requested().await;
    }

    /// Returns whether the worker is shutting down, for blocking functions; see
    /// [`shutdown_requested`](Self::shutdown_requested).
    pub fn is_shutdown_requested(&self) -> bool {
        self.job.control.is_shutdown_requested()
    }

    /// Returns whether the soft time limit is reached, for blocking functions. After a call of this
    /// method the worker aborts the task only at its hard limit, as after
    /// [`soft_time_limit`](Self::soft_time_limit).
    pub fn is_soft_time_limit_reached(&self) -> bool {
        self.job.control.subscribe_soft_limit();
        self.job.control.is_soft_limit_reached()
    }

    fn text(&self, pick: for<'h> fn(TaskHeaders<'h>) -> Option<Cow<'h, str>>) -> Option<String> {
        pick(self.job.headers().ok()?).map(Cow::into_owned)
    }

    pub(crate) fn new(job: Arc<Job>, state: Arc<S>) -> Self {
        Self { job, state }
    }

    pub(crate) fn job(&self) -> &Job {
        &self.job
    }
}

impl<S> Clone for Context<S> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.job), Arc::clone(&self.state))
    }
}

impl<S> fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("task", &self.job.task)
            .field("id", &self.job.id)
            .finish_non_exhaustive()
    }
}
