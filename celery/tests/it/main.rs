//! The facade on real servers: Redis and RabbitMQ, Python Celery on the other
//! side.
//!
//! A story that takes a `Setup` is told on several servers, as the table at
//! the top of its file says. Python programs and the Python app with more
//! tasks are in `python/`.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../examples/chords/work.rs"]
mod chord_work;
#[path = "../../examples/handlers/mod.rs"]
mod handlers;
#[path = "../../examples/tasks/mod.rs"]
mod tasks;
#[cfg(target_os = "linux")]
#[path = "../../examples/isolated/work.rs"]
mod work;

#[cfg_attr(
    not(feature = "rpc"),
    allow(dead_code, unused_imports, reason = "some of it is for RabbitMQ alone")
)]
mod support;

#[cfg(feature = "amqp")]
mod acknowledgement;
#[cfg(feature = "amqp")]
mod aio_celery;
mod canvas_client;
mod chords;
mod control;
mod control_client;
#[cfg(feature = "amqp")]
mod delayed_delivery;
mod errors;
#[cfg(feature = "amqp")]
mod events_client;
mod examples;
mod faults;
#[cfg(feature = "amqp")]
mod faults_amqp;
#[cfg(target_os = "linux")]
mod group_memory;
#[cfg(target_os = "linux")]
mod isolated;
mod malformed_control;
mod malformed_messages;
mod mixed_workers;
mod monitoring_tools;
mod prefetch;
mod python_calls_rust;
#[cfg(feature = "amqp")]
mod queues;
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
