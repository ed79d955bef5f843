//! A broker, a result backend and a store inside this process.
//!
//! They serve applications without a server, and tests: [`Faults`] makes them
//! fail, and with tokio's paused clock and [`Clock::tokio`](crate::env::Clock::tokio)
//! a test controls the time. Headers of messages and result documents are encoded
//! as they are on a server, so that encoding errors show up here too.

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

/// Locks a mutex. The code under these locks does not panic, and leaves the data
/// consistent if it did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
