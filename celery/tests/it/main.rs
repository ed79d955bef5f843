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
mod aio_celery;
mod canvas_client;
mod chords;
mod control;
mod control_client;
#[cfg(target_os = "linux")]
mod crowds;
#[cfg(feature = "amqp")]
mod delays;
mod errors;
#[cfg(feature = "amqp")]
mod events_client;
mod examples;
mod fairness;
mod faults;
#[cfg(feature = "amqp")]
mod faults_amqp;
#[cfg(all(feature = "msgpack", feature = "yaml", feature = "compression"))]
mod formats;
mod hostile;
mod hostile_control;
#[cfg(target_os = "linux")]
mod isolated;
mod likeness;
mod mixed;
mod peers;
mod python_calls_rust;
#[cfg(feature = "amqp")]
mod queues;
mod results;
#[cfg(feature = "rpc")]
mod rpc;
mod rust_calls_python;
#[cfg(feature = "amqp")]
mod settling;
mod shutdown;
mod unique;
mod watchers;
