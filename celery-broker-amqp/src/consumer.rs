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

mod due_queue;
mod inner;
mod pending_frames;
mod receive;
mod receive_state;
mod settle;
mod takeover;
mod unacked;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use celery_runtime::{
    BoxFuture, ConsumeOptions, Consumer, Delivery, Queue, ServiceError, Settled, Settlement,
};
use tokio::task::JoinHandle;

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
    /// Runs `run_in_background`. Aborted on drop.
    background_task: JoinHandle<()>,
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
        let channel = connection
            .open_channel()
            .await
            .map_err(|error| context.wrap(error))?;
        let inner = ConsumerInner::new(shared, connection, channel, options, return_paths);
        let inner = Arc::new(inner);
        if options.prefetch > 0 {
            let mut state = inner.receiving.lock().await;
            inner
                .start_consuming(&mut state, options.prefetch, ConsumerOrder::RoundRobin)
                .await?;
        }
        let background_task = tokio::spawn(run_in_background(Arc::clone(&inner)));
        Ok(Self {
            inner,
            background_task,
        })
    }
}

/// Declares the due queues, and returns for each task queue whether that succeeded. A
/// worker without the permission consumes its task queues all the same.
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
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                refusal = refusal.or(Some(error));
                ReturnPath::Refused
            }
        });
    }
    if let Some(error) = refusal {
        tracing::warn!(
            "consumer: delayed tasks wait in this worker and count towards its prefetch, since \
             their queues cannot be declared: {error}; grant the user the permissions to \
             configure, write and read celery_due.* and celery_delayed_.*"
        );
    }
    Ok(paths)
}

/// Moves due messages that other workers have room for, until the consumer is
/// interrupted. Then requeues what it has not handed out, and moves the due messages
/// that nobody reads any more.
async fn run_in_background(inner: Arc<ConsumerInner>) {
    tokio::select! {
        biased;
        () = inner.wait_for_interrupt() => {}
        () = inner.move_to_other_workers() => {}
    }
    inner.stop().await;
}

impl Consumer for AmqpConsumer {
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>> {
        Box::pin(self.inner.receive(max))
    }

    fn interrupt(&self) {
        self.inner.interrupted.store(true, Ordering::SeqCst);
        self.inner.interrupt.notify_waiters();
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
        Box::pin(async move {
            self.interrupt();
            self.inner.stop().await;
            let context = self.inner.context("stop consuming from");
            // RabbitMQ requeues the unsettled deliveries of a closed channel.
            let closed = self.inner.channel.close(200, "".into());
            match self.inner.connection.await_response(closed).await {
                Err(error) if self.inner.channel.status().connected() => Err(context.wrap(error)),
                _ => Ok(()),
            }
        })
    }
}

impl Drop for AmqpConsumer {
    fn drop(&mut self) {
        self.background_task.abort();
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
