//! The signals that shut a worker down: [`shutdown_signal`].

use crate::boundary::BoxFuture;
use crate::worker::ForceShutdown;

/// Waits for the first shutdown signal: SIGTERM, SIGINT or SIGQUIT on Unix, Ctrl-C
/// elsewhere. Returns a [`ForceShutdown`] that waits for the next ones.
///
/// The first signal starts a warm shutdown, the second one forces a cold shutdown,
/// and a third one ends the time that `worker_soft_shutdown_timeout` gives to
/// running tasks. SIGQUIT forces a cold shutdown at once, and so does SIGTERM where
/// the environment variable `REMAP_SIGTERM` is `SIGQUIT`, as in Celery.
///
/// # Cancel safety
///
/// Cancel safe. Once the future has been polled, the signals do not end the
/// process any more.
pub async fn shutdown_signal() -> ForceSignal {
    let mut signals = Signals::new();
    let is_cold = signals.next().await == ShutdownKind::Cold;
    ForceSignal { signals, is_cold }
}

/// Waits for another shutdown signal; made by [`shutdown_signal`].
#[derive(Debug)]
pub struct ForceSignal {
    signals: Signals,
    /// Whether the first signal already asked for a cold shutdown.
    is_cold: bool,
}

impl ForceShutdown for ForceSignal {
    fn requested(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if !std::mem::take(&mut self.is_cold) {
                self.signals.next().await;
            }
        })
    }
}

/// The kind of shutdown that a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShutdownKind {
    Warm,
    Cold,
}

#[cfg(unix)]
#[derive(Debug)]
struct Signals {
    streams: Option<[tokio::signal::unix::Signal; 3]>,
    on_terminate: ShutdownKind,
}

#[cfg(unix)]
impl Signals {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};

        let all = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::quit(),
        ];
        let subscribe = || -> std::io::Result<_> {
            let [terminate, interrupt, quit] = all.map(signal);
            Ok([terminate?, interrupt?, quit?])
        };
        let streams = subscribe()
            .inspect_err(|error| {
                tracing::error!(
                    "cannot listen for signals, so only killing ends this process: {error}"
                );
            })
            .ok();
        let remapped = std::env::var_os("REMAP_SIGTERM").is_some_and(|to| to == "SIGQUIT");
        Self {
            streams,
            on_terminate: if remapped {
                ShutdownKind::Cold
            } else {
                ShutdownKind::Warm
            },
        }
    }

    async fn next(&mut self) -> ShutdownKind {
        match &mut self.streams {
            Some([terminate, interrupt, quit]) => {
                tokio::select! {
                    biased;
                    _ = quit.recv() => ShutdownKind::Cold,
                    _ = terminate.recv() => self.on_terminate,
                    _ = interrupt.recv() => ShutdownKind::Warm,
                }
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(not(unix))]
#[derive(Debug)]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> Self {
        Self
    }

    async fn next(&mut self) -> ShutdownKind {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::error!("cannot listen for Ctrl-C: {error}");
            std::future::pending().await
        }
        ShutdownKind::Warm
    }
}
