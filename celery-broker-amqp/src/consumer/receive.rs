//! Receiving deliveries.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use celery_runtime::{Delivery, ServiceError, ServiceErrorKind};
use futures_util::future::{FusedFuture, FutureExt, try_join_all};
use futures_util::stream::StreamExt;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::FieldTable;

use super::inner::ConsumerInner;
use super::receive_state::{ConsumerEvent, ReceiveState, consumer_stream};
use super::unacked::UnackedDelivery;
use crate::sync::lock;

impl ConsumerInner {
    /// Takes at least one delivery, unless it is interrupted.
    pub(super) async fn receive(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
        let mut state = self.state.lock().await;
        if self.is_interrupted() {
            return Ok(Vec::new());
        }
        let prefetch = self.prefetch.load(Ordering::SeqCst);
        if state.credit != prefetch {
            self.stop_consuming(&mut state).await?;
        }
        if prefetch > 0 && state.credit == 0 {
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

    /// Waits for the next delivery. Without a prefetch the server may push just
    /// what was asked for, and only for this time.
    async fn wait_for_delivery(
        &self,
        state: &mut ReceiveState,
        prefetch: u16,
        max: usize,
    ) -> Result<(), ServiceError> {
        if prefetch == 0 {
            let share = (max / self.queues.len().max(1)).max(1);
            let credit = u16::try_from(share).unwrap_or(u16::MAX);
            self.start_consuming(state, credit).await?;
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

    /// Moves what is here already to the buffer.
    fn buffer_ready(&self, state: &mut ReceiveState, max: usize) -> Result<(), ServiceError> {
        while state.buffer.len() < max {
            if let Some(tag) = self.due_queue.pop_due() {
                state.buffer.extend(self.redelivery(tag));
                continue;
            }
            match state.streams.next().now_or_never() {
                Some(Some(push)) => {
                    let delivery = self.handle_event(push)?;
                    state.buffer.push_back(delivery);
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Fetches what is there, each queue in its turn.
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

    /// Lets the server push, up to `credit` of each queue.
    pub(super) async fn start_consuming(
        &self,
        state: &mut ReceiveState,
        credit: u16,
    ) -> Result<(), ServiceError> {
        let context = self.context("consume");
        let qos = self.channel.basic_qos(credit, BasicQosOptions::default());
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
        state.credit = credit;
        Ok(())
    }

    /// Stops the server from pushing; what it pushed until then is taken.
    async fn stop_consuming(&self, state: &mut ReceiveState) -> Result<(), ServiceError> {
        let context = self.context("end the consumption of");
        let cancels = state.consumers.drain(..).map(|tag| {
            self.channel
                .basic_cancel(tag, BasicCancelOptions::default())
        });
        let cancelled = self.connection.await_response(try_join_all(cancels)).await;
        cancelled.map_err(|error| context.wrap(error))?;
        state.credit = 0;
        // A cancelled consumer's stream ends by itself.
        while let Some(push) = state.streams.next().await {
            match push {
                ConsumerEvent::Ended(_, None) => {}
                push => {
                    let delivery = self.handle_event(push)?;
                    state.buffer.push_back(delivery);
                }
            }
        }
        Ok(())
    }

    /// Gives back what was taken and not asked for.
    async fn requeue_buffered(&self, state: &mut ReceiveState) -> Result<(), ServiceError> {
        let tags: Vec<_> = state
            .buffer
            .drain(..)
            .filter_map(|delivery| self.resolve_tag(&delivery.tag))
            .collect();
        let _turn = self.settling.lock().await;
        self.reject(tags.into_iter().map(|tag| (tag, true)).collect())
            .await
    }

    /// Refuses deliveries, or gives them back where the flag says so.
    pub(super) async fn reject(&self, mut tags: Vec<(u64, bool)>) -> Result<(), ServiceError> {
        tags.sort_unstable();
        let rejections = tags.iter().map(|&(tag, requeue)| {
            self.channel
                .basic_reject(tag, BasicRejectOptions { requeue })
        });
        let numbers = tags.iter().map(|&(tag, _)| tag).collect();
        self.write(rejections, numbers).await
    }

    /// Writes settlements. From the moment at which lapin has them they will go
    /// out, whether or not somebody waits for that, and a second time would be
    /// one too many for the server.
    pub(super) async fn write<F>(
        &self,
        frames: impl Iterator<Item = F>,
        tags: Vec<u64>,
    ) -> Result<(), ServiceError>
    where
        F: Future<Output = lapin::Result<()>> + Send,
    {
        let mut frames: Vec<_> = frames.map(|frame| Box::pin(frame).fuse()).collect();
        let given = poll_fn(|context| {
            let polled = frames.iter_mut().map(|frame| frame.poll_unpin(context));
            // All of them, also after one that failed.
            let polled: Vec<_> = polled.collect();
            Poll::Ready(polled.into_iter().find_map(|poll| match poll {
                Poll::Ready(Err(error)) => Some(error),
                _ => None,
            }))
        });
        let failure = given.await;
        lock(&self.unacked).remove(tags);
        let rest = frames.into_iter().filter(|frame| !frame.is_terminated());
        let written = match failure {
            None => self
                .connection
                .await_response(try_join_all(rest))
                .await
                .map(drop),
            Some(error) => Err(error),
        };
        written.map_err(|error| self.context("settle messages of").wrap(error))
    }

    fn handle_event(&self, push: ConsumerEvent) -> Result<Delivery, ServiceError> {
        match push {
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
                        "RabbitMQ ended the consumption, as when a queue is deleted",
                    ),
                })
            }
        }
    }

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

/// Others shall have what this consumer will not hand out any more.
pub(super) async fn requeue_when_interrupted(inner: Arc<ConsumerInner>) {
    inner.wait_for_interrupt().await;
    let mut state = inner.state.lock().await;
    let given_back = match inner.stop_consuming(&mut state).await {
        Ok(()) => inner.requeue_buffered(&mut state).await,
        Err(error) => Err(error),
    };
    if let Err(error) = given_back {
        // They go back with the channel then.
        tracing::debug!("{error}");
    }
}
