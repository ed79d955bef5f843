//! A distributed task queue with the wire protocol of Python's Celery: workers and
//! clients in Rust share queues and results with workers and clients in Python.
//!
//! ```no_run
//! use celery::{Task, TaskError, Tasks};
//!
//! const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
//!
//! async fn add(x: i64, y: i64) -> Result<i64, TaskError> {
//!     Ok(x + y)
//! }
//!
//! #[tokio::main]
//! async fn main() -> std::process::ExitCode {
//!     celery::exit(work().await)
//! }
//!
//! async fn work() -> Result<(), celery::Error> {
//!     let app = celery::connect("redis://localhost")?;
//!     let worker = app.worker(Tasks::new().with(ADD, add));
//!     Ok(worker.run_until(celery::shutdown_signal()).await?)
//! }
//! ```
//!
//! The types to read first are [`Task`] and [`App`], then [`Config`].
//!
//! This crate is a facade: `celery-protocol` has the wire format without I/O,
//! `celery-runtime` the worker and the client, and each broker and result backend
//! is a crate of its own behind one of these features:
//!
//! | feature | default | enables |
//! |---|---|---|
//! | `redis` | yes | broker and result backend on Redis |
//! | `amqp` | | the RabbitMQ broker |
//! | `rpc` | | results over RabbitMQ, `rpc://` |
//! | `msgpack`, `yaml` | | serializers besides JSON |
//! | `zlib`, `bzip2`, `lzma`, `brotli`, `zstd` | | content compressions; `compression` enables all of them |
//! | `tls-rustls`, `tls-native-tls` | | TLS for the enabled brokers and backends |
//! | `full` | | all features except `tls-native-tls` |
//!
//! Broker and result backend in memory ([`App::memory`]) need no feature.
//!
//! Periodic tasks are not supported yet.

mod connect;
mod exit;

/// Compiles the code blocks of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub use celery_protocol::{
    Accept, BigInt, Compression, DecodeError, EncodeError, Exception, Extended, ExtendedKind, Map,
    Raw, ResultDocument, ResultTree, Serializer, State, Value,
};
pub use celery_runtime::memory;
pub use celery_runtime::{
    AnyResult, App, AsyncResult, AutoRetry, Binding, BlockingHandler, Canvas, CanvasError, Client,
    Clock, ClusterState, CommandError, Completions, Config, ConfigError, ConnectionEvent, Context,
    Control, ControlCall, ControlError, DynArgs, DynTask, Event, EventRates, EventStream, Events,
    Exchange, ExchangeInfo, ExchangeKind, FailedTask, ForceShutdown, ForceSignal, Group,
    GroupResult, Handler, Ignored, Inspect, Kwargs, OnUnknown, PeerState, QueriedTask, Queue,
    QueueInfo, QueueNotFound, QueueType, RegisteredTask, RegistryError, Replies, RequestInfo,
    Requeue, ResultError, RetryBackoff, Route, Routes, ScheduledTask, SendError, Sendable,
    ServiceError, ServiceErrorKind, Signature, StampTarget, StampingVisitor, Stats, Store, Task,
    TaskArgs, TaskError, TaskFailure, TaskOptions, TaskProtocol, TaskRecord, Tasks, Unique,
    UpdateError, Worker, WorkerError, WorkerRecord, group, is_isolated_child, shutdown_signal,
};
pub use connect::{Error, connect};
pub use exit::exit;
