//! Broker, result backend and store inside this process.
//!
//! They are what an application embeds that needs no server, and what tests
//! run against: [`Faults`] switches failures on, and with tokio's paused clock
//! and [`Clock::tokio`](crate::env::Clock::tokio) days pass in no time. Messages
//! are kept as bytes, so that what works here works on the wire.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod backend;
mod broker;
mod chords;
mod faults;
mod queues;
mod store;
mod subscription;

pub use backend::MemoryBackend;
pub use broker::MemoryBroker;
pub use faults::Faults;
pub use store::MemoryStore;

/// No code panics while it holds one of these locks; if it did, what they guard
/// would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
