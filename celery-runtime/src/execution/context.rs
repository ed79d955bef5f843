//! What a running task knows about itself: [`Context`].

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use celery_protocol::{
    Accept, DecodeError, DeliveryInfo, Headers, Map, Message, Payload, Properties, Raw,
    ResultDocument, ResultTree, Serializer, State, TaskHeaders, Value,
};
use serde::Serialize;
use tokio::sync::Notify;

use crate::boundary::{Record, ResultBackend, ServiceError, Store};
use crate::client::Client;
use crate::execution::blocking::BlockingPool;
use crate::execution::failed::FailureContext;
use crate::execution::registry::Registry;

/// Passed to handlers that take it as their first argument: the task's ids,
/// its message, the application's state, and ways to report and retry.
///
/// Cloning is cheap. A clone that outlives the task still answers, but what it
/// reports then is not waited for by anybody.
pub struct Context<S = ()> {
    job: Arc<Job>,
    state: Arc<S>,
}

/// A progress report that was not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The state's name is one that the worker sets itself.
    #[error("cannot report state {0} from inside a task: the worker sets it")]
    Reserved(String),
    /// The value cannot be written by the result serializer.
    #[error("cannot write the progress of task {id}: {cause}")]
    Encode {
        /// The task's id.
        id: String,
        /// What the serializer says.
        cause: celery_protocol::EncodeError,
    },
    /// The result backend failed.
    #[error(transparent)]
    Backend(#[from] ServiceError),
}

impl<S> Context<S> {
    /// The id of this task.
    pub fn id(&self) -> &str {
        &self.job.id
    }

    /// The name that the task is registered under.
    pub fn task(&self) -> &str {
        &self.job.task
    }

    /// How often it was retried before this run.
    pub fn retries(&self) -> u32 {
        self.job.retries
    }

    /// The application's state, as given to
    /// [`Tasks::with_state`](crate::Tasks::with_state).
    pub fn state(&self) -> &S {
        &self.state
    }

    /// The id of the first task of the workflow.
    pub fn root_id(&self) -> Option<String> {
        self.text(|headers| headers.root_id)
    }

    /// The id of the task that sent this one.
    pub fn parent_id(&self) -> Option<String> {
        self.text(|headers| headers.parent_id)
    }

    /// The id of the group that it belongs to.
    pub fn group_id(&self) -> Option<String> {
        self.text(|headers| headers.group)
    }

    /// All headers of the message.
    ///
    /// # Errors
    ///
    /// When a header has a type that Celery does not give it.
    pub fn headers(&self) -> Result<TaskHeaders<'_>, DecodeError> {
        self.job.headers()
    }

    /// A header of the message that Celery does not define, such as one from
    /// the sender's `headers` option.
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

    /// All headers of the message that Celery does not define: those from the
    /// sender's `headers` option.
    pub fn custom_headers(&self) -> Map {
        let headers = self.job.headers();
        let extra = headers.map(|headers| headers.extra).unwrap_or_default();
        let values = extra.into_iter().filter_map(|(name, value)| {
            let value = value.to_value().ok()?;
            Some((name.into_owned(), value))
        });
        values.collect()
    }

    /// What the transport was told about the message, `app_id` and others that
    /// a sender may have set among `extra`.
    pub fn properties(&self) -> &Properties {
        &self.job.message.properties
    }

    /// The priority of the message, if it has one.
    pub fn priority(&self) -> Option<u8> {
        self.job.message.properties.priority
    }

    /// The time before which the task was not to be run, if there was one.
    pub fn eta(&self) -> Option<SystemTime> {
        self.job.headers().ok()?.eta_time().ok()?
    }

    /// The time after which the task is not to be run, if there is one.
    pub fn expires(&self) -> Option<SystemTime> {
        self.job.headers().ok()?.expires_time().ok()?
    }

    /// The soft and the hard time limit of this run, from its message, from
    /// remote control, from the declaration or from the configuration.
    pub fn time_limits(&self) -> (Option<Duration>, Option<Duration>) {
        (self.job.soft_limit, self.job.hard_limit)
    }

    /// Exchange, routing key and flags with which the message arrived.
    pub fn delivery_info(&self) -> &DeliveryInfo {
        &self.job.message.properties.delivery_info
    }

    /// Whether the broker handed the message out before, so that the task may
    /// have run already.
    pub fn is_redelivered(&self) -> bool {
        self.job.redelivered
    }

    /// The name of the worker.
    pub fn hostname(&self) -> &str {
        &self.job.services.hostname
    }

    /// Reports a state of the task's own, such as `PROGRESS`, with any value;
    /// readers see it as `state` and `info` until the next one. Without a
    /// result backend, or when results are ignored, nothing happens.
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

    /// Resolves when the soft time limit is reached. A task that has called
    /// this finishes on its own terms until the hard limit; any other is ended
    /// at the soft limit with `SoftTimeLimitExceeded`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn soft_time_limit(&self) {
        self.job.control.wait().await;
    }

    /// Resolves when the worker was told to stop. A task that takes long can
    /// bring its work to a good end then, or fail with
    /// [`TaskError::retry`](crate::TaskError::retry) and go on elsewhere; one
    /// that does not heed it goes on, and is ended by a cold stop.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn shutdown_requested(&self) {
        self.job.control.stopped().await;
    }

    /// Whether the worker was told to stop, for blocking functions: see
    /// [`shutdown_requested`](Self::shutdown_requested).
    pub fn is_stopping(&self) -> bool {
        self.job.control.is_stopped()
    }

    /// Whether the soft time limit is reached, for blocking functions: like
    /// [`soft_time_limit`](Self::soft_time_limit), asking once is listening.
    pub fn is_soft_time_limit_reached(&self) -> bool {
        self.job.control.listen();
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

/// What all tasks of a worker share.
#[derive(Debug)]
pub(crate) struct WorkerContext {
    /// What the fleet agrees on.
    pub(crate) store: Option<Arc<dyn Store>>,
    pub(crate) backend: Option<Arc<dyn ResultBackend>>,
    pub(crate) hostname: String,
    pub(crate) accept: Accept,
    /// Most bytes that a compressed body may unpack to.
    pub(crate) body_limit: usize,
    pub(crate) result_serializer: Serializer,
    /// Whether documents carry name, arguments and worker (`result_extended`).
    pub(crate) result_extended: bool,
    /// Threads for blocking tasks.
    pub(crate) blocking: BlockingPool,
    /// What tasks send with.
    pub(crate) client: Client,
    /// For tasks that call others in place.
    pub(crate) registry: Arc<Registry>,
    /// Between two looks at a chord that nobody counts.
    pub(crate) chord_retry_interval: Duration,
}

/// One run of one task: what its handler, the driver and the report share.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) task: Arc<str>,
    pub(crate) retries: u32,
    pub(crate) redelivered: bool,
    pub(crate) stores_result: bool,
    /// Whether the value is needed by the backend or by what follows the task.
    pub(crate) wants_value: bool,
    pub(crate) soft_limit: Option<Duration>,
    pub(crate) hard_limit: Option<Duration>,
    /// In the form of protocol 2, whichever it came in.
    pub(crate) message: Message,
    /// The message without its compression, once [`payload`](Self::payload) has decompressed it.
    pub(crate) uncompressed: OnceLock<Message>,
    pub(crate) services: Arc<WorkerContext>,
    pub(crate) control: TaskControl,
    /// What it has sent itself.
    pub(crate) children: Mutex<Vec<ResultTree>>,
    /// What it is told when it is an errback that is called in place.
    pub(crate) failure: Option<Arc<FailureContext>>,
}

impl Job {
    /// What it has sent itself so far.
    pub(crate) fn children(&self) -> MutexGuard<'_, Vec<ResultTree>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn headers(&self) -> Result<TaskHeaders<'_>, DecodeError> {
        headers_of(&self.message.headers, &self.id, &self.task)
    }

    /// Returns the decoded body of the message. A compressed body is decompressed once and then
    /// kept, at most [`WorkerContext::body_limit`] bytes, until the job is dropped.
    ///
    /// # Errors
    ///
    /// Fails if the worker does not accept the content type, or if the body is too large or cannot
    /// be decompressed.
    pub(crate) fn payload(&self) -> Result<Payload<'_>, DecodeError> {
        let WorkerContext {
            accept, body_limit, ..
        } = &*self.services;
        if let Some(message) = self.uncompressed.get() {
            return message.payload(accept, *body_limit);
        }
        let payload = self.message.payload(accept, *body_limit)?;
        // `Message::payload` borrows the bytes of a body that is not compressed.
        if payload.bytes().as_ptr() == self.message.body.as_ptr() {
            return Ok(payload);
        }
        let mut headers = self.message.headers.clone();
        headers.remove("compression")?;
        let body = payload.bytes().to_vec();
        let message = Message::new(headers, self.message.properties.clone(), body);
        self.uncompressed
            .get_or_init(|| message)
            .payload(accept, *body_limit)
    }

    /// An unfinished document of this task.
    pub(crate) fn document<'a>(&'a self, state: State, result: Raw<'a>) -> ResultDocument<'a> {
        ResultDocument::new(Cow::Borrowed(self.id.as_str()), state, result)
    }

    pub(crate) fn record<'a>(&'a self, document: &'a ResultDocument<'a>) -> Record<'a> {
        let properties = &self.message.properties;
        Record::new(document).reply(
            properties.reply_to.as_deref(),
            properties.correlation_id.as_deref(),
        )
    }
}

fn headers_of<'a>(
    headers: &'a Headers,
    id: &'a str,
    task: &'a str,
) -> Result<TaskHeaders<'a>, DecodeError> {
    // A job is only made from a message whose headers were read before.
    Ok(headers
        .task()?
        .unwrap_or_else(|| TaskHeaders::new(task, id)))
}

/// How the driver reaches into a running task.
#[derive(Debug, Default)]
pub(crate) struct TaskControl {
    listens: AtomicBool,
    soft_limit: OnceSignal,
    stop: OnceSignal,
    /// The first word of the task that it listens, for who passes that on.
    listening: Notify,
    /// The child process that runs the task; 0 where it runs in this one.
    pid: AtomicU32,
    /// What a child process is ended by; 0 is the usual way.
    signal: AtomicI32,
}

impl TaskControl {
    /// Tells the task that its soft limit is reached. Answers whether it
    /// listens; otherwise it has to be ended from outside.
    pub(crate) fn reach_soft_limit(&self) -> bool {
        self.soft_limit.ring();
        self.listens.load(Ordering::SeqCst)
    }

    /// Tells the task that the worker stops.
    pub(crate) fn announce_stop(&self) {
        self.stop.ring();
    }

    async fn wait(&self) {
        self.listen();
        self.soft_limit().await;
    }

    /// Resolves when the soft limit is reached. Unlike [`wait`](Self::wait) it
    /// does not count as listening.
    pub(crate) async fn soft_limit(&self) {
        self.soft_limit.wait().await;
    }

    fn is_stopped(&self) -> bool {
        self.stop.rung.load(Ordering::SeqCst)
    }

    /// Resolves when the worker stops.
    pub(crate) async fn stopped(&self) {
        self.stop.wait().await;
    }

    /// From now on the task ends on its own terms at its soft limit.
    pub(crate) fn listen(&self) {
        if !self.listens.swap(true, Ordering::SeqCst) {
            self.listening.notify_one();
        }
    }

    /// Resolves when the task listens. Of several waiters one is told.
    pub(crate) async fn listened(&self) {
        self.listening.notified().await;
    }

    fn is_soft_limit_reached(&self) -> bool {
        self.soft_limit.rung.load(Ordering::SeqCst)
    }

    /// The process that runs the task.
    pub(crate) fn pid(&self) -> u32 {
        match self.pid.load(Ordering::Relaxed) {
            0 => std::process::id(),
            pid => pid,
        }
    }

    pub(crate) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Chooses the signal by which an isolated task is ended when it is
    /// aborted from now on. Without one it is killed at once; a child process
    /// that survives its signal is killed soon after.
    pub(crate) fn set_signal(&self, signal: i32) {
        self.signal.store(signal, Ordering::Relaxed);
    }

    pub(crate) fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }
}

/// Rings once, for those who wait and those who come later.
#[derive(Debug, Default)]
struct OnceSignal {
    rung: AtomicBool,
    notify: Notify,
}

impl OnceSignal {
    fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
    }

    async fn wait(&self) {
        let notified = self.notify.notified();
        if !self.rung.load(Ordering::SeqCst) {
            notified.await;
        }
    }
}
