//! Services and settings that all tasks of one worker share: [`WorkerContext`].

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Accept, Serializer};

use crate::boundary::{ResultBackend, Store};
use crate::client::Client;
use crate::execution::blocking::BlockingPool;
use crate::execution::registry::Registry;

/// The services and settings of one worker, shared by all of its tasks.
#[derive(Debug)]
pub(crate) struct WorkerContext {
    /// The store shared with other workers and clients: locks and durable revocations.
    pub(crate) store: Option<Arc<dyn Store>>,
    pub(crate) backend: Option<Arc<dyn ResultBackend>>,
    pub(crate) hostname: String,
    pub(crate) accept: Accept,
    /// The maximum size of a message body after decompression, in bytes.
    pub(crate) body_limit: usize,
    pub(crate) result_serializer: Serializer,
    /// Whether result documents contain name, arguments and worker (`result_extended`).
    pub(crate) result_extended: bool,
    /// The threads of blocking tasks.
    pub(crate) blocking: BlockingPool,
    /// The client for everything that tasks send.
    pub(crate) client: Client,
    /// The tasks of the worker, for tasks that call others in place.
    pub(crate) registry: Arc<Registry>,
    /// The interval at which `celery.chord_unlock` polls a chord that the backend does not count.
    pub(crate) chord_retry_interval: Duration,
}
