//! Connects and reconnects the consumer: [`Supervisor`].

use std::fmt;
use std::sync::Arc;

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

/// Creates consumers, with exponential back-off between attempts.
#[derive(Clone)]
pub(crate) struct Supervisor {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) options: ConsumeOptions,
    /// Retries before the worker gives up; unlimited if `None`.
    pub(crate) max_retries: Option<u32>,
    pub(crate) hook: Option<ConnectionHook>,
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
                let delay = Backoff::CONNECTION.delay(attempt, env::random());
                tracing::warn!("{error}; reconnecting in {delay:?}");
                tokio::time::sleep(delay).await;
                attempt += 1;
            }
        })
    }

    /// Reports that the consumer's connection is lost.
    pub(crate) fn lost(&self, error: ServiceError) {
        tracing::warn!("connection to the broker lost: {error}");
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
