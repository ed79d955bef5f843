//! The environment of a process: time, ids, random numbers, tasks and threads.
//!
//! All code of the runtime and of the Redis crates reads the clock, draws ids
//! and random numbers and spawns tasks through this module, so that a test can
//! replace the environment in one place. `cargo xtask ci` checks that no other
//! file calls `Uuid::new_v4`, `fastrand`, `SystemTime::now` or `tokio::spawn`.

mod clock;

use std::future::Future;
use std::io;
use std::time::SystemTime;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::Instant;

pub use clock::{Clock, Now};

pub(crate) use clock::{later, unix_seconds};

/// Returns a random UUID (version 4) in its hyphenated form, as Celery writes
/// ids of tasks, groups and replies.
pub fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Returns a random UUID (version 4) as 32 hexadecimal digits.
pub fn uuid_simple() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Returns a random number in `0.0..1.0`, for jitter.
pub fn random() -> f64 {
    fastrand::f64()
}

/// Returns the wall-clock time of this process.
///
/// A component that owns a [`Clock`] reads that instead.
pub fn system_time() -> SystemTime {
    SystemTime::now()
}

/// Returns the monotonic time of tokio's clock, which a test can pause.
pub fn instant() -> Instant {
    Instant::now()
}

/// Spawns a task on the current tokio runtime.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(task)
}

/// Aborts a spawned task when it is dropped.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(AbortHandle);

impl<T> From<JoinHandle<T>> for AbortOnDrop {
    fn from(task: JoinHandle<T>) -> Self {
        Self(task.abort_handle())
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Spawns a task into a set, which aborts it when the set is dropped.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn spawn_in<T, F>(set: &mut JoinSet<T>, task: F) -> AbortHandle
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    set.spawn(task)
}

/// Spawns a task on this runtime, from code that may run outside of one.
pub fn spawn_on<F>(runtime: &Handle, task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    runtime.spawn(task)
}

/// Runs a function on tokio's pool of blocking threads.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn spawn_blocking<T, F>(function: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    tokio::task::spawn_blocking(function)
}

/// Starts an operating-system thread with a name.
///
/// # Errors
///
/// When the operating system does not start the thread.
pub fn spawn_thread<T, F>(name: &str, function: F) -> io::Result<std::thread::JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(function)
}
