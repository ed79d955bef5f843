//! The Redis broker of Celery for Rust.
