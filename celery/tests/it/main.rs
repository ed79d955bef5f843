//! The facade on real servers: Redis as broker and result backend, Python
//! Celery on the other side.
//!
//! Python programs and the Python app with more tasks are in `python/`.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../examples/handlers/mod.rs"]
mod handlers;
#[path = "../../examples/tasks/mod.rs"]
mod tasks;

mod support;

mod errors;
mod faults;
#[cfg(all(feature = "msgpack", feature = "yaml", feature = "compression"))]
mod formats;
mod hostile;
mod mixed;
mod python_calls_rust;
mod results;
mod rust_calls_python;
mod shutdown;
