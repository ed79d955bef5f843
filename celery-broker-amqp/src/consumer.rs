//! A consumer, which receives and settles deliveries on one channel.
//!
//! RabbitMQ pushes deliveries. The prefetch of a `basic.consume` is fixed when it
//! starts, so a change of the prefetch cancels it and starts another one.
//!
//! With a prefetch of 0, RabbitMQ pushes nothing that was not requested: ready
//! messages are fetched one by one with `basic.get`. Only if there is none does a
//! `basic.consume` start, with a prefetch of as many messages as were requested,
//! and it is cancelled with the first delivery. Each queue may push meanwhile. What
//! was not requested returns to its queue, unless it was returned before: quorum
//! queues count deliveries, so the consumer keeps it for the next `receive`. On quorum
//! queues with a small delivery limit it keeps all of them.
//!
//! Beside each task queue, the consumer reads its due queue (see [`delay`]).

mod inner;
mod local_delays;
mod move_due;
mod pending_frames;
mod receive;
mod receive_state;
mod settle;
mod unacked;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use celery_runtime::{
    BoxFuture, ConsumeOptions, Consumer, Delivery, Queue, ServiceError, ServiceErrorKind, Settled,
    Settlement,
};

use crate::connection::AmqpConnection;
use crate::declarer::Declarer;
use crate::delay;
use crate::error::ErrorContext;
use crate::shared::Shared;
use inner::{ConsumerInner, ReturnPath};
use receive::ConsumerOrder;

/// A consumer of one or more queues.
pub(crate) struct AmqpConsumer {
    inner: Arc<ConsumerInner>,
}

impl AmqpConsumer {
    /// Declares the queues and bindings for delays, opens a channel and starts to
    /// consume.
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        options: &ConsumeOptions,
    ) -> Result<Self, ServiceError> {
        let names: Vec<_> = options.queues.iter().map(|queue| &*queue.name).collect();
        let object = format!("queues {}", names.join(", "));
        let context = shared.context("consume", &object);
        let connection = shared.consuming.connection(context).await?;
        let return_paths = bind_deferred(&connection, &options.queues, context).await?;
        shared
            .bind_native_delays(&connection, &options.queues, context)
            .await?;
        let channel = connection.open_channel().await;
        let channel = channel.map_err(|error| context.wrap(error))?;
        let inner = ConsumerInner::new(shared, connection, channel, options, return_paths);
        let inner = Arc::new(inner);
        if options.prefetch > 0 {
            let mut state = inner.receiving.lock().await;
            inner
                .start_consuming(&mut state, options.prefetch, ConsumerOrder::RoundRobin)
                .await?;
        }
        // It ends when the consumer is closed or dropped.
        tokio::spawn(run_in_background(Arc::clone(&inner)));
        Ok(Self { inner })
    }
}

/// Declares the due queues, and returns for each task queue whether that succeeded. A
/// worker that may not declare them, or cannot for now, consumes its task queues all the
/// same.
async fn bind_deferred(
    connection: &AmqpConnection,
    queues: &[Queue],
    context: ErrorContext<'_>,
) -> Result<Vec<ReturnPath>, ServiceError> {
    let mut declarer = Declarer::new(connection, context);
    let mut paths = Vec::with_capacity(queues.len());
    let mut refusal = None;
    for queue in queues {
        paths.push(match delay::bind_deferred(&mut declarer, queue).await {
            Ok(()) => ReturnPath::Bound,
            Err(error)
                if error.kind() == ServiceErrorKind::TimedOut || !connection.is_connected() =>
            {
                return Err(error);
            }
            // The server refuses the request, for example because a node is down.
            Err(error) => {
                let is_transient = error.is_transient();
                refusal = refusal.or(Some(error));
                match is_transient {
                    true => ReturnPath::Unavailable,
                    false => ReturnPath::Refused,
                }
            }
        });
    }
    if let Some(error) = refusal {
        tracing::warn!(
            "consumer: delayed tasks wait in this worker and count towards its prefetch, since \
             their queues cannot be declared: {error}; a worker needs the permissions to \
             configure, write and read celery_due.* and celery_delayed_.*"
        );
    }
    Ok(paths)
}

/// Requeues what an interrupted consumer has not handed out, and moves due messages that
/// only other workers have room for. Ends with the consumer.
async fn run_in_background(inner: Arc<ConsumerInner>) {
    tokio::join!(inner.requeue_when_interrupted(), inner.move_periodically());
    inner.wait_for_finish().await;
    if let Err(error) = inner.finish().await {
        tracing::debug!("consumer: {error}");
    }
}

impl Consumer for AmqpConsumer {
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>> {
        Box::pin(self.inner.receive(max))
    }

    fn interrupt(&self) {
        self.inner.interrupt();
    }

    fn settle<'a>(
        &'a self,
        batch: &'a [Settlement],
    ) -> BoxFuture<'a, Vec<Result<Settled, ServiceError>>> {
        Box::pin(self.inner.settle(batch))
    }

    fn set_prefetch(&self, prefetch: u16) {
        self.inner.prefetch.store(prefetch, Ordering::SeqCst);
    }

    fn close(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(self.inner.finish())
    }
}

impl Drop for AmqpConsumer {
    fn drop(&mut self) {
        self.inner.request_finish();
    }
}

impl fmt::Debug for AmqpConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConsumer")
            .field("queues", &self.inner.queues)
            .field("prefetch", &self.inner.prefetch)
            .finish_non_exhaustive()
    }
}
