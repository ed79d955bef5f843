//! The RabbitMQ broker of Celery for Rust.
//!
//! It is empty so far: the crate holds the name and the place in the layering.
//! A URL of RabbitMQ is refused by `celery::connect` with a sentence that says
//! so.
