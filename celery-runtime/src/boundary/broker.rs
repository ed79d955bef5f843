//! The boundary to a message broker: [`Broker`] and [`Subscription`].
//!
//! None of the traits reconnects: an implementation reports through
//! [`ServiceError::is_transient`] whether an error may pass, and the worker's
//! supervisor owns every retry, back-off and re-consume.

use std::fmt;
use std::sync::Arc;

use celery_protocol::Message;

use super::BoxFuture;
use super::consumer::{ConsumeOptions, Consumer};
use super::error::ServiceError;
use super::queue::{Exchange, Mailbox, Queue};

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

/// Receives broadcast messages or replies; nothing is acknowledged.
pub trait Subscription: fmt::Debug + Send {
    /// Waits for the next message.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future takes no message with it.
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>>;
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
