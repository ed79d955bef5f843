//! The RabbitMQ broker of Celery for Rust.
