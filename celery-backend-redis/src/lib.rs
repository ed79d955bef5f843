//! The Redis result backend of Celery for Rust, and a store for what a fleet of
//! workers must agree on.
//!
//! Keys, documents and announcements are those of Celery's own Redis backend,
//! so that clients and workers in Python and in Rust read each other's results.
//! Most programs use the crate `celery`, which makes the backend from a URL.
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

mod backend;
mod chord;
mod keys;
mod listen;
mod store;

pub use backend::RedisBackend;
pub use store::RedisStore;
