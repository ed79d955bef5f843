//! The Redis result backend of Celery for Rust, and a shared store for workers.
//!
//! Keys, documents and channels are those of Celery's own Redis backend, so
//! clients and workers in Python and Rust read each other's results. Most
//! programs use the crate `celery`, which builds the backend from a URL.
//!
//! ```
//! use celery_backend_redis::RedisBackend;
//! use celery_broker_redis::RedisOptions;
//!
//! let options = RedisOptions::parse("redis://localhost/1", &serde_json::Map::new())?;
//! let backend = RedisBackend::new(options);
//! # let _ = backend;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The types to read first are [`RedisBackend`] and [`RedisStore`].
//!
#![doc = include_str!("permissions.md")]

mod backend;
mod chord;
mod keys;
mod listen;
mod store;

pub use backend::RedisBackend;
pub use store::RedisStore;
