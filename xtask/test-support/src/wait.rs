//! Bounded waits: [`within`], [`eventually`] and [`wait_until`].

use std::time::Duration;

/// The time after which a wait fails the test. No test waits for it to pass.
pub const TIMEOUT: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits for a future for at most [`TIMEOUT`].
///
/// # Panics
///
/// Panics with `what` when the time is over.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {TIMEOUT:?}: {what}"),
    }
}

/// Polls `look` until it returns a value, for at most [`TIMEOUT`].
///
/// # Panics
///
/// Panics with `what` when the time is over.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    within(what, found).await
}

/// Polls `condition` until it is true, for at most [`TIMEOUT`].
///
/// # Panics
///
/// Panics with `what` when the time is over.
pub async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually(what, async || condition().await.then_some(())).await;
}

/// Runs blocking code on a thread of its own and waits for its result. A panic
/// in it continues in the caller.
///
/// # Panics
///
/// Panics when `work` panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
