//! Worker and client on the in-memory broker, with tokio's clock paused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

mod canvas;
mod control;
mod counting_broker;
mod durable;
mod groups;
mod limits;
mod links;
mod memory;
mod outages;
mod queues;
mod remote_control;
mod results;
mod retries;
mod shapes;
mod shutdown;
mod unique;
mod unknown;
mod worker;
