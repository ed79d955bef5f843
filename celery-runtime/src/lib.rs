//! Workers and clients of Celery, and the boundaries to brokers and result
//! backends.
//!
//! This crate knows no broker but the one in memory: Redis and RabbitMQ are
//! crates of their own that implement [`Broker`] and [`ResultBackend`]. Most
//! programs use the crate `celery`, which puts them together and re-exports
//! what is here. Start reading at [`App`] and [`Task`].
//!
//! ```
//! use celery_runtime::{App, Task, TaskError, Tasks};
//!
//! const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
//!
//! async fn add(x: i64, y: i64) -> Result<i64, TaskError> {
//!     Ok(x + y)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app = App::memory();
//! let worker = tokio::spawn(app.worker(Tasks::new().with(ADD, add)).run());
//! let sum = app.client().send(ADD, (2, 2)).await?;
//! assert_eq!(sum.get().await?, 4);
//! # worker.abort();
//! # Ok(())
//! # }
//! ```
//!
//! What is where:
//!
//! - `task`: declarations, handlers and their arguments;
//! - `client`: sending and reading results;
//! - `control`, `events`: asking and watching workers from outside;
//! - `worker`: the life of a delivery, as a pure state machine and its driver;
//! - `broker`, `backend`, `store`: the boundaries;
//! - `memory`: all three inside this process;
//! - `config`, `queues`, `routing`: settings.

#![cfg_attr(
    not(unix),
    allow(dead_code, reason = "what serves child processes, which are on Unix")
)]

mod app;
mod backoff;
mod boundary;
mod canvas;
mod client;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod control;
pub mod env;
mod events;
mod execution;
mod hostname;
mod logical_clock;
pub mod memory;
mod queues;
mod revocation;
mod routing;
mod task;
mod worker;

pub use app::{App, ForceSignal, shutdown_signal};
pub use backoff::{Backoff, RetryBackoff};
pub use boundary::{
    BackendCapabilities, Binding, BoxFuture, Broker, BrokerCapabilities, ChordClaim, ChordEnd,
    ChordMember, ChordResults, ChordStart, ChordStore, ConsumeOptions, Consumer, Content, Delivery,
    DeliveryTag, Exchange, ExchangeKind, Mailbox, MemberResult, PriorityOrder, Publication, Queue,
    QueueEnd, Record, ResultBackend, ServiceError, ServiceErrorKind, Settled, Settlement,
    StalledChord, Store, Subscription, topic_matches,
};
pub use canvas::{
    AcceptsResult, Canvas, CanvasError, Group, Ignored, Members, NoMissingArgs, PartialArgs,
    Signature, StampTarget, StampingVisitor, Then, group,
};
pub use celery_protocol::Event;
pub use client::{
    AnyResult, AsyncResult, Client, Completions, GroupResult, ResultError, SendError, Sendable,
    TaskFailure,
};
pub use config::{Config, ConfigError, OnUnknown, QueueType, TaskProtocol, url};
pub use control::{
    CommandError, Control, ControlCall, ControlError, ExchangeInfo, Inspect, PeerState,
    QueriedTask, QueueInfo, RegisteredTask, Replies, RequestInfo, ScheduledTask, Stats,
};
pub use env::{Clock, Now};
pub use events::{ClusterState, EventRates, EventStream, Events, TaskRecord, WorkerRecord};
pub use execution::{
    BlockingHandler, Context, FailedTask, Handler, RegistryError, Requeue, TaskError, Tasks,
    UpdateError,
};
pub use queues::QueueNotFound;
pub use routing::{Route, Routes};
pub use task::{
    ArgumentEncoder, ArgumentError, AutoRetry, BoundArguments, CallError, DynArgs, DynTask,
    EncodedArguments, Kwargs, Params, ParamsError, Task, TaskArgs, TaskOptions, Unique,
};
pub use worker::{ConnectionEvent, ForceShutdown, Worker, WorkerError, is_isolated_child};
