//! The in-memory broker.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use celery_protocol::{Headers, Message};
use tokio::sync::{Notify, broadcast};

use crate::boundary::{
    BoxFuture, Broker, BrokerCapabilities, ConsumeOptions, Consumer, Delivery, Exchange,
    ExchangeKind, Mailbox, PriorityOrder, Publication, Queue, ServiceError, ServiceErrorKind,
    Settled, Settlement, Subscription, topic_matches,
};
use crate::env::Clock;
use crate::memory::faults::Faults;
use crate::memory::lock;
use crate::memory::queues::Queues;
use crate::memory::subscription::{FanoutSubscription, ReplyQueue};

/// Messages kept for a subscriber that does not read; then the oldest go.
const BROADCAST_BACKLOG: usize = 1024;

/// A broker inside this process, with priorities, delayed messages and
/// redelivery. Priority 0 goes first, as on Redis.
///
/// Clones share their queues.
#[derive(Clone)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) queues: Mutex<Queues>,
    bindings: Mutex<Vec<Queue>>,
    exchanges: Mutex<HashMap<String, broadcast::Sender<(String, Message)>>>,
    pub(super) changed: Notify,
    pub(super) faults: Faults,
    pub(super) clock: Clock,
    consumers: AtomicU64,
}

impl MemoryBroker {
    /// An empty broker.
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// An empty broker whose delayed messages follow `clock`.
    pub fn with_clock(clock: Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
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

    /// The failures to switch on.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// How many deliveries consumers hold that are not settled.
    pub fn held(&self) -> usize {
        lock(&self.shared.queues).held()
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
            self.shared.faults.check("declare").await?;
            self.shared.declare(queue);
            Ok(())
        })
    }

    fn publish<'a>(
        &'a self,
        batch: &'a [Publication],
    ) -> BoxFuture<'a, Vec<Result<(), ServiceError>>> {
        Box::pin(async move {
            if let Err(error) = self.shared.faults.check("publish").await {
                return vec![Err(error); batch.len()];
            }
            let answers = batch.iter().map(|one| self.shared.route(one)).collect();
            self.shared.changed.notify_waiters();
            answers
        })
    }

    fn consume<'a>(
        &'a self,
        options: &'a ConsumeOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Consumer>, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("consume").await?;
            let queues = options
                .queues
                .iter()
                .map(|queue| queue.name.as_str().into());
            let consumer: Arc<dyn Consumer> = Arc::new(MemoryConsumer {
                id: self.shared.consumers.fetch_add(1, Ordering::Relaxed),
                shared: Arc::clone(&self.shared),
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
            self.shared.faults.check("broadcast").await?;
            let sender = self.shared.exchange(&exchange.name);
            let sent = sender.send((routing_key.to_owned(), message.clone()));
            // Nobody listens: that is what a broadcast is like.
            let listeners = sent.unwrap_or(0) as u64;
            // Those who listen for some keys alone are among them.
            Ok((exchange.kind == ExchangeKind::Fanout || listeners == 0).then_some(listeners))
        })
    }

    fn subscribe<'a>(
        &'a self,
        mailbox: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("subscribe").await?;
            let subscription: Box<dyn Subscription> = match &mailbox.binding {
                Some(binding) => Box::new(FanoutSubscription::new(
                    binding,
                    self.shared.exchange(&binding.exchange.name).subscribe(),
                    self.shared.faults.clone(),
                )),
                None => Box::new(ReplyQueue::new(&mailbox.name, Arc::clone(&self.shared))),
            };
            Ok(subscription)
        })
    }

    fn depth<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("depth").await?;
            Ok(lock(&self.shared.queues).depth(&queue.name) as u64)
        })
    }

    fn purge<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            self.shared.faults.check("purge").await?;
            Ok(lock(&self.shared.queues).purge(&queue.name) as u64)
        })
    }

    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities::new()
            .confirms_settlements(true)
            .counts_deliveries(true)
            .priorities(PriorityOrder::LowestFirst)
    }

    fn blocked_reason(&self) -> Option<String> {
        self.shared.faults.blocked_reason()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        // There is no connection, and clones may still be in use.
        Box::pin(std::future::ready(()))
    }
}

impl Shared {
    /// Bindings are only added: those of an earlier declaration stay.
    fn declare(&self, queue: &Queue) {
        let mut bindings = lock(&self.bindings);
        if !bindings.contains(queue) {
            bindings.push(queue.clone());
        }
    }

    /// The queues that get a message, each once.
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
        let message = stored(publication)?;
        // The anonymous exchange leads to every queue without a binding.
        if exchange.is_empty() {
            lock(&self.queues).push(routing_key, message);
            return Ok(());
        }
        if let Some(queue) = publication.queue.as_deref() {
            self.declare(queue);
        }
        let targets = self.targets(exchange, routing_key);
        if targets.is_empty() {
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

/// The message as bytes would bring it: headers as JSON, the way noted.
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

/// A consumer; what it holds goes back when it is dropped.
struct MemoryConsumer {
    id: u64,
    shared: Arc<Shared>,
    queues: Mutex<Vec<Arc<str>>>,
    interrupted: AtomicBool,
    interrupt: Notify,
    closed: AtomicBool,
}

impl Consumer for MemoryConsumer {
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>> {
        Box::pin(async move {
            loop {
                let changed = self.shared.changed.notified();
                let interrupt = self.interrupt.notified();
                self.shared.faults.check("receive").await?;
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
                    error = self.shared.faults.broken("receive") => return Err(error),
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
            if let Err(error) = self.shared.faults.check("settle").await {
                return vec![Err(error); batch.len()];
            }
            if self.closed.load(Ordering::SeqCst) {
                return vec![Ok(Settled::Gone); batch.len()];
            }
            let mut queues = lock(&self.shared.queues);
            let settled = batch.iter().map(|one| Ok(queues.settle(one))).collect();
            drop(queues);
            if batch.iter().any(|one| !matches!(one, Settlement::Ack(_))) {
                self.shared.changed.notify_waiters();
            }
            settled
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
        let now = self.shared.clock.now();
        let taken = lock(&self.shared.queues).take(self.id, &order, max, now);
        // Fair over queues: the next look begins with another one.
        if order.len() > 1 && !taken.is_empty() {
            order.rotate_left(1);
        }
        taken
    }

    async fn next_due(&self) {
        let due = lock(&self.shared.queues).next_due();
        match due {
            Some(due) => tokio::time::sleep(self.shared.clock.sleep_towards(due)).await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        lock(&self.shared.queues).abandon(self.id);
        self.shared.changed.notify_waiters();
    }
}

impl fmt::Debug for MemoryConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConsumer")
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}
