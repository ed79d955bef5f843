//! Taking deliveries and settling them, over one channel.
//!
//! RabbitMQ streams. How much it may push is fixed when a consumer of the
//! server's starts, so a change of the window means to cancel and start again.
//! With a prefetch of 0 nothing is pushed that was not asked for: messages that
//! are there are fetched one by one, and only where there is none is a consumer
//! started, with just the credit that was asked for, and cancelled with the
//! first delivery.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use celery_protocol::DeliveryInfo;
use celery_runtime::{
    BoxFuture, ConsumeOptions, Consumer, Delivery, DeliveryTag, Queue, ServiceError,
    ServiceErrorKind, Settlement,
};
use futures_util::future::{FusedFuture, FutureExt, try_join_all};
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use lapin::Channel;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::{FieldTable, ShortString};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::broker::Shared;
use crate::connection::{AmqpConnection, lock};
use crate::delay;
use crate::due_queue::DueQueue;
use crate::error::ErrorContext;
use crate::message;
use crate::table::short_string;
use crate::topology::Declarer;
use crate::unacked::{UnackedDeliveries, UnackedDelivery};

/// A consumer of some queues.
pub(crate) struct AmqpConsumer {
    inner: Arc<ConsumerInner>,
    /// Gives back what was pushed ahead, once the consumer is interrupted.
    requeue_task: JoinHandle<()>,
}

pub(crate) struct ConsumerInner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connection: Arc<AmqpConnection>,
    pub(crate) channel: Channel,
    /// Tells its tags from those of another consumer.
    id: u64,
    queues: Vec<(Arc<str>, Queue)>,
    prefetch: AtomicU16,
    state: tokio::sync::Mutex<ReceiveState>,
    pub(crate) unacked: Mutex<UnackedDeliveries>,
    /// Deliveries that are due in a moment.
    pub(crate) due_queue: DueQueue,
    /// The queues to which parked messages find their way back.
    pub(crate) deferred_bindings: Mutex<HashSet<usize>>,
    /// Settlements go out one batch after the other: an acknowledgement of
    /// several must not overtake a rejection among them.
    pub(crate) settling: tokio::sync::Mutex<()>,
    interrupted: AtomicBool,
    interrupt: Notify,
}

/// What the server streams.
#[derive(Default)]
struct ReceiveState {
    streams: SelectAll<ConsumerStream>,
    /// The server's consumers, and the credit that each has.
    consumers: Vec<ShortString>,
    credit: u16,
    /// Taken from the server and not handed out.
    buffer: VecDeque<Delivery>,
    /// The queue to look at first.
    next_queue: usize,
}

type ConsumerStream = Pin<Box<dyn Stream<Item = ConsumerEvent> + Send>>;

/// A delivery of a queue, or the end of its consumer.
enum ConsumerEvent {
    Delivery(usize, Box<lapin::message::Delivery>),
    Ended(usize, Option<lapin::Error>),
}

impl AmqpConsumer {
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        options: &ConsumeOptions,
    ) -> Result<Self, ServiceError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let names: Vec<_> = options.queues.iter().map(|queue| &*queue.name).collect();
        let object = format!("queues {}", names.join(", "));
        let context = shared.context("consume", &object);
        let connection = shared.consuming.connection(context).await?;
        let mut declarer = Declarer::new(&connection, context);
        let deferred_bindings = match delay::rebind_deferred(&mut declarer, &options.queues).await?
        {
            true => (0..options.queues.len()).collect(),
            false => HashSet::new(),
        };
        shared
            .bind_native_delays(&connection, &options.queues, context)
            .await?;
        let channel = connection
            .open_channel()
            .await
            .map_err(|error| context.wrap(error))?;
        let inner = Arc::new(ConsumerInner {
            shared: Arc::clone(shared),
            connection,
            channel,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            queues: options
                .queues
                .iter()
                .map(|queue| (Arc::from(queue.name.as_str()), queue.clone()))
                .collect(),
            prefetch: AtomicU16::new(options.prefetch),
            state: tokio::sync::Mutex::default(),
            unacked: Mutex::default(),
            due_queue: DueQueue::default(),
            deferred_bindings: Mutex::new(deferred_bindings),
            settling: tokio::sync::Mutex::default(),
            interrupted: AtomicBool::new(false),
            interrupt: Notify::new(),
        });
        if options.prefetch > 0 {
            let mut state = inner.state.lock().await;
            inner.start_consuming(&mut state, options.prefetch).await?;
        }
        let requeue_task = tokio::spawn(requeue_when_interrupted(Arc::clone(&inner)));
        Ok(Self {
            inner,
            requeue_task,
        })
    }
}

impl Consumer for AmqpConsumer {
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>> {
        Box::pin(self.inner.receive(max))
    }

    fn interrupt(&self) {
        self.inner.interrupted.store(true, Ordering::SeqCst);
        self.inner.interrupt.notify_waiters();
    }

    fn settle<'a>(&'a self, batch: &'a [Settlement]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.inner.settle(batch))
    }

    fn set_prefetch(&self, prefetch: u16) {
        self.inner.prefetch.store(prefetch, Ordering::SeqCst);
    }

    fn settles_after_reconnect(&self) -> bool {
        false
    }

    fn close(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(async move {
            self.interrupt();
            let context = self.inner.context("end the consumption of");
            // With the channel everything that is not settled goes back.
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
        self.requeue_task.abort();
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

/// Others shall have what this consumer will not hand out any more.
async fn requeue_when_interrupted(inner: Arc<ConsumerInner>) {
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

impl ConsumerInner {
    /// Takes at least one delivery, unless it is interrupted.
    async fn receive(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
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
        tokio::select! {
            () = self.wait_for_interrupt() => {}
            () = self.due_queue.wait_due() => {}
            Some(push) = state.streams.next() => {
                let delivery = self.handle_event(push)?;
                state.buffer.push_back(delivery);
            }
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
    async fn start_consuming(
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
    pub(crate) async fn reject(&self, mut tags: Vec<(u64, bool)>) -> Result<(), ServiceError> {
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
    pub(crate) async fn write<F>(
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

    /// A delivery whose moment has come, unless it was settled meanwhile.
    fn redelivery(&self, tag: u64) -> Option<Delivery> {
        let unacked = lock(&self.unacked);
        unacked
            .get(tag)
            .map(|unacked| self.to_delivery(tag, unacked))
    }

    fn to_delivery(&self, tag: u64, unacked: &UnackedDelivery) -> Delivery {
        let (name, queue) = &self.queues[unacked.queue_index];
        let (exchange, routing_key) = (unacked.exchange.as_str(), unacked.routing_key.as_str());
        // After a delay the message looks as if it had come directly.
        let mut info = if delay::is_deferred_for(name, routing_key) {
            DeliveryInfo::new("", &**name)
        } else if let Some(key) = delay::original_routing_key(exchange, routing_key) {
            DeliveryInfo::new(queue.exchange.name.as_str(), key)
        } else {
            DeliveryInfo::new(exchange, routing_key)
        };
        info.redelivered = unacked.redelivered;
        let (message, count) = message::decode(&unacked.properties, info, unacked.body.clone());
        let own = DeliveryTag::new(format!("{}-{tag}", self.id));
        let mut delivery = Delivery::new(own, Arc::clone(name), message);
        delivery.delivery_count = count;
        delivery
    }

    /// The server's tag, where this consumer still holds the delivery.
    pub(crate) fn resolve_tag(&self, tag: &DeliveryTag) -> Option<u64> {
        let (id, tag) = tag.as_str().split_once('-')?;
        let (id, tag): (u64, u64) = (id.parse().ok()?, tag.parse().ok()?);
        (id == self.id && lock(&self.unacked).contains(tag)).then_some(tag)
    }

    pub(crate) fn queue_name(&self, unacked: &UnackedDelivery) -> &str {
        &self.queues[unacked.queue_index].0
    }

    pub(crate) fn context(&self, operation: &'static str) -> ErrorContext<'_> {
        self.shared.context(operation, "the worker's queues")
    }

    fn short_string(&self, name: &str) -> Result<ShortString, ServiceError> {
        short_string(name).map_err(|cause| {
            self.context("consume")
                .error(ServiceErrorKind::Invalid, cause)
        })
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    async fn wait_for_interrupt(&self) {
        loop {
            let interrupt = self.interrupt.notified();
            if self.is_interrupted() {
                return;
            }
            interrupt.await;
        }
    }
}

fn consumer_stream(queue_index: usize, consumer: lapin::Consumer) -> ConsumerStream {
    let deliveries = consumer.map(move |pushed| match pushed {
        Ok(delivery) => ConsumerEvent::Delivery(queue_index, Box::new(delivery)),
        Err(error) => ConsumerEvent::Ended(queue_index, Some(error)),
    });
    let end = stream::once(async move { ConsumerEvent::Ended(queue_index, None) });
    Box::pin(deliveries.chain(end))
}
