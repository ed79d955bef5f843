//! Clients and workers of Celery, and the traits of brokers and result backends.
//!
//! An [`App`] has a broker and perhaps a result backend. Its [`Client`] sends tasks
//! and reads results, its [`Worker`] runs tasks. This crate contains an in-memory
//! broker; Redis and RabbitMQ are crates of their own that implement [`Broker`] and
//! [`ResultBackend`]. Most programs use the crate `celery`, which builds an app from
//! URLs and re-exports this crate.
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
//! # What it does, and what it does not
//!
//! - It reads and writes the messages of Python Celery through the crate
//!   `celery-protocol`, so clients and workers of both languages share queues.
//! - A worker acknowledges a message before its task starts, or with late
//!   acknowledgement after its result is stored. It retries every transient error of
//!   broker and backend, and reconnects.
//! - Workflows (chains, groups, chords), retries, time limits, rate limits, unique
//!   tasks, revocation, remote control and events work as in Celery.
//! - It contains no network client: [`Broker`], [`ResultBackend`] and [`Store`] are
//!   the boundaries.
//! - It has no scheduler (Celery's beat).
//!
//! # Where to read on
//!
//! Start with [`App`] and [`Task`]. Implementers of a broker start with [`Broker`] and
//! the `conformance` module. The modules of the crate, from the bottom up:
//!
//! | module | content |
//! |---|---|
//! | [`mod@env`] | time, ids, random numbers, tasks and threads of this process |
//! | `boundary` | the traits [`Broker`], [`ResultBackend`], [`ChordStore`] and [`Store`] with their values |
//! | `logical_clock`, `backoff`, `hostname` | small values: Celery's clock, delays, the machine's name |
//! | `task` | declarations of tasks, their parameters and options |
//! | `routing`, `queues`, `config` | [`Config`], and the routes and queues made from it |
//! | [`memory`] | a broker, a result backend and a store inside this process |
//! | `conformance` | the test suite for implementations of the boundary traits |
//! | `canvas` | workflows: signatures, chains, groups and chords |
//! | `app` | [`App`], and the services that clients and workers share |
//! | `execution` | handlers of tasks, their [`Context`], and the registry [`Tasks`] |
//! | `client` | sending tasks and reading results |
//! | `control`, `events` | remote control of workers, and their events |
//! | `revocation` | durable revocations in the store |
//! | `worker` | consuming messages and running tasks |
//!
//! # Features
//!
//! No feature is on by default.
//!
//! - `msgpack`, `yaml`: these serializers, beside JSON.
//! - `zlib`, `bzip2`, `lzma`, `brotli`, `zstd`: these compressions of message bodies.
//! - `conformance`: the test suite for implementations of [`Broker`],
//!   [`ResultBackend`] and [`Store`].

#![cfg_attr(
    not(unix),
    allow(dead_code, reason = "isolated tasks run only on Unix")
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
    DeliveryOwner, DeliveryTag, Exchange, ExchangeKind, Mailbox, MemberResult, PriorityOrder,
    Publication, Queue, QueueEnd, ResultBackend, ResultRecord, ServiceError, ServiceErrorKind,
    Settled, Settlement, StalledChord, Store, Subscription, topic_matches,
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
