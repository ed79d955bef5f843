//! Receiving deliveries.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use celery_runtime::{Delivery, ServiceError, ServiceErrorKind};
use futures_util::future::{FutureExt, try_join_all};
use futures_util::stream::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::FieldTable;

use super::inner::{ConsumerInner, TagState};
use super::receive_state::{ConsumerEvent, ReceiveState, consumer_stream};
use super::unacked::UnackedDelivery;
use crate::sync::lock;

impl ConsumerInner {
    /// Waits for deliveries and returns at most `max`, or none if the consumer is
    /// interrupted.
    pub(super) async fn receive(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
        let mut state = self.receiving.lock().await;
        if self.is_interrupted() {
            return Ok(Vec::new());
        }
        let prefetch = self.prefetch.load(Ordering::SeqCst);
        if state.prefetch != prefetch {
            self.stop_consuming(&mut state).await?;
        }
        if prefetch > 0 && state.prefetch == 0 {
            self.start_consuming(&mut state, prefetch).await?;
        }
        self.buffer_ready(&mut state, max)?;
        if state.buffer.is_empty() && prefetch == 0 {
            self.fetch(&mut state, max).await?;
        }
        if state.buffer.is_empty() {
            self.wait_for_delivery(&mut state, prefetch, max).await?;
        }
        let count = state.buffer.len().min(max);
        let taken = state.buffer.drain(..count).collect();
        if prefetch == 0 {
            self.requeue_buffered(&mut state).await?;
        }
        Ok(taken)
    }

    /// Waits for the next delivery or for an interrupt. Without a prefetch the
    /// server may push at most the requested number, and only during this wait.
    async fn wait_for_delivery(
        &self,
        state: &mut ReceiveState,
        prefetch: u16,
        max: usize,
    ) -> Result<(), ServiceError> {
        if prefetch == 0 {
            let per_queue = (max / self.queues.len().max(1)).max(1);
            let limit = u16::try_from(per_queue).unwrap_or(u16::MAX);
            self.start_consuming(state, limit).await?;
        }
        // The order cannot starve deferred deliveries: `buffer_ready` takes those
        // that are due before anything that the server pushed.
        tokio::select! {
            biased;
            () = self.wait_for_interrupt() => {}
            Some(event) = state.streams.next() => {
                let delivery = self.handle_event(event)?;
                state.buffer.push_back(delivery);
            }
            () = self.due_queue.wait_due() => {}
        }
        self.buffer_ready(state, max)?;
        if prefetch == 0 {
            self.stop_consuming(state).await?;
        }
        Ok(())
    }

    /// Moves deliveries that are available to the buffer: first the deferred ones
    /// that are due, then those that the server has pushed.
    fn buffer_ready(&self, state: &mut ReceiveState, max: usize) -> Result<(), ServiceError> {
        while state.buffer.len() < max {
            if let Some(tag) = self.due_queue.pop_due() {
                state.buffer.extend(self.redelivery(tag));
                continue;
            }
            match state.streams.next().now_or_never() {
                Some(Some(event)) => {
                    let delivery = self.handle_event(event)?;
                    state.buffer.push_back(delivery);
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Fetches ready messages with `basic.get`, from all queues in round-robin
    /// order.
    async fn fetch(&self, state: &mut ReceiveState, max: usize) -> Result<(), ServiceError> {
        let context = self.context("fetch from");
        let mut empty = 0;
        while state.buffer.len() < max && empty < self.queues.len() && !self.is_interrupted() {
            let queue_index = state.next_queue % self.queues.len();
            state.next_queue = queue_index + 1;
            let name = self.short_string(&self.queues[queue_index].0)?;
            let fetched = self.channel.basic_get(name, BasicGetOptions::default());
            let fetched = self.connection.await_response(fetched).await;
            match fetched.map_err(|error| context.wrap(error))? {
                Some(message) => {
                    empty = 0;
                    let delivery = self.track(queue_index, message.delivery);
                    state.buffer.push_back(delivery);
                }
                None => empty += 1,
            }
        }
        Ok(())
    }

    /// Starts a consumer on each queue, with this prefetch for each of them.
    pub(super) async fn start_consuming(
        &self,
        state: &mut ReceiveState,
        prefetch: u16,
    ) -> Result<(), ServiceError> {
        let context = self.context("consume");
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions::default());
        let qos = self.connection.await_response(qos).await;
        qos.map_err(|error| context.wrap(error))?;
        for (queue_index, (name, _)) in self.queues.iter().enumerate() {
            let consuming = self.channel.basic_consume(
                self.short_string(name)?,
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            let consuming = self.connection.await_response(consuming).await;
            let consumer = consuming.map_err(|error| context.wrap(error))?;
            state.consumers.push(consumer.tag());
            state.streams.push(consumer_stream(queue_index, consumer));
        }
        state.prefetch = prefetch;
        Ok(())
    }

    /// Cancels the consumers and buffers the deliveries that they have pushed.
    async fn stop_consuming(&self, state: &mut ReceiveState) -> Result<(), ServiceError> {
        let context = self.context("stop consuming from");
        let cancels = state.consumers.drain(..).map(|tag| {
            self.channel
                .basic_cancel(tag, BasicCancelOptions::default())
        });
        let cancelled = self.connection.await_response(try_join_all(cancels)).await;
        cancelled.map_err(|error| context.wrap(error))?;
        state.prefetch = 0;
        // The stream of a cancelled consumer ends after its last delivery.
        while let Some(event) = state.streams.next().await {
            match event {
                ConsumerEvent::Ended(_, None) => {}
                event => {
                    let delivery = self.handle_event(event)?;
                    state.buffer.push_back(delivery);
                }
            }
        }
        Ok(())
    }

    /// Requeues the buffered deliveries.
    async fn requeue_buffered(&self, state: &mut ReceiveState) -> Result<(), ServiceError> {
        let unsettled = |delivery: Delivery| match self.tag_state(&delivery.tag) {
            TagState::Unsettled(tag) => Some((tag, true)),
            TagState::Pending(..) | TagState::Gone => None,
        };
        let returned = state.buffer.drain(..).filter_map(unsettled).collect();
        let frames = self.queue_frames(returned, Vec::new());
        self.await_writes(&frames).await;
        frames.iter().try_for_each(|frame| self.written(frame))
    }

    /// Records a delivery, or returns the error that ended the consumer.
    fn handle_event(&self, event: ConsumerEvent) -> Result<Delivery, ServiceError> {
        match event {
            ConsumerEvent::Delivery(queue_index, delivery) => {
                Ok(self.track(queue_index, *delivery))
            }
            ConsumerEvent::Ended(queue_index, error) => {
                let object = format!("queue {}", self.queues[queue_index].0);
                let context = self.shared.context("consume", &object);
                Err(match error {
                    Some(error) => context.wrap(error),
                    None => context.error(
                        ServiceErrorKind::Disconnected,
                        "RabbitMQ cancelled the consumer, for example because the queue was deleted",
                    ),
                })
            }
        }
    }

    /// Records a delivery as unsettled.
    fn track(&self, queue_index: usize, delivery: lapin::message::Delivery) -> Delivery {
        let tag = delivery.delivery_tag;
        let unacked = UnackedDelivery {
            queue_index,
            exchange: delivery.exchange,
            routing_key: delivery.routing_key,
            redelivered: delivery.redelivered,
            properties: delivery.properties,
            body: Bytes::from(delivery.data),
        };
        let delivery = self.to_delivery(tag, &unacked);
        lock(&self.unacked).insert(tag, unacked);
        delivery
    }
}

/// Requeues the deliveries that an interrupted consumer does not hand out, so that
/// other consumers receive them.
pub(super) async fn requeue_when_interrupted(inner: Arc<ConsumerInner>) {
    inner.wait_for_interrupt().await;
    let mut state = inner.receiving.lock().await;
    let requeued = match inner.stop_consuming(&mut state).await {
        Ok(()) => inner.requeue_buffered(&mut state).await,
        Err(error) => Err(error),
    };
    if let Err(error) = requeued {
        // RabbitMQ requeues them when the channel closes.
        tracing::debug!("consumer/requeue: {error}");
    }
}
