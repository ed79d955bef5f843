//! Receiving deliveries.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use celery_runtime::{Delivery, Queue, ServiceError, ServiceErrorKind};
use futures_util::future::{FutureExt, TryFutureExt, join_all, try_join_all};
use futures_util::stream::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use uuid::Uuid;

use super::inner::{ConsumerInner, TagState};
use super::receive_state::{ConsumerEvent, ReceiveState, consumer_stream};
use super::unacked::UnackedDelivery;
use crate::error::reply_code;
use crate::sync::lock;

/// How often a message may have been delivered before a surplus delivery of it stays
/// in the consumer. Quorum queues count each return towards their delivery limit, 20
/// by default, of which the task's own redeliveries need most. Messages of classic
/// queues have no count.
const MAX_RETURNS: u32 = 2;

/// The pause before an interrupted consumer tries again to requeue its deliveries.
const REQUEUE_PAUSE: Duration = Duration::from_secs(1);

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
            self.start_consuming(&mut state, prefetch, ConsumerOrder::RoundRobin)
                .await?;
        }
        self.buffer_ready(&mut state, max)?;
        if state.buffer.is_empty() && prefetch == 0 {
            self.fetch(&mut state, max).await?;
        }
        if state.buffer.is_empty() {
            self.wait_for_delivery(&mut state, prefetch, max).await?;
        }
        let count = state.buffer.len().min(max);
        let surplus = state.buffer.split_off(count);
        let taken = std::mem::replace(&mut state.buffer, surplus);
        if prefetch == 0
            && let Err(error) = self.return_surplus(&mut state).await
        {
            // What was taken would be held until the channel closes. A broken channel
            // fails the next `receive`.
            tracing::debug!("consumer/receive: {error}");
        }
        Ok(taken.into())
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
            let per_queue = (max / self.sources.len().max(1)).max(1);
            let limit = u16::try_from(per_queue).unwrap_or(u16::MAX);
            self.start_consuming(state, limit, ConsumerOrder::Random)
                .await?;
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
            () = self.local_delays.wait_due() => {}
        }
        self.buffer_ready(state, max)?;
        if prefetch == 0 {
            self.stop_surplus(state).await?;
        }
        Ok(())
    }

    /// Moves deliveries that are available to the buffer: first the deferred ones
    /// that are due, then those that the server has pushed.
    fn buffer_ready(&self, state: &mut ReceiveState, max: usize) -> Result<(), ServiceError> {
        while state.buffer.len() < max {
            if let Some(tag) = self.local_delays.pop_due() {
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
        while state.buffer.len() < max && empty < self.sources.len() && !self.is_interrupted() {
            let source = state.next_source % self.sources.len();
            state.next_source = source + 1;
            let name = self.short_string(&self.sources[source].name)?;
            let fetched = self.channel.basic_get(name, BasicGetOptions::default());
            let fetched = self.connection.await_response(fetched).await;
            match fetched.map_err(|error| context.wrap(error))? {
                Some(message) => {
                    empty = 0;
                    let delivery = self.track(source, message.delivery);
                    state.buffer.push_back(delivery);
                }
                None => empty += 1,
            }
        }
        Ok(())
    }

    /// Starts a consumer on each queue that has none, with this prefetch for each of
    /// them. All are requested at once: what the server pushes meanwhile on the other
    /// queues is surplus.
    pub(super) async fn start_consuming(
        &self,
        state: &mut ReceiveState,
        prefetch: u16,
        order: ConsumerOrder,
    ) -> Result<(), ServiceError> {
        let context = self.context("consume");
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions::default());
        let qos = self.connection.await_response(qos).await;
        qos.map_err(|error| context.wrap(error))?;
        let mut requests = Vec::with_capacity(self.sources.len());
        for (index, source) in self.sources.iter().enumerate() {
            if state.is_consuming(index) {
                continue;
            }
            let consuming = self.channel.basic_consume(
                self.short_string(&source.name)?,
                "".into(),
                BasicConsumeOptions::default(),
                order.arguments(&self.queues[source.queue_index].1),
            );
            requests.push(consuming.map_ok(move |consumer| (index, consumer)));
        }
        let started = self.connection.await_response(all(requests)).await;
        for (source, consumer) in started.map_err(|error| context.wrap(error))? {
            state.consumers.push((source, consumer.tag()));
            state.streams.push(consumer_stream(source, consumer));
        }
        state.prefetch = prefetch;
        Ok(())
    }

    /// Cancels the consumers and buffers the deliveries that they have pushed.
    async fn stop_consuming(&self, state: &mut ReceiveState) -> Result<(), ServiceError> {
        self.cancel(state, |_| true).await
    }

    /// Cancels the consumers that may push more than was requested, except on queues
    /// that [keep](super::inner::Source::keeps_surplus) their surplus.
    async fn stop_surplus(&self, state: &mut ReceiveState) -> Result<(), ServiceError> {
        self.cancel(state, |source| !self.sources[source].keeps_surplus)
            .await
    }

    /// Cancels the consumers of some sources. After an error it may be called again.
    async fn cancel(
        &self,
        state: &mut ReceiveState,
        is_cancelled: impl Fn(usize) -> bool,
    ) -> Result<(), ServiceError> {
        let context = self.context("stop consuming from");
        let cancelled = |(source, _): &&(usize, ShortString)| is_cancelled(*source);
        let cancels = state.consumers.iter().filter(cancelled).map(|(_, tag)| {
            self.channel
                .basic_cancel(tag.clone(), BasicCancelOptions::default())
        });
        let cancels = try_join_all(cancels);
        let ended = self.connection.await_response(cancels).await;
        ended.map_err(|error| context.wrap(error))?;
        state.prefetch = 0;
        // The stream of a cancelled consumer ends after its last delivery.
        while state.consumers.iter().any(|one| cancelled(&one)) {
            match state.streams.next().await {
                Some(ConsumerEvent::Ended(index, None)) if is_cancelled(index) => {
                    state.consumers.retain(|(source, _)| *source != index);
                }
                Some(event) => {
                    let delivery = self.handle_event(event)?;
                    state.buffer.push_back(delivery);
                }
                None => break,
            }
        }
        Ok(())
    }

    /// Requeues the buffered deliveries.
    async fn requeue_buffered(&self, state: &mut ReceiveState) -> Result<(), ServiceError> {
        let returned = std::mem::take(&mut state.buffer);
        self.requeue(returned).await
    }

    /// Requeues the buffered deliveries, except those that were returned so often
    /// that they could reach a delivery limit: the next `receive` returns them.
    async fn return_surplus(&self, state: &mut ReceiveState) -> Result<(), ServiceError> {
        let is_returned = |delivery: &Delivery| {
            let TagState::Unsettled(tag) = self.tag_state(&delivery.tag) else {
                return true;
            };
            let source = lock(&self.unacked).get(tag).map(|unacked| unacked.source);
            let is_kept = source.is_some_and(|source| self.sources[source].keeps_surplus);
            !is_kept && delivery.delivery_count.unwrap_or(0) < MAX_RETURNS
        };
        let buffered = std::mem::take(&mut state.buffer).into_iter();
        let (returned, kept) = buffered.partition(is_returned);
        state.buffer = kept;
        self.requeue(returned).await
    }

    async fn requeue(&self, deliveries: VecDeque<Delivery>) -> Result<(), ServiceError> {
        let unsettled = |delivery: Delivery| match self.tag_state(&delivery.tag) {
            TagState::Unsettled(tag) => Some((tag, true)),
            TagState::Pending(..) | TagState::Gone => None,
        };
        let requeues = deliveries.into_iter().filter_map(unsettled).collect();
        let frames = self.queue_frames(requeues, Vec::new());
        self.await_writes(&frames).await;
        frames.iter().try_for_each(|frame| self.written(frame))
    }

    /// Records a delivery, or returns the error that ended the consumer.
    fn handle_event(&self, event: ConsumerEvent) -> Result<Delivery, ServiceError> {
        match event {
            ConsumerEvent::Delivery(source, delivery) => Ok(self.track(source, *delivery)),
            ConsumerEvent::Ended(source, error) => {
                let object = format!("queue {}", self.sources[source].name);
                let context = self.shared.context("consume", &object).after_connect();
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
    fn track(&self, source: usize, delivery: lapin::message::Delivery) -> Delivery {
        let tag = delivery.delivery_tag;
        let unacked = UnackedDelivery {
            source,
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

impl ConsumerInner {
    /// Requeues what the consumer has not handed out, once it is interrupted, until that
    /// succeeds or the consumer is finished.
    pub(super) async fn requeue_when_interrupted(&self) {
        self.wait_for_interrupt().await;
        while let Err(error) = self.requeue_unreceived().await {
            tracing::debug!("consumer/requeue: {error}");
            if !self.channel.status().connected() {
                // RabbitMQ requeues the deliveries of a closed channel.
                return;
            }
            tokio::select! {
                biased;
                () = self.wait_for_finish() => return,
                () = tokio::time::sleep(REQUEUE_PAUSE) => {}
            }
        }
    }

    /// Stops consuming and requeues the deliveries that were not handed out, and those
    /// that wait in the consumer, so that other consumers receive them.
    pub(super) async fn requeue_unreceived(&self) -> Result<(), ServiceError> {
        let mut state = self.receiving.lock().await;
        let waiting = self.local_delays.close();
        let requeues = waiting.into_iter().map(|tag| (tag, true)).collect();
        let frames = self.queue_frames(requeues, Vec::new());
        let stopped = self.stop_consuming(&mut state).await;
        self.requeue_buffered(&mut state).await?;
        self.await_writes(&frames).await;
        frames.iter().try_for_each(|frame| self.written(frame))?;
        stopped
    }
}

/// Waits for all requests. If the server refuses one, its error is returned, and not that
/// of another request on the channel that is closed by then.
async fn all<T>(requests: Vec<impl Future<Output = lapin::Result<T>>>) -> lapin::Result<Vec<T>> {
    let mut answers = join_all(requests).await;
    let is_refusal = |answer: &lapin::Result<T>| {
        let error = answer.as_ref().err();
        error.is_some_and(|error| reply_code(error).is_some())
    };
    if let Some(refused) = answers.iter().position(is_refusal) {
        answers.swap(0, refused);
    }
    answers.into_iter().collect()
}

/// The order in which the server chooses among the waiting consumers of a queue.
#[derive(Clone, Copy)]
pub(super) enum ConsumerOrder {
    RoundRobin,
    /// On quorum queues at random, by consumer priorities. The consumer that has waited
    /// for longest is the next one of every queue: a burst of one message per queue would
    /// reach it alone, and the queues would count what it returns. Other consumers, such
    /// as those of Python workers, have priority 0; a lower one could get no message as
    /// long as they have room.
    Random,
}

impl ConsumerOrder {
    /// The largest random priority.
    const MAX_PRIORITY: i32 = 1_000;

    /// Returns the arguments of a `basic.consume`.
    fn arguments(self, queue: &Queue) -> FieldTable {
        let mut arguments = FieldTable::default();
        // A priority would take the role of the active consumer from another one.
        let has_active = queue.arguments.get("x-single-active-consumer").is_some();
        if matches!(self, Self::Random) && queue.is_quorum() && !has_active {
            let range = Self::MAX_PRIORITY as u128 + 1;
            let random = (Uuid::new_v4().as_u128() % range) as i32;
            let priority = AMQPValue::LongInt(random);
            arguments.insert("x-priority".into(), priority);
        }
        arguments
    }
}
