//! The one reconnect loop of the workspace.

use std::fmt;
use std::sync::Arc;

use crate::backoff::Backoff;
use crate::boundary::{BoxFuture, Broker, ConsumeOptions, Consumer, ServiceError};
use crate::env;

/// The worker's connection to its broker changed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// Deliveries can be received.
    Connected,
    /// They cannot; the worker keeps trying while this passes.
    Lost(ServiceError),
}

/// Called with every [`ConnectionEvent`].
pub(crate) type ConnectionHook = Arc<dyn Fn(&ConnectionEvent) + Send + Sync>;

/// Makes consumers, as long as it takes.
#[derive(Clone)]
pub(crate) struct Supervisor {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) options: ConsumeOptions,
    /// Attempts before the worker gives up; without end where `None`.
    pub(crate) max_retries: Option<u32>,
    pub(crate) hook: Option<ConnectionHook>,
}

impl Supervisor {
    /// A consumer of all queues, which are declared anew first.
    ///
    /// # Errors
    ///
    /// What cannot pass by itself, or what did not within `max_retries`.
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
                let exhausted = supervisor.max_retries.is_some_and(|most| attempt >= most);
                if !error.is_transient() || exhausted {
                    return Err(error);
                }
                let delay = Backoff::CONNECTION.delay(attempt, env::random());
                tracing::warn!("{error}; trying again in {delay:?}");
                tokio::time::sleep(delay).await;
                attempt += 1;
            }
        })
    }

    /// Notes that the consumer broke.
    pub(crate) fn lost(&self, error: ServiceError) {
        tracing::warn!("the connection to the broker is lost: {error}");
        self.report(&ConnectionEvent::Lost(error));
    }

    /// One attempt to do the same.
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
