//! Tests of the broker against real RabbitMQ servers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod conformance;
mod connection;
mod consumer;
mod delay;
mod due;
mod faults;
mod publish;
mod refusals;
#[cfg(feature = "rpc")]
mod rpc;
mod sends;
mod settle;
mod subscription;
mod support;
mod surplus;
mod topology;
