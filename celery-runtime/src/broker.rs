//! The boundary to a message broker: [`Broker`], [`Consumer`], [`Subscription`].
//!
//! The traits say nothing that only Redis or only RabbitMQ can do. None of
//! them reconnects: an implementation reports through
//! [`ServiceError::is_transient`] whether an error may pass, and the worker's
//! supervisor owns every retry, back-off and re-consume.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use celery_protocol::{DecodeError, Map, Message, Value};

use crate::error::ServiceError;

/// A boxed future, the return type of every asynchronous method of a boundary.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Moves messages between clients and workers.
///
/// # Contract
///
/// All methods may be called concurrently and before any other; connections
/// are made when first needed. Errors are final for the call: nothing is
/// retried inside, and a method called again after an error starts anew.
/// Dropping the future of [`publish`](Self::publish) leaves it open whether
/// the messages were sent; all other futures may be dropped freely.
pub trait Broker: fmt::Debug + Send + Sync {
    /// Makes sure that `queue` exists and is bound to its exchanges. Declaring
    /// what exists with the same properties does nothing.
    fn declare<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Sends messages, all in one round trip where the broker can. The answer
    /// has one entry for each message, in their order; `Ok` means that the
    /// broker has the message. The queue for which a message
    /// [is meant](Publication::queue) is declared before, unless it is known
    /// to exist.
    fn publish<'a>(
        &'a self,
        batch: &'a [Publication],
    ) -> BoxFuture<'a, Vec<Result<(), ServiceError>>>;

    /// Starts to consume. Messages are not taken before
    /// [`Consumer::receive`] asks for them, or no more of them than
    /// [`ConsumeOptions::prefetch`].
    fn consume<'a>(
        &'a self,
        options: &'a ConsumeOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Consumer>, ServiceError>>;

    /// Sends a message to every [mailbox](Self::subscribe) that `exchange` leads
    /// to by this routing key now. Delivery is at most once: who is away misses
    /// it, and nothing of it stays behind. The answer is how many got it, where
    /// the broker says so.
    fn broadcast<'a>(
        &'a self,
        exchange: &'a Exchange,
        routing_key: &'a str,
        message: &'a Message,
    ) -> BoxFuture<'a, Result<Option<u64>, ServiceError>>;

    /// Opens a mailbox, which only its owner reads and which disappears with
    /// what is left in it when its owner does.
    fn subscribe<'a>(
        &'a self,
        mailbox: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>, ServiceError>>;

    /// How many messages wait in `queue`; those held by consumers not counted.
    fn depth<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>>;

    /// Deletes the messages that wait in `queue` and says how many they were.
    fn purge<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>>;

    /// Features of this broker.
    fn capabilities(&self) -> BrokerCapabilities;

    /// Why messages are not taken at the moment, where the broker has said so:
    /// for the text of an error after a deadline.
    fn blocked_reason(&self) -> Option<String> {
        None
    }

    /// Ends every connection of this broker. Later calls fail as closed.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Takes deliveries from queues and settles them.
///
/// # Contract
///
/// At most one [`receive`](Self::receive) runs at a time; the other methods
/// may be called at any moment, also during it. After an error from `receive`
/// the consumer is broken: it yields nothing more, and its owner makes a new
/// one. Each delivery is settled once; settling it again, or after
/// [`close`](Self::close), changes nothing.
pub trait Consumer: fmt::Debug + Send + Sync {
    /// Waits until at least one delivery is there, and takes at most `max`.
    /// An empty answer means [interrupted](Self::interrupt).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropping the future may strand deliveries that were
    /// already taken until the broker gives them to somebody again. Call
    /// [`interrupt`](Self::interrupt) and let it finish.
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>>;

    /// Makes a pending `receive`, and every later one, return at once with
    /// what it has.
    fn interrupt(&self);

    /// Settles deliveries, in one round trip where the broker can. Returns one
    /// entry for each settlement, in their order. After an error the settlement
    /// may have been carried out ([`ServiceError::is_in_doubt`]); a repetition
    /// is harmless and then answers [`Settled::Gone`].
    fn settle<'a>(
        &'a self,
        batch: &'a [Settlement],
    ) -> BoxFuture<'a, Vec<Result<Settled, ServiceError>>>;

    /// Changes [`ConsumeOptions::prefetch`] from the next `receive` on. Brokers
    /// that are asked for each delivery have nothing to change.
    fn set_prefetch(&self, _prefetch: u16) {}

    /// Ends consumption. Deliveries that were parked go back to their queues;
    /// those not settled stay with the broker's own rules.
    fn close(&self) -> BoxFuture<'_, Result<(), ServiceError>>;
}

/// Receives broadcast messages or replies; nothing is acknowledged.
pub trait Subscription: fmt::Debug + Send {
    /// Waits for the next message.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future takes no message with it.
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>>;
}

/// Names one delivery of this process towards the broker that made it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeliveryTag(Arc<str>);

impl DeliveryTag {
    /// A tag with the text by which the broker knows the delivery.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text by which the broker knows the delivery.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One message handed to a consumer, to be settled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delivery {
    /// What to settle it by.
    pub tag: DeliveryTag,
    /// The queue that it was taken from.
    pub queue: Arc<str>,
    /// The message, or the bytes that should have been one.
    pub content: Content,
    /// Whether the broker says that it was handed out before.
    pub redelivered: bool,
    /// How often it was handed out before, where the broker counts.
    pub delivery_count: Option<u32>,
}

impl Delivery {
    /// A first delivery of `message` from `queue`.
    pub fn new(tag: DeliveryTag, queue: Arc<str>, message: Message) -> Self {
        Self {
            tag,
            queue,
            redelivered: message.properties.delivery_info.redelivered,
            content: Content::Message(message),
            delivery_count: None,
        }
    }

    /// Bytes taken from `queue` that are no message.
    pub fn malformed(tag: DeliveryTag, queue: Arc<str>, raw: Bytes, error: DecodeError) -> Self {
        Self {
            tag,
            queue,
            content: Content::Malformed { raw, error },
            redelivered: false,
            delivery_count: None,
        }
    }
}

/// What was delivered.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "bytes are a message or they are not"
)]
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
pub enum Content {
    /// A message whose outer form could be read.
    Message(Message),
    /// Bytes that are not a message of this broker.
    Malformed {
        /// The bytes as they were in the queue.
        raw: Bytes,
        /// Why they cannot be read.
        error: DecodeError,
    },
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "brokers must carry out each of them"
)]
pub enum Settlement {
    /// Done with: the broker forgets it.
    Ack(DeliveryTag),
    /// Refused: the broker drops it, or dead-letters it where set up to.
    Reject(DeliveryTag),
    /// Given back to its queue, flagged as redelivered.
    Requeue(DeliveryTag, QueueEnd),
    /// Not before this time: the broker takes it over, and a consumer of the
    /// same queue (usually this one) receives it again at that time or soon
    /// after. The window of unsettled deliveries does not count it.
    Defer(DeliveryTag, SystemTime),
}

impl Settlement {
    /// Whether a broker carries it out by a word; the others may be messages
    /// to send.
    pub(crate) fn is_quick(&self) -> bool {
        matches!(
            self,
            Self::Ack(_) | Self::Reject(_) | Self::Requeue(_, QueueEnd::Head)
        )
    }

    /// The delivery that it settles.
    pub fn tag(&self) -> &DeliveryTag {
        match self {
            Self::Ack(tag) | Self::Reject(tag) | Self::Requeue(tag, _) | Self::Defer(tag, _) => tag,
        }
    }
}

/// The outcome of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the worker has to decide on each of them"
)]
pub enum Settled {
    /// The broker held the delivery and has settled it.
    Done,
    /// The broker did not hold the delivery: it was settled before, or went to
    /// another consumer. Nothing was changed.
    Gone,
    /// The settlement was written to the connection. The broker sends no answer,
    /// so whether it arrives is not known (AMQP).
    Written,
}

/// Features of a broker, for the runtime and the conformance suite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerCapabilities {
    /// Whether a delivery taken by a broken consumer can be settled through a
    /// new one of the same broker. Without it the broker redelivers unsettled
    /// deliveries when their connection ends.
    pub settles_after_reconnect: bool,
    /// Whether settlements are answered by [`Settled::Done`] and
    /// [`Settled::Gone`], and never by [`Settled::Written`].
    pub confirms_settlements: bool,
    /// Whether deliveries carry their [count](Delivery::delivery_count), at
    /// least on queues that the broker offers for it.
    pub counts_deliveries: bool,
    /// The order in which messages of different priorities are delivered.
    pub priorities: PriorityOrder,
}

impl BrokerCapabilities {
    /// A broker with none of the features, and without priorities.
    pub const fn new() -> Self {
        Self {
            settles_after_reconnect: false,
            confirms_settlements: false,
            counts_deliveries: false,
            priorities: PriorityOrder::None,
        }
    }

    /// Sets [`settles_after_reconnect`](Self::settles_after_reconnect).
    #[must_use]
    pub const fn settles_after_reconnect(self, settles_after_reconnect: bool) -> Self {
        Self {
            settles_after_reconnect,
            ..self
        }
    }

    /// Sets [`confirms_settlements`](Self::confirms_settlements).
    #[must_use]
    pub const fn confirms_settlements(self, confirms_settlements: bool) -> Self {
        Self {
            confirms_settlements,
            ..self
        }
    }

    /// Sets [`counts_deliveries`](Self::counts_deliveries).
    #[must_use]
    pub const fn counts_deliveries(self, counts_deliveries: bool) -> Self {
        Self {
            counts_deliveries,
            ..self
        }
    }

    /// Sets [`priorities`](Self::priorities).
    #[must_use]
    pub const fn priorities(self, priorities: PriorityOrder) -> Self {
        Self { priorities, ..self }
    }
}

/// The order in which a broker delivers messages of different priorities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no other order")]
pub enum PriorityOrder {
    /// Priorities are ignored.
    #[default]
    None,
    /// 0 is the most urgent, as on Redis.
    LowestFirst,
    /// The highest number is the most urgent, as on RabbitMQ.
    HighestFirst,
}

/// Where a requeued message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a queue has two ends")]
pub enum QueueEnd {
    /// Next to be delivered.
    Head,
    /// Delivered after all that wait.
    Tail,
}

/// What a consumer is to read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumeOptions {
    /// The queues, in the order in which they were configured.
    pub queues: Vec<Queue>,
    /// How many unsettled deliveries of each queue the broker may push ahead
    /// of [`Consumer::receive`]; 0 for none, so that the others get what this
    /// consumer did not ask for. Brokers that are asked may ignore it.
    pub prefetch: u16,
}

impl ConsumeOptions {
    /// Reads `queues` with up to `prefetch` deliveries pushed ahead.
    pub fn new(queues: Vec<Queue>, prefetch: u16) -> Self {
        Self { queues, prefetch }
    }
}

/// A message and where to send it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Publication {
    /// The message.
    pub message: Message,
    /// The exchange; empty for the anonymous one, which takes the routing key
    /// as the name of a queue.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The queue that is to get it. A broker without such a queue declares it
    /// first, so that the first message is not lost.
    pub queue: Option<Arc<Queue>>,
}

impl Publication {
    /// `message` straight to the queue of that name.
    pub fn to_queue(message: Message, queue: impl Into<String>) -> Self {
        Self::to_exchange(message, String::new(), queue)
    }

    /// `message` to `exchange` with `routing_key`.
    pub fn to_exchange(
        message: Message,
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
    ) -> Self {
        Self {
            message,
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            queue: None,
        }
    }

    /// The same, with the queue to declare first.
    #[must_use]
    pub fn declare_queue(self, queue: Arc<Queue>) -> Self {
        Self {
            queue: Some(queue),
            ..self
        }
    }
}

/// A queue of one reader alone: for broadcasts, events and replies.
///
/// The properties are those by which Celery declares such queues; brokers that
/// have no such thing leave out what they cannot do.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mailbox {
    /// The name.
    pub name: String,
    /// What brings messages here; without it the mailbox is reached by its name
    /// through the anonymous exchange.
    pub binding: Option<Binding>,
    /// Whether it outlives a restart of the broker.
    pub durable: bool,
    /// Whether the broker keeps other connections from reading it.
    pub exclusive: bool,
    /// How long it stays when nobody reads it.
    pub expires: Duration,
    /// How long a message waits to be read; as long as the mailbox where `None`.
    pub message_ttl: Option<Duration>,
}

impl Mailbox {
    /// What is sent to `exchange` under routing keys that match `pattern` (`*`
    /// one word, `#` any number; `""` or `#` everything), as Celery's event
    /// receivers listen: under a random name, unread messages kept for 5 s.
    pub fn of(exchange: Exchange, pattern: impl Into<String>) -> Self {
        Self {
            name: format!("{}.{}", exchange.name, uuid::Uuid::new_v4()),
            binding: Some(Binding::new(exchange, pattern)),
            durable: false,
            exclusive: true,
            expires: Duration::from_secs(60),
            message_ttl: Some(Duration::from_secs(5)),
        }
    }

    /// What is sent to the mailbox by its name, kept for `expires` after its
    /// last use, as Celery's `rpc://` results are.
    pub fn named(name: impl Into<String>, expires: Duration) -> Self {
        Self {
            name: name.into(),
            binding: None,
            durable: true,
            exclusive: false,
            expires,
            message_ttl: None,
        }
    }

    /// What remote control sends to a worker, or answers to a client: bound to
    /// `exchange` by `routing_key`.
    pub fn control(
        name: impl Into<String>,
        exchange: Exchange,
        routing_key: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            expires: Duration::from_secs(10),
            message_ttl: Some(Duration::from_secs(300)),
            ..Self::of(exchange, routing_key)
        }
    }
}

/// A queue and its bindings, as Celery's `task_queues` describes one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Queue {
    /// The name.
    pub name: String,
    /// The exchange that it is bound to; by default a direct one, named like
    /// the queue.
    pub exchange: Exchange,
    /// The routing key of the binding; by default the queue's name.
    pub routing_key: String,
    /// Arguments of the binding, which exchanges of kind
    /// [`Headers`](ExchangeKind::Headers) compare.
    pub binding_arguments: Map,
    /// More bindings, beside the one above.
    pub bindings: Vec<Binding>,
    /// Whether the queue outlives a restart of the broker; it does by default.
    pub durable: bool,
    /// Whether the queue disappears with its last consumer.
    pub auto_delete: bool,
    /// Arguments of the declaration (`x-max-priority`, `x-queue-type`, …).
    pub arguments: Map,
    /// The name by which a broadcast queue is routed to, since its own is random.
    pub(crate) alias: Option<String>,
}

impl Queue {
    /// A durable queue, bound to the direct exchange of the same name, as
    /// Celery declares a queue that only has a name.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            exchange: Exchange::direct(name.as_str()),
            routing_key: name.clone(),
            binding_arguments: Map::new(),
            bindings: Vec::new(),
            durable: true,
            auto_delete: false,
            arguments: Map::new(),
            alias: None,
            name,
        }
    }

    /// A queue of one consumer alone that gets a copy of every message sent
    /// to the fanout exchange called `name`, as Celery's `Broadcast`. Its own
    /// name is random; tasks are routed to it by `name`. Among the
    /// [`task_queues`](crate::Config::task_queues) it stands for one such queue
    /// in each worker.
    pub fn broadcast(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            auto_delete: true,
            alias: Some(name.clone()),
            ..Self::new(random_name()).bound_to(Exchange::fanout(name), "")
        }
    }

    /// Whether it was made by [`broadcast`](Self::broadcast). Only who consumes
    /// such a queue declares it.
    pub fn is_broadcast(&self) -> bool {
        self.alias.is_some()
    }

    /// The same for one more consumer: a broadcast queue gets another name.
    pub(crate) fn for_consumer(&self) -> Self {
        let mut queue = self.clone();
        if queue.is_broadcast() {
            queue.name = random_name();
        }
        queue
    }

    /// The same queue bound to `exchange` by `routing_key`.
    #[must_use]
    pub fn bound_to(self, exchange: Exchange, routing_key: impl Into<String>) -> Self {
        Self {
            exchange,
            routing_key: routing_key.into(),
            ..self
        }
    }

    /// The same queue with one more binding.
    #[must_use]
    pub fn also_bound_to(mut self, binding: Binding) -> Self {
        self.bindings.push(binding);
        self
    }

    /// The same queue with an argument of its declaration.
    #[must_use]
    pub fn argument(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.arguments.insert(name.into(), value);
        self
    }

    /// The same queue with priorities from 0 to `highest` (`x-max-priority`).
    #[must_use]
    pub fn max_priority(self, highest: u8) -> Self {
        self.argument("x-max-priority", i64::from(highest))
    }

    /// The same as a quorum queue of RabbitMQ (`x-queue-type`).
    #[must_use]
    pub fn quorum(self) -> Self {
        self.argument("x-queue-type", "quorum")
    }

    /// Whether it is declared as a quorum queue.
    pub fn is_quorum(&self) -> bool {
        self.arguments.get("x-queue-type").and_then(Value::as_str) == Some("quorum")
    }
}

impl From<&str> for Queue {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for Queue {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

/// kombu's form of it.
fn random_name() -> String {
    format!("bcast.{}", uuid::Uuid::new_v4())
}

/// One more way to a queue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Binding {
    /// The exchange.
    pub exchange: Exchange,
    /// The routing key, or the pattern where the exchange has patterns.
    pub routing_key: String,
    /// Arguments, which exchanges of kind [`Headers`](ExchangeKind::Headers)
    /// compare.
    pub arguments: Map,
}

impl Binding {
    /// A binding to `exchange` by `routing_key`.
    pub fn new(exchange: Exchange, routing_key: impl Into<String>) -> Self {
        Self {
            exchange,
            routing_key: routing_key.into(),
            arguments: Map::new(),
        }
    }
}

/// What messages are sent to, and which passes them on to queues.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// The name; empty for the anonymous one, to which every queue is bound by
    /// its name.
    pub name: String,
    /// How it chooses queues.
    pub kind: ExchangeKind,
    /// Whether it outlives a restart of the broker; it does by default.
    pub durable: bool,
}

impl Exchange {
    /// A durable exchange.
    pub fn new(name: impl Into<String>, kind: ExchangeKind) -> Self {
        Self {
            name: name.into(),
            kind,
            durable: true,
        }
    }

    /// A durable direct exchange.
    pub fn direct(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Direct)
    }

    /// A durable topic exchange.
    pub fn topic(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Topic)
    }

    /// A durable fanout exchange.
    pub fn fanout(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Fanout)
    }

    /// The same, gone when the broker restarts.
    #[must_use]
    pub fn transient(self) -> Self {
        Self {
            durable: false,
            ..self
        }
    }
}

/// How an exchange chooses queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExchangeKind {
    /// Queues whose routing key is equal.
    Direct,
    /// Queues whose pattern matches.
    Topic,
    /// Every queue.
    Fanout,
    /// Queues whose arguments match the message's headers.
    Headers,
}

impl ExchangeKind {
    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Direct, Self::Topic, Self::Fanout, Self::Headers]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// The name that brokers and settings use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
        }
    }
}
