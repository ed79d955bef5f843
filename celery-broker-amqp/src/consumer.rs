//! Taking deliveries and settling them, over one channel.
//!
//! RabbitMQ pushes. How much it may push is fixed when a consumer of the
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
    ServiceErrorKind, Settled, Settlement,
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
use crate::delay;
use crate::failure::Attempt;
use crate::ledger::{Held, Ledger};
use crate::link::{Live, lock};
use crate::message;
use crate::soon::Soon;
use crate::table::short;
use crate::topology::Desk;

/// A consumer of some queues.
pub(crate) struct AmqpConsumer {
    inner: Arc<Inner>,
    /// Gives back what was pushed ahead, once the consumer is interrupted.
    janitor: JoinHandle<()>,
}

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Arc<Live>,
    pub(crate) channel: Channel,
    /// Tells its tags from those of another consumer.
    serial: u64,
    queues: Vec<(Arc<str>, Queue)>,
    prefetch: AtomicU16,
    intake: tokio::sync::Mutex<Intake>,
    pub(crate) ledger: Mutex<Ledger>,
    /// Deliveries that are due in a moment.
    pub(crate) soon: Soon,
    /// The queues to which parked messages find their way back.
    pub(crate) ways_back: Mutex<HashSet<usize>>,
    /// Settlements go out one batch after the other: an acknowledgement of
    /// several must not overtake a rejection among them.
    pub(crate) settling: tokio::sync::Mutex<()>,
    interrupted: AtomicBool,
    interrupt: Notify,
}

/// What the server pushes.
#[derive(Default)]
struct Intake {
    pushes: SelectAll<Pushes>,
    /// The server's consumers, and the credit that each has.
    consumers: Vec<ShortString>,
    credit: u16,
    /// Taken from the server and not handed out.
    buffer: VecDeque<Delivery>,
    /// The queue to look at first.
    turn: usize,
}

type Pushes = Pin<Box<dyn Stream<Item = Push> + Send>>;

/// A delivery of a queue, or the end of its consumer.
enum Push {
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
        let attempt = shared.attempt("consume", &object);
        let live = shared.consuming.live(attempt).await?;
        let mut desk = Desk::new(&live, attempt);
        let ways_back = match delay::rebind_parked(&mut desk, &options.queues).await? {
            true => (0..options.queues.len()).collect(),
            false => HashSet::new(),
        };
        shared
            .bind_native_delays(&live, &options.queues, attempt)
            .await?;
        let channel = live.open().await.map_err(|error| attempt.failed(error))?;
        let inner = Arc::new(Inner {
            shared: Arc::clone(shared),
            live,
            channel,
            serial: NEXT.fetch_add(1, Ordering::Relaxed),
            queues: options
                .queues
                .iter()
                .map(|queue| (Arc::from(queue.name.as_str()), queue.clone()))
                .collect(),
            prefetch: AtomicU16::new(options.prefetch),
            intake: tokio::sync::Mutex::default(),
            ledger: Mutex::default(),
            soon: Soon::default(),
            ways_back: Mutex::new(ways_back),
            settling: tokio::sync::Mutex::default(),
            interrupted: AtomicBool::new(false),
            interrupt: Notify::new(),
        });
        if options.prefetch > 0 {
            let mut intake = inner.intake.lock().await;
            inner.begin(&mut intake, options.prefetch).await?;
        }
        let janitor = tokio::spawn(give_back_when_interrupted(Arc::clone(&inner)));
        Ok(Self { inner, janitor })
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
            let attempt = self.inner.attempt("end the consumption of");
            // With the channel everything that is not settled goes back.
            let closed = self.inner.channel.close(200, "".into());
            match self.inner.live.answer(closed).await {
                Err(error) if self.inner.channel.status().connected() => Err(attempt.failed(error)),
                _ => Ok(()),
            }
        })
    }
}

impl Drop for AmqpConsumer {
    fn drop(&mut self) {
        self.janitor.abort();
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
async fn give_back_when_interrupted(inner: Arc<Inner>) {
    inner.until_interrupted().await;
    let mut intake = inner.intake.lock().await;
    let given_back = match inner.end(&mut intake).await {
        Ok(()) => inner.give_back(&mut intake).await,
        Err(error) => Err(error),
    };
    if let Err(error) = given_back {
        // They go back with the channel then.
        tracing::debug!("{error}");
    }
}

impl Inner {
    /// Takes at least one delivery, unless it is interrupted.
    async fn receive(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
        let mut intake = self.intake.lock().await;
        if self.is_interrupted() {
            return Ok(Vec::new());
        }
        let prefetch = self.prefetch.load(Ordering::SeqCst);
        if intake.credit != prefetch {
            self.end(&mut intake).await?;
        }
        if prefetch > 0 && intake.credit == 0 {
            self.begin(&mut intake, prefetch).await?;
        }
        self.take_ready(&mut intake, max)?;
        if intake.buffer.is_empty() && prefetch == 0 {
            self.fetch(&mut intake, max).await?;
        }
        if intake.buffer.is_empty() {
            self.wait(&mut intake, prefetch, max).await?;
        }
        let count = intake.buffer.len().min(max);
        let taken = intake.buffer.drain(..count).collect();
        if prefetch == 0 {
            self.give_back(&mut intake).await?;
        }
        Ok(taken)
    }

    /// Waits for the next delivery. Without a prefetch the server may push just
    /// what was asked for, and only for this time.
    async fn wait(
        &self,
        intake: &mut Intake,
        prefetch: u16,
        max: usize,
    ) -> Result<(), ServiceError> {
        if prefetch == 0 {
            let share = (max / self.queues.len().max(1)).max(1);
            let credit = u16::try_from(share).unwrap_or(u16::MAX);
            self.begin(intake, credit).await?;
        }
        tokio::select! {
            () = self.until_interrupted() => {}
            () = self.soon.due() => {}
            Some(push) = intake.pushes.next() => {
                let delivery = self.admit(push)?;
                intake.buffer.push_back(delivery);
            }
        }
        self.take_ready(intake, max)?;
        if prefetch == 0 {
            self.end(intake).await?;
        }
        Ok(())
    }

    /// Moves what is here already to the buffer.
    fn take_ready(&self, intake: &mut Intake, max: usize) -> Result<(), ServiceError> {
        while intake.buffer.len() < max {
            if let Some(tag) = self.soon.take_due() {
                intake.buffer.extend(self.again(tag));
                continue;
            }
            match intake.pushes.next().now_or_never() {
                Some(Some(push)) => {
                    let delivery = self.admit(push)?;
                    intake.buffer.push_back(delivery);
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Fetches what is there, each queue in its turn.
    async fn fetch(&self, intake: &mut Intake, max: usize) -> Result<(), ServiceError> {
        let attempt = self.attempt("fetch from");
        let mut empty = 0;
        while intake.buffer.len() < max && empty < self.queues.len() && !self.is_interrupted() {
            let number = intake.turn % self.queues.len();
            intake.turn = number + 1;
            let name = self.short(&self.queues[number].0)?;
            let fetched = self.channel.basic_get(name, BasicGetOptions::default());
            let fetched = self.live.answer(fetched).await;
            match fetched.map_err(|error| attempt.failed(error))? {
                Some(message) => {
                    empty = 0;
                    let delivery = self.take_in(number, message.delivery);
                    intake.buffer.push_back(delivery);
                }
                None => empty += 1,
            }
        }
        Ok(())
    }

    /// Lets the server push, up to `credit` of each queue.
    async fn begin(&self, intake: &mut Intake, credit: u16) -> Result<(), ServiceError> {
        let attempt = self.attempt("consume");
        let qos = self.channel.basic_qos(credit, BasicQosOptions::default());
        let qos = self.live.answer(qos).await;
        qos.map_err(|error| attempt.failed(error))?;
        for (number, (name, _)) in self.queues.iter().enumerate() {
            let consuming = self.channel.basic_consume(
                self.short(name)?,
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            let consuming = self.live.answer(consuming).await;
            let consumer = consuming.map_err(|error| attempt.failed(error))?;
            intake.consumers.push(consumer.tag());
            intake.pushes.push(pushes(number, consumer));
        }
        intake.credit = credit;
        Ok(())
    }

    /// Stops the server from pushing; what it pushed until then is taken.
    async fn end(&self, intake: &mut Intake) -> Result<(), ServiceError> {
        let attempt = self.attempt("end the consumption of");
        let cancels = intake.consumers.drain(..).map(|tag| {
            self.channel
                .basic_cancel(tag, BasicCancelOptions::default())
        });
        let cancelled = self.live.answer(try_join_all(cancels)).await;
        cancelled.map_err(|error| attempt.failed(error))?;
        intake.credit = 0;
        // A cancelled consumer's stream ends by itself.
        while let Some(push) = intake.pushes.next().await {
            match push {
                Push::Ended(_, None) => {}
                push => {
                    let delivery = self.admit(push)?;
                    intake.buffer.push_back(delivery);
                }
            }
        }
        Ok(())
    }

    /// Gives back what was taken and not asked for.
    async fn give_back(&self, intake: &mut Intake) -> Result<(), ServiceError> {
        let tags: Vec<_> = intake
            .buffer
            .drain(..)
            .filter_map(|delivery| self.own(&delivery.tag))
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
        lock(&self.ledger).remove(tags);
        let rest = frames.into_iter().filter(|frame| !frame.is_terminated());
        let written = match failure {
            None => self.live.answer(try_join_all(rest)).await.map(drop),
            Some(error) => Err(error),
        };
        written.map_err(|error| self.attempt("settle messages of").failed(error))
    }

    fn admit(&self, push: Push) -> Result<Delivery, ServiceError> {
        match push {
            Push::Delivery(number, delivery) => Ok(self.take_in(number, *delivery)),
            Push::Ended(number, error) => {
                let object = format!("queue {}", self.queues[number].0);
                let attempt = self.shared.attempt("consume", &object);
                Err(match error {
                    Some(error) => attempt.failed(error),
                    None => attempt.error(
                        ServiceErrorKind::Disconnected,
                        "RabbitMQ ended the consumption, as when a queue is deleted",
                    ),
                })
            }
        }
    }

    fn take_in(&self, number: usize, delivery: lapin::message::Delivery) -> Delivery {
        let tag = delivery.delivery_tag;
        let held = Held {
            number,
            exchange: delivery.exchange,
            routing_key: delivery.routing_key,
            redelivered: delivery.redelivered,
            properties: delivery.properties,
            body: Bytes::from(delivery.data),
        };
        let delivery = self.delivery(tag, &held);
        lock(&self.ledger).insert(tag, held);
        delivery
    }

    /// A delivery whose moment has come, unless it was settled meanwhile.
    fn again(&self, tag: u64) -> Option<Delivery> {
        let ledger = lock(&self.ledger);
        ledger.get(tag).map(|held| self.delivery(tag, held))
    }

    fn delivery(&self, tag: u64, held: &Held) -> Delivery {
        let (name, queue) = &self.queues[held.number];
        let (exchange, routing_key) = (held.exchange.as_str(), held.routing_key.as_str());
        // After a delay the message looks as if it had come directly.
        let mut info = if delay::is_parked_for(name, routing_key) {
            DeliveryInfo::new("", &**name)
        } else if let Some(key) = delay::undelayed(exchange, routing_key) {
            DeliveryInfo::new(queue.exchange.name.as_str(), key)
        } else {
            DeliveryInfo::new(exchange, routing_key)
        };
        info.redelivered = held.redelivered;
        let (message, count) = message::read(&held.properties, info, held.body.clone());
        let own = DeliveryTag::new(format!("{}-{tag}", self.serial));
        let mut delivery = Delivery::new(own, Arc::clone(name), message);
        delivery.delivery_count = count;
        delivery
    }

    /// The server's tag, where this consumer still holds the delivery.
    pub(crate) fn own(&self, tag: &DeliveryTag) -> Option<u64> {
        let (serial, tag) = tag.as_str().split_once('-')?;
        let (serial, tag): (u64, u64) = (serial.parse().ok()?, tag.parse().ok()?);
        (serial == self.serial && lock(&self.ledger).contains(tag)).then_some(tag)
    }

    pub(crate) fn queue(&self, held: &Held) -> &str {
        &self.queues[held.number].0
    }

    pub(crate) fn attempt(&self, operation: &'static str) -> Attempt<'_> {
        self.shared.attempt(operation, "the worker's queues")
    }

    fn short(&self, name: &str) -> Result<ShortString, ServiceError> {
        short(name).map_err(|cause| {
            self.attempt("consume")
                .error(ServiceErrorKind::Invalid, cause)
        })
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    async fn until_interrupted(&self) {
        loop {
            let interrupt = self.interrupt.notified();
            if self.is_interrupted() {
                return;
            }
            interrupt.await;
        }
    }
}

fn pushes(number: usize, consumer: lapin::Consumer) -> Pushes {
    let pushes = consumer.map(move |pushed| match pushed {
        Ok(delivery) => Push::Delivery(number, Box::new(delivery)),
        Err(error) => Push::Ended(number, Some(error)),
    });
    let end = stream::once(async move { Push::Ended(number, None) });
    Box::pin(pushes.chain(end))
}
