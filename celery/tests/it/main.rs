//! Tests of the facade on Redis and RabbitMQ, with Python Celery on the other
//! side.
//!
//! A test that takes a `Setup` runs on several brokers, listed in the
//! `for_each_broker!` table at the top of its file. The Python programs and the
//! app of the Python workers are in `python/`.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../examples/chords/work.rs"]
mod chord_work;
#[path = "../../examples/handlers/mod.rs"]
mod handlers;
#[cfg(target_os = "linux")]
#[path = "../../examples/isolated/work.rs"]
mod isolated_work;
#[path = "../../examples/tasks/mod.rs"]
mod tasks;

#[cfg_attr(
    not(feature = "rpc"),
    allow(
        dead_code,
        unused_imports,
        reason = "some helpers are for RabbitMQ only"
    )
)]
mod support;

#[cfg(feature = "amqp")]
mod acknowledgement;
#[cfg(feature = "amqp")]
mod aio_celery;
mod canvas_client;
mod chords;
#[cfg(feature = "amqp")]
mod connections;
mod control;
#[cfg(feature = "amqp")]
mod delayed_delivery;
mod errors;
#[cfg(feature = "amqp")]
mod events_client;
mod examples;
mod faults;
#[cfg(target_os = "linux")]
mod group_memory;
#[cfg(target_os = "linux")]
mod isolated;
mod malformed_messages;
mod mixed_workers;
mod monitoring_tools;
mod prefetch;
mod python_calls_rust;
#[cfg(feature = "amqp")]
mod queues;
mod redis_permissions;
mod results;
mod revocation;
#[cfg(feature = "rpc")]
mod rpc;
mod rust_calls_python;
#[cfg(all(feature = "msgpack", feature = "yaml", feature = "compression"))]
mod serialization;
mod shutdown;
mod unique;
mod worker_parity;
