//! The broker on real RabbitMQ servers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod conformance;
