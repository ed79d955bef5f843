//! Broker, result backend and store inside this process.
//!
//! They are what an application embeds that needs no server, and what tests
//! run against: [`Faults`] switches failures on, and with tokio's paused clock
//! and [`Clock::tokio`](crate::Clock::tokio) days pass in no time. Messages
//! are kept as bytes, so that what works here works on the wire.

mod backend;
mod broker;
mod faults;
mod queues;
mod store;
mod subscription;

pub use backend::MemoryBackend;
pub use broker::MemoryBroker;
pub use faults::Faults;
pub use store::MemoryStore;
