//! When a worker stops, and how long it is waited for: [`ForceShutdown`].

use std::future::Future;
use std::sync::Arc;

use crate::boundary::BoxFuture;
use crate::worker::delivery::event::Stop;

/// The future given to [`Worker::run_until`](crate::Worker::run_until) may resolve to this: a way to
/// lose patience with a warm stop. `()` has endless patience; what
/// [`shutdown_signal`](crate::shutdown_signal) gives loses it at the second
/// signal.
pub trait ForceShutdown: Send + 'static {
    /// Resolves when running tasks shall be ended. Called again after that: it
    /// resolves once more when not even `worker_soft_shutdown_timeout` shall be
    /// waited for.
    ///
    /// # Cancel safety
    ///
    /// Dropped and called again when something else ends the wait.
    fn requested(&mut self) -> BoxFuture<'_, ()>;
}

impl ForceShutdown for () {
    fn requested(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// Gives the driver one stop after the other: warm when `shutdown` resolves,
/// cold whenever the patience that it resolved to is lost.
pub(crate) fn stops<F, P>(shutdown: F) -> impl FnMut() -> BoxFuture<'static, Stop>
where
    F: Future<Output = P> + Send + 'static,
    P: ForceShutdown,
{
    let patience: Arc<tokio::sync::Mutex<Option<P>>> = Arc::default();
    let mut shutdown = Some(shutdown);
    move || {
        let patience = Arc::clone(&patience);
        match shutdown.take() {
            Some(shutdown) => Box::pin(async move {
                let given = shutdown.await;
                *patience.lock().await = Some(given);
                Stop::Warm
            }),
            None => Box::pin(async move {
                match &mut *patience.lock().await {
                    Some(patience) => patience.requested().await,
                    None => std::future::pending().await,
                }
                Stop::Cold
            }),
        }
    }
}
