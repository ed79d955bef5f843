//! The Redis result backend of Celery for Rust.
