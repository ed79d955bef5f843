//! Connects and reconnects the consumer: [`Supervisor`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::boundary::{BoxFuture, Broker, ConsumeOptions, Consumer, ServiceError};
use crate::env;

/// A change of the worker's connection to its broker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The worker consumes its queues.
    Connected,
    /// The connection is lost. The worker reconnects if the error is transient.
    Lost(ServiceError),
}

/// Called with every [`ConnectionEvent`].
pub(crate) type ConnectionHook = Arc<dyn Fn(&ConnectionEvent) + Send + Sync>;

/// The time after which a consumer that has received nothing counts as one that works.
const PROBATION: Duration = Duration::from_secs(60);

/// Creates consumers, with exponential back-off between attempts.
///
/// A consumer may start although its queues cannot be consumed, and fail when it
/// receives. The back-off therefore continues until a consumer has received a delivery
/// or has lasted for a minute.
#[derive(Clone)]
pub(crate) struct Supervisor {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) options: ConsumeOptions,
    /// Retries before the worker gives up; unlimited if `None`.
    pub(crate) max_retries: Option<u32>,
    pub(crate) hook: Option<ConnectionHook>,
    pub(crate) failures: Failures,
}

/// The attempts since a consumer worked: those that failed, and consumers that failed.
/// Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures(Arc<AtomicU32>);

impl Failures {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Returns how long to wait before the next attempt.
    fn delay(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            failures => Backoff::CONNECTION.delay(failures - 1, env::random()),
        }
    }
}

impl Supervisor {
    /// Declares all queues and consumes them; retries transient errors.
    ///
    /// # Errors
    ///
    /// An error that is not transient, or the last one after `max_retries`.
    pub(crate) fn connect(&self) -> BoxFuture<'static, Result<Arc<dyn Consumer>, ServiceError>> {
        let supervisor = self.clone();
        Box::pin(async move {
            let mut attempt = 0;
            tokio::time::sleep(supervisor.failures.delay()).await;
            loop {
                let error = match supervisor.attempt().await {
                    Ok(consumer) => {
                        supervisor.report(&ConnectionEvent::Connected);
                        return Ok(consumer);
                    }
                    Err(error) => error,
                };
                let exhausted = supervisor.max_retries.is_some_and(|limit| attempt >= limit);
                if !error.is_transient() || exhausted {
                    return Err(error);
                }
                supervisor.failures.add();
                let delay = supervisor.failures.delay();
                tracing::warn!("{error}; reconnecting in {delay:?}");
                tokio::time::sleep(delay).await;
                attempt += 1;
            }
        })
    }

    /// Ends the back-off: a consumer has received a delivery.
    pub(crate) fn received(&self) {
        self.failures.reset();
    }

    /// Reports that the connection of a consumer that was made at `connected_at` is
    /// lost.
    pub(crate) fn lost(&self, error: ServiceError, connected_at: Instant, has_received: bool) {
        tracing::warn!("connection to the broker lost: {error}");
        if connected_at.elapsed() >= PROBATION {
            self.failures.reset();
        } else if !has_received {
            self.failures.add();
        }
        self.report(&ConnectionEvent::Lost(error));
    }

    /// Makes one attempt to declare and consume the queues.
    pub(crate) async fn attempt(&self) -> Result<Arc<dyn Consumer>, ServiceError> {
        for queue in &self.options.queues {
            self.broker.declare(queue).await?;
        }
        self.broker.consume(&self.options).await
    }

    fn report(&self, event: &ConnectionEvent) {
        if let Some(hook) = &self.hook {
            hook(event);
        }
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor")
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}
