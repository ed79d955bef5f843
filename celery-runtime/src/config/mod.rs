//! The configuration of an app: [`Config`].

mod files;
mod mailbox;
pub(crate) mod queues;
mod settings;
pub mod url;
mod wire_style;
mod worker;

use std::time::Duration;

use celery_protocol::{Accept, Compression, Serializer};
use serde_json::Map;

use crate::boundary::Queue;
use crate::routing::Routes;
use crate::task::TaskOptions;
use queues::{ListedQueue, QueueSettings};

pub use files::ConfigError;
pub use queues::QueueType;

pub(crate) use crate::config::mailbox::{ControlSettings, EventSettings};
pub(crate) use wire_style::WireStyle;
pub(crate) use worker::WorkerSettings;

/// The settings of clients and workers.
///
/// A later value replaces an earlier one, so a program typically reads a file
/// ([`from_file`](Self::from_file)), then the environment
/// ([`with_env`](Self::with_env)), then calls the methods. Names and defaults are
/// Celery's where Celery has the setting.
///
/// ```
/// use celery_runtime::Config;
///
/// let config = Config::new()
///     .broker_url("redis://localhost")
///     .result_backend("redis://localhost/1")
///     .set("worker_prefetch_multiplier", 1)?
///     .set("task_routes", serde_json::json!({"images.*": "images"}))?;
/// # Ok::<(), celery_runtime::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) broker_url: Option<String>,
    pub(crate) broker_transport_options: Map<String, serde_json::Value>,
    pub(crate) broker_connection_max_retries: Option<u32>,
    pub(crate) broker_connection_timeout: Duration,
    pub(crate) broker_heartbeat: Option<Duration>,
    pub(crate) broker_login_method: Option<String>,
    pub(crate) broker_use_ssl: Option<Map<String, serde_json::Value>>,
    pub(crate) broker_native_delayed_delivery_queue_type: QueueType,
    pub(crate) control: ControlSettings,
    pub(crate) events: EventSettings,
    pub(crate) result_backend: Option<String>,
    pub(crate) result_backend_transport_options: Map<String, serde_json::Value>,
    pub(crate) result_expires: Option<Duration>,
    /// The lifetime of results if `None`; unlimited if zero.
    pub(crate) result_chord_expires: Option<Duration>,
    /// The time limit for reading the results of a chord's header; none if `None`.
    pub(crate) result_chord_join_timeout: Option<Duration>,
    /// The interval in which the task `celery.chord_unlock` polls a header.
    pub(crate) result_chord_retry_interval: Duration,
    pub(crate) result_extended: bool,
    pub(crate) result_persistent: bool,
    pub(crate) result_serializer: Serializer,
    pub(crate) accept_content: Accept,
    pub(crate) task_serializer: Serializer,
    pub(crate) task_compression: Option<Compression>,
    pub(crate) task_protocol: TaskProtocol,
    pub(crate) task_default_delivery_mode: u8,
    pub(crate) queues: QueueSettings,
    pub(crate) task_routes: Routes,
    /// The defaults of all tasks.
    pub(crate) task: TaskOptions,
    pub(crate) worker_concurrency: usize,
    pub(crate) worker_prefetch_multiplier: usize,
    pub(crate) worker_direct: bool,
    pub(crate) worker_hostname: Option<String>,
    pub(crate) worker_max_memory_per_child: Option<u32>,
    pub(crate) worker_max_tasks_per_child: Option<u32>,
    pub(crate) on_unknown: OnUnknown,
    pub(crate) operation_timeout: Duration,
    pub(crate) publish_wait: Duration,
    pub(crate) shutdown_grace: Duration,
    pub(crate) body_limit: usize,
    pub(crate) worker: WorkerSettings,
    /// Overrides `task.acks_on_failure` for failures other than timeouts.
    pub(crate) task_acks_on_failure: Option<bool>,
    pub(crate) task_send_sent_event: bool,
    /// Whether the errbacks of a chord's body are also those of its header.
    pub(crate) task_allow_error_cb_on_chord_header: bool,
}

/// The layout of task messages that are sent. Both layouts are always read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "Celery has two")]
pub enum TaskProtocol {
    /// Protocol 1, with all fields in the body.
    V1,
    /// Protocol 2, the default since Celery 4.
    V2,
}

/// The treatment of a message that a worker cannot run, because its task is not
/// registered or the message cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnknown {
    /// Moves the message to the queue `<queue>.dead` with the reason in its headers,
    /// and stores FAILURE `NotRegistered` if it has a task id.
    Keep,
    /// Redelivers the message after this delay, for another worker.
    Requeue(Duration),
    /// Rejects the message, as Celery does: the broker drops or dead-letters it.
    Reject,
}

impl Config {
    /// Returns Celery's defaults, without a broker.
    pub fn new() -> Self {
        Self {
            broker_url: None,
            broker_transport_options: Map::new(),
            broker_connection_max_retries: Some(100),
            broker_connection_timeout: Duration::from_secs(4),
            broker_heartbeat: Some(Duration::from_secs(10)),
            broker_login_method: None,
            broker_use_ssl: None,
            broker_native_delayed_delivery_queue_type: QueueType::Quorum,
            control: ControlSettings::default(),
            events: EventSettings::default(),
            result_backend: None,
            result_backend_transport_options: Map::new(),
            result_expires: Some(Duration::from_secs(86_400)),
            result_chord_expires: None,
            result_chord_join_timeout: Some(Duration::from_secs(3)),
            result_chord_retry_interval: Duration::from_secs(1),
            result_extended: false,
            result_persistent: false,
            result_serializer: Serializer::Json,
            accept_content: Accept::json(),
            task_serializer: Serializer::Json,
            task_compression: None,
            task_protocol: TaskProtocol::V2,
            task_default_delivery_mode: 2,
            queues: QueueSettings::default(),
            task_routes: Routes::new(),
            task: TaskOptions::default(),
            worker_concurrency: default_concurrency(),
            worker_prefetch_multiplier: 4,
            worker_direct: false,
            worker_hostname: None,
            worker_max_memory_per_child: None,
            worker_max_tasks_per_child: None,
            on_unknown: OnUnknown::Keep,
            operation_timeout: Duration::from_secs(5),
            publish_wait: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(10),
            body_limit: 64 << 20,
            worker: WorkerSettings::default(),
            task_acks_on_failure: None,
            task_send_sent_event: false,
            task_allow_error_cb_on_chord_header: false,
        }
    }

    /// Sets the URL of the broker: `redis://…`, `amqp://…`, `memory://`.
    #[must_use]
    pub fn broker_url(self, url: impl Into<String>) -> Self {
        Self {
            broker_url: Some(url.into()),
            ..self
        }
    }

    /// Sets the URL of the result backend. Without one, results are not stored.
    #[must_use]
    pub fn result_backend(self, url: impl Into<String>) -> Self {
        Self {
            result_backend: Some(url.into()),
            ..self
        }
    }

    /// Sets the time limit of a client's call to broker or result backend, retries
    /// included, and of each such call in a worker; 5 s by default.
    #[must_use]
    pub fn operation_timeout(self, timeout: Duration) -> Self {
        Self {
            operation_timeout: timeout,
            ..self
        }
    }

    /// Sets the longest time that a send waits while 1000 messages of its client are in
    /// flight for the same queue; 60 s by default. The [operation
    /// timeout](Self::operation_timeout) begins after that.
    #[must_use]
    pub fn publish_wait(self, wait: Duration) -> Self {
        Self {
            publish_wait: wait,
            ..self
        }
    }

    /// Sets the treatment of messages that a worker cannot run;
    /// [`OnUnknown::Keep`] by default.
    #[must_use]
    pub fn on_unknown(self, on_unknown: OnUnknown) -> Self {
        Self { on_unknown, ..self }
    }

    /// Sets the serializers that are read; only JSON by default.
    #[must_use]
    pub fn accept_content(self, accept: Accept) -> Self {
        Self {
            accept_content: accept,
            ..self
        }
    }

    /// Sets the configured queues, which a worker consumes by default. Other queues
    /// are created when a task names them, unless `task_create_missing_queues` is
    /// off.
    ///
    /// The setting `task_queues` is a list of entries with a `name`, or a map from
    /// names to entries; a name alone is an entry without further keys. An entry has
    /// these keys of Celery and kombu:
    ///
    /// | key | default |
    /// |---|---|
    /// | `exchange` | `task_default_exchange`, of `task_default_exchange_type` |
    /// | `exchange_type` | `direct`; only with `exchange` |
    /// | `routing_key` | the name |
    /// | `binding_arguments` | none |
    /// | `bindings` | none; each has `exchange`, `exchange_type`, `routing_key`, `arguments` |
    /// | `durable`, `auto_delete` | `true`, `false` |
    /// | `queue_arguments` | none |
    /// | `expires`, `message_ttl` | never; in seconds |
    /// | `max_length`, `max_length_bytes` | no limit |
    /// | `max_priority` | `task_queue_max_priority` |
    /// | `broadcast` | `false`; `true` is Celery's `Broadcast(name)`: [`Queue::broadcast`] |
    ///
    /// ```
    /// use celery_runtime::{Config, Exchange, Queue};
    ///
    /// let in_code = Config::new().task_queues([
    ///     Queue::new("mail"),
    ///     Queue::new("logs").bound_to(Exchange::topic("events"), "log.#"),
    /// ]);
    /// let as_a_setting = Config::new().set("task_queues", serde_json::json!({
    ///     "mail": {"exchange": "mail"},
    ///     "logs": {"exchange": "events", "exchange_type": "topic", "routing_key": "log.#"},
    ///     "news": {"broadcast": true},
    /// }))?;
    /// # let _ = (in_code, as_a_setting);
    /// # Ok::<(), celery_runtime::ConfigError>(())
    /// ```
    #[must_use]
    pub fn task_queues(mut self, queues: impl IntoIterator<Item = impl Into<Queue>>) -> Self {
        self.queues.listed = queues.into_iter().map(ListedQueue::new).collect();
        self
    }

    /// Sets the queue of tasks without a route; `celery` by default.
    #[must_use]
    pub fn task_default_queue(mut self, name: impl Into<String>) -> Self {
        self.queues.default_queue = name.into();
        self
    }

    /// Sets the routes from tasks to queues; none by default.
    #[must_use]
    pub fn task_routes(self, routes: Routes) -> Self {
        Self {
            task_routes: routes,
            ..self
        }
    }

    /// Returns the URL of the broker.
    ///
    /// # Errors
    ///
    /// When none is set.
    pub fn require_broker_url(&self) -> Result<&str, ConfigError> {
        self.broker_url
            .as_deref()
            .ok_or_else(|| ConfigError::missing("broker_url"))
    }

    /// Returns the URL of the result backend, if one is set.
    pub fn result_backend_url(&self) -> Option<&str> {
        self.result_backend.as_deref()
    }

    /// Returns `broker_transport_options`; empty by default.
    pub fn broker_transport_options(&self) -> &Map<String, serde_json::Value> {
        &self.broker_transport_options
    }

    /// Returns `result_backend_transport_options`; empty by default.
    pub fn result_backend_transport_options(&self) -> &Map<String, serde_json::Value> {
        &self.result_backend_transport_options
    }

    /// Returns the time after which results expire; never if `None`. One day by
    /// default.
    pub fn result_expires(&self) -> Option<Duration> {
        self.result_expires
    }

    /// Returns the encoding of canvases in messages.
    pub(crate) fn wire_style(&self) -> WireStyle {
        WireStyle {
            linked: self.task_protocol == TaskProtocol::V1,
            header_errbacks: self.task_allow_error_cb_on_chord_header,
        }
    }

    /// Returns the time after which the state of a chord expires: that of results if
    /// `None`, which is the default, and never if zero.
    pub fn result_chord_expires(&self) -> Option<Duration> {
        self.result_chord_expires
    }

    /// Returns the serializer of results; JSON by default.
    pub fn result_serializer(&self) -> Serializer {
        self.result_serializer
    }

    /// Returns whether `rpc://` results survive a restart of the broker; `false` by
    /// default.
    pub fn result_persistent(&self) -> bool {
        self.result_persistent
    }

    /// Returns the timeout of an attempt to connect to the broker; 4 s by default.
    pub fn broker_connection_timeout(&self) -> Duration {
        self.broker_connection_timeout
    }

    /// Returns the interval of AMQP heartbeats; none are sent if `None`. 10 s by
    /// default instead of Celery's 120 s, so that a silent broker is detected within
    /// 20 s. The broker may ask for a shorter interval.
    pub fn broker_heartbeat(&self) -> Option<Duration> {
        self.broker_heartbeat
    }

    /// Returns the mechanism for logging in to the broker (`PLAIN`, `AMQPLAIN`,
    /// `EXTERNAL`), if set; otherwise the URL decides.
    pub fn broker_login_method(&self) -> Option<&str> {
        self.broker_login_method.as_deref()
    }

    /// Returns the TLS options of the broker (`ca_certs`, `certfile`, `keyfile`, …). An
    /// empty map is TLS with its defaults; with `None` the URL decides.
    pub fn broker_use_ssl(&self) -> Option<&Map<String, serde_json::Value>> {
        self.broker_use_ssl.as_ref()
    }

    /// Returns the resident memory in KiB above which a child process of isolated
    /// tasks is replaced after its task; no limit if `None`, which is the default.
    pub fn worker_max_memory_per_child(&self) -> Option<u32> {
        self.worker_max_memory_per_child
    }

    /// Returns the number of isolated tasks after which a child process is replaced;
    /// no limit if `None`, which is the default.
    pub fn worker_max_tasks_per_child(&self) -> Option<u32> {
        self.worker_max_tasks_per_child
    }

    /// Returns the type of the queues in which RabbitMQ keeps messages that are not
    /// due (Celery's native delayed delivery); quorum by default.
    pub fn broker_native_delayed_delivery_queue_type(&self) -> QueueType {
        self.broker_native_delayed_delivery_queue_type
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl From<&str> for Config {
    fn from(broker_url: &str) -> Self {
        Self::new().broker_url(broker_url)
    }
}

impl From<String> for Config {
    fn from(broker_url: String) -> Self {
        Self::new().broker_url(broker_url)
    }
}

fn default_concurrency() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
