//! The in-memory broker.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use celery_protocol::{Headers, Message};
use tokio::sync::{Notify, broadcast};

use crate::boundary::{
    BoxFuture, Broker, BrokerCapabilities, ConsumeOptions, Consumer, Delivery, DeliveryTag,
    Exchange, ExchangeKind, Mailbox, PriorityOrder, Publication, Queue, ServiceError,
    ServiceErrorKind, Settled, Settlement, Subscription, topic_matches,
};
use crate::env::Clock;
use crate::memory::faults::Faults;
use crate::memory::lock;
use crate::memory::queues::MessageQueues;
use crate::memory::subscription::{FanoutSubscription, ReplyQueue};

/// The number of unread messages that a subscription keeps; with more, the oldest
/// are dropped.
const BROADCAST_BACKLOG: usize = 1024;

/// A broker inside this process, with priorities, deferred messages and
/// redelivery. Clones share their queues.
///
/// Priority 0 is delivered first, as on Redis. The unsettled deliveries of a
/// consumer return to their queues when it is dropped.
#[derive(Clone)]
pub struct MemoryBroker {
    inner: Arc<BrokerInner>,
}

pub(super) struct BrokerInner {
    pub(super) queues: Mutex<MessageQueues>,
    bindings: Mutex<Vec<Queue>>,
    exchanges: Mutex<HashMap<String, broadcast::Sender<(String, Message)>>>,
    pub(super) changed: Notify,
    pub(super) faults: Faults,
    pub(super) clock: Clock,
    consumers: AtomicU64,
}

impl MemoryBroker {
    /// Returns an empty broker.
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// Returns an empty broker whose deferred messages follow `clock`.
    pub fn with_clock(clock: Clock) -> Self {
        Self {
            inner: Arc::new(BrokerInner {
                queues: Mutex::default(),
                bindings: Mutex::default(),
                exchanges: Mutex::default(),
                changed: Notify::new(),
                faults: Faults::default(),
                clock,
                consumers: AtomicU64::new(0),
            }),
        }
    }

    /// Returns the failures that a test can switch on.
    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// Returns the number of unsettled deliveries of all consumers.
    pub fn unsettled(&self) -> usize {
        lock(&self.inner.queues).unsettled()
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker").finish_non_exhaustive()
    }
}

impl Broker for MemoryBroker {
    fn declare<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("declare").await?;
            self.inner.declare(queue);
            Ok(())
        })
    }

    fn publish<'a>(
        &'a self,
        batch: &'a [Publication],
    ) -> BoxFuture<'a, Vec<Result<(), ServiceError>>> {
        Box::pin(async move {
            if let Err(error) = self.inner.faults.check("publish").await {
                return vec![Err(error); batch.len()];
            }
            let answers = batch.iter().map(|one| self.inner.route(one)).collect();
            self.inner.changed.notify_waiters();
            answers
        })
    }

    fn consume<'a>(
        &'a self,
        options: &'a ConsumeOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Consumer>, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("consume").await?;
            let queues = options
                .queues
                .iter()
                .map(|queue| queue.name.as_str().into());
            let consumer: Arc<dyn Consumer> = Arc::new(MemoryConsumer {
                id: self.inner.consumers.fetch_add(1, Ordering::Relaxed),
                inner: Arc::clone(&self.inner),
                queues: Mutex::new(queues.collect()),
                interrupted: AtomicBool::new(false),
                interrupt: Notify::new(),
                closed: AtomicBool::new(false),
            });
            Ok(consumer)
        })
    }

    fn broadcast<'a>(
        &'a self,
        exchange: &'a Exchange,
        routing_key: &'a str,
        message: &'a Message,
    ) -> BoxFuture<'a, Result<Option<u64>, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("broadcast").await?;
            let sender = self.inner.exchange(&exchange.name);
            let sent = sender.send((routing_key.to_owned(), message.clone()));
            // An error means that no mailbox is bound, and the message is dropped.
            let receivers = sent.unwrap_or(0) as u64;
            // The channel also counts receivers whose key does not match.
            Ok((exchange.kind == ExchangeKind::Fanout || receivers == 0).then_some(receivers))
        })
    }

    fn subscribe<'a>(
        &'a self,
        mailbox: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("subscribe").await?;
            let subscription: Box<dyn Subscription> = match &mailbox.binding {
                Some(binding) => Box::new(FanoutSubscription::new(
                    binding,
                    self.inner.exchange(&binding.exchange.name).subscribe(),
                    self.inner.faults.clone(),
                )),
                None => Box::new(ReplyQueue::new(&mailbox.name, Arc::clone(&self.inner))),
            };
            Ok(subscription)
        })
    }

    fn depth<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("depth").await?;
            Ok(lock(&self.inner.queues).depth(&queue.name) as u64)
        })
    }

    fn purge<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("purge").await?;
            Ok(lock(&self.inner.queues).purge(&queue.name) as u64)
        })
    }

    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities::new()
            .confirms_settlements(true)
            .restores_acknowledged(true)
            .counts_deliveries(true)
            .priorities(PriorityOrder::LowestFirst)
    }

    fn blocked_reason(&self) -> Option<String> {
        self.inner.faults.blocked_reason()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        // There is no connection, and clones may still be in use.
        Box::pin(std::future::ready(()))
    }
}

impl BrokerInner {
    /// Adds the bindings of a queue; those of an earlier declaration remain.
    fn declare(&self, queue: &Queue) {
        let mut bindings = lock(&self.bindings);
        if !bindings.contains(queue) {
            bindings.push(queue.clone());
        }
    }

    /// Returns the queues that receive a message, each once.
    fn targets(&self, exchange: &str, routing_key: &str) -> Vec<String> {
        let mut targets = Vec::new();
        for queue in lock(&self.bindings).iter() {
            if is_bound(queue, exchange, routing_key) && !targets.contains(&queue.name) {
                targets.push(queue.name.clone());
            }
        }
        targets
    }

    fn route(&self, publication: &Publication) -> Result<(), ServiceError> {
        let Publication {
            exchange,
            routing_key,
            ..
        } = publication;
        publication.check_address()?;
        let message = stored(publication)?;
        // The default exchange routes to every queue by its name.
        if exchange.is_empty() {
            lock(&self.queues).push(routing_key, message);
            return Ok(());
        }
        if let Some(queue) = publication.queue.as_deref() {
            self.declare(queue);
        }
        let targets = self.targets(exchange, routing_key);
        if targets.is_empty() && publication.mandatory {
            return Err(unroutable(exchange, routing_key));
        }
        let mut queues = lock(&self.queues);
        for queue in targets {
            queues.push(&queue, message.clone());
        }
        Ok(())
    }

    fn exchange(&self, name: &str) -> broadcast::Sender<(String, Message)> {
        lock(&self.exchanges)
            .entry(name.to_owned())
            .or_insert_with(|| broadcast::Sender::new(BROADCAST_BACKLOG))
            .clone()
    }
}

/// Returns the message as a consumer decodes it: with headers of JSON and with its
/// exchange and routing key.
fn stored(publication: &Publication) -> Result<Message, ServiceError> {
    let mut message = publication.message.clone();
    let mut headers = Vec::new();
    let unwritable = |cause: String| {
        let queue = format!("queue {}", publication.routing_key);
        ServiceError::new(ServiceErrorKind::Invalid, "publish to", queue, cause)
    };
    message
        .headers
        .write_json(&mut headers)
        .map_err(|error| unwritable(error.to_string()))?;
    message.headers =
        Headers::from_json(headers.into()).map_err(|error| unwritable(error.to_string()))?;
    let info = &mut message.properties.delivery_info;
    info.exchange.clone_from(&publication.exchange);
    info.routing_key.clone_from(&publication.routing_key);
    Ok(message)
}

fn is_bound(queue: &Queue, exchange: &str, routing_key: &str) -> bool {
    let first = (&queue.exchange, &queue.routing_key);
    let more = queue.bindings.iter();
    let more = more.map(|binding| (&binding.exchange, &binding.routing_key));
    std::iter::once(first).chain(more).any(|(bound_to, key)| {
        bound_to.name == exchange
            && match bound_to.kind {
                ExchangeKind::Fanout => true,
                ExchangeKind::Topic => topic_matches(key, routing_key),
                _ => key == routing_key,
            }
    })
}

fn unroutable(exchange: &str, routing_key: &str) -> ServiceError {
    ServiceError::new(
        ServiceErrorKind::Unroutable,
        "publish to",
        format!("exchange {exchange:?} with routing key {routing_key:?}"),
        "no queue is bound to it by that key",
    )
}

/// A consumer, which requeues its unsettled deliveries when it is dropped.
struct MemoryConsumer {
    id: u64,
    inner: Arc<BrokerInner>,
    queues: Mutex<Vec<Arc<str>>>,
    interrupted: AtomicBool,
    interrupt: Notify,
    closed: AtomicBool,
}

impl Consumer for MemoryConsumer {
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>> {
        Box::pin(async move {
            loop {
                let changed = self.inner.changed.notified();
                let interrupt = self.interrupt.notified();
                self.inner.faults.check("receive").await?;
                if self.interrupted.load(Ordering::SeqCst) {
                    return Ok(Vec::new());
                }
                let taken = self.take(max);
                if !taken.is_empty() {
                    return Ok(taken);
                }
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = interrupt => {}
                    () = self.next_due() => {}
                    error = self.inner.faults.broken("receive") => return Err(error),
                }
            }
        })
    }

    fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        self.interrupt.notify_waiters();
    }

    fn settle<'a>(
        &'a self,
        batch: &'a [Settlement],
    ) -> BoxFuture<'a, Vec<Result<Settled, ServiceError>>> {
        Box::pin(async move {
            if let Err(error) = self.inner.faults.check("settle").await {
                return vec![Err(error); batch.len()];
            }
            if self.closed.load(Ordering::SeqCst) {
                return vec![Ok(Settled::Gone); batch.len()];
            }
            let mut queues = lock(&self.inner.queues);
            let settled = batch.iter().map(|one| Ok(queues.settle(one))).collect();
            drop(queues);
            if batch.iter().any(|one| !matches!(one, Settlement::Ack(_))) {
                self.inner.changed.notify_waiters();
            }
            settled
        })
    }

    fn restore<'a>(
        &'a self,
        tag: &'a DeliveryTag,
        queue: &'a str,
        message: &'a Message,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.inner.faults.check("restore").await?;
            lock(&self.inner.queues).restore(tag, queue, message);
            self.inner.changed.notify_waiters();
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(async move {
            self.closed.store(true, Ordering::SeqCst);
            self.interrupt();
            Ok(())
        })
    }
}

impl MemoryConsumer {
    fn take(&self, max: usize) -> Vec<Delivery> {
        let mut order = lock(&self.queues);
        let now = self.inner.clock.now();
        let taken = lock(&self.inner.queues).take(self.id, &order, max, now);
        // Fairness: the next `receive` begins with another queue.
        if order.len() > 1 && !taken.is_empty() {
            order.rotate_left(1);
        }
        taken
    }

    async fn next_due(&self) {
        let due = lock(&self.inner.queues).next_due();
        match due {
            Some(due) => tokio::time::sleep(self.inner.clock.sleep_towards(due)).await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        lock(&self.inner.queues).release(self.id);
        self.inner.changed.notify_waiters();
    }
}

impl fmt::Debug for MemoryConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConsumer")
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}
