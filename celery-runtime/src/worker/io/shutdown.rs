//! The stages of a shutdown: [`ForceShutdown`].

use std::future::Future;
use std::sync::Arc;

use crate::boundary::BoxFuture;
use crate::worker::delivery::event::Stop;

/// Escalates a warm shutdown to a cold one.
///
/// The future passed to [`Worker::run_until`](crate::Worker::run_until) starts the
/// warm shutdown when it resolves, and its output implements this trait. `()`
/// never escalates; the output of
/// [`shutdown_signal`](crate::shutdown_signal) escalates at the next signal.
pub trait ForceShutdown: Send + 'static {
    /// Resolves when running tasks must be terminated.
    ///
    /// The worker calls it again after that. It then resolves a second time to
    /// skip the rest of `worker_soft_shutdown_timeout`.
    ///
    /// # Cancel safety
    ///
    /// Implementations must be cancel safe: the worker drops the future and calls
    /// the method again while it waits for other events.
    fn requested(&mut self) -> BoxFuture<'_, ()>;
}

impl ForceShutdown for () {
    fn requested(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// Returns a function that makes the future of each shutdown stage in order: warm
/// when `shutdown` resolves, then cold each time its [`ForceShutdown`] resolves.
pub(crate) fn shutdown_stages<F, S>(shutdown: F) -> impl FnMut() -> BoxFuture<'static, Stop>
where
    F: Future<Output = S> + Send + 'static,
    S: ForceShutdown,
{
    let force: Arc<tokio::sync::Mutex<Option<S>>> = Arc::default();
    let mut shutdown = Some(shutdown);
    move || {
        let force = Arc::clone(&force);
        match shutdown.take() {
            Some(shutdown) => Box::pin(async move {
                let output = shutdown.await;
                *force.lock().await = Some(output);
                Stop::Warm
            }),
            None => Box::pin(async move {
                match &mut *force.lock().await {
                    Some(force) => force.requested().await,
                    None => std::future::pending().await,
                }
                Stop::Cold
            }),
        }
    }
}
