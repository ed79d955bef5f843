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
use super::error::{ServiceError, ServiceErrorKind};
use super::queue::{Exchange, Mailbox, Queue};

/// Transports messages between clients and workers.
///
/// # Contract
///
/// All methods may be called concurrently and in any order; the implementation
/// connects when a connection is first needed. It does not retry: an error ends
/// the call, and the next call starts from the beginning.
///
/// # Errors
///
/// All methods fail with a [`ServiceError`]: a
/// [transient](ServiceError::is_transient) one without a connection or an answer, and
/// [`Closed`](crate::ServiceErrorKind::Closed) after [`close`](Self::close).
///
/// # Cancel safety
///
/// Dropping the future of [`publish`](Self::publish) leaves it open whether the
/// messages were sent; all other futures may be dropped at any time.
pub trait Broker: fmt::Debug + Send + Sync {
    /// Declares `queue` and its bindings. A queue that exists with the same
    /// properties does not change.
    fn declare<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<(), ServiceError>>;

    /// Sends messages, in one round trip where the broker can. Returns one entry
    /// for each message, in their order; `Ok` means that the broker has the
    /// message. The [queue](Publication::queue) of a publication is declared first,
    /// unless it is known to exist.
    ///
    /// # Errors
    ///
    /// Each entry holds the error of its message:
    /// [`Unroutable`](crate::ServiceErrorKind::Unroutable) if no queue would receive
    /// it, [`Refused`](crate::ServiceErrorKind::Refused) if the broker does not accept
    /// it now. The other messages are sent.
    fn publish<'a>(
        &'a self,
        batch: &'a [Publication],
    ) -> BoxFuture<'a, Vec<Result<(), ServiceError>>>;

    /// Starts a consumer. Before [`Consumer::receive`] is called it holds at most
    /// [`ConsumeOptions::prefetch`] messages of each queue.
    fn consume<'a>(
        &'a self,
        options: &'a ConsumeOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Consumer>, ServiceError>>;

    /// Sends a message to every [mailbox](Self::subscribe) that is bound to
    /// `exchange` with a matching key now. Delivery is at most once: without a
    /// matching mailbox the message is dropped. Returns the number of receivers if
    /// the broker reports it.
    fn broadcast<'a>(
        &'a self,
        exchange: &'a Exchange,
        routing_key: &'a str,
        message: &'a Message,
    ) -> BoxFuture<'a, Result<Option<u64>, ServiceError>>;

    /// Opens a mailbox with one reader, the returned subscription. Some time after
    /// the subscription ends the broker deletes the mailbox and the messages in it.
    fn subscribe<'a>(
        &'a self,
        mailbox: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>, ServiceError>>;

    /// Returns the number of messages that wait in `queue`, without those held by
    /// consumers.
    fn depth<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>>;

    /// Deletes the messages that wait in `queue` and returns their number.
    fn purge<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>>;

    /// Returns the optional features of this broker.
    fn capabilities(&self) -> BrokerCapabilities;

    /// Returns the reason why the broker accepts no messages at the moment, if it
    /// gave one; it goes into the error after a timeout. `None` by default.
    fn blocked_reason(&self) -> Option<String> {
        None
    }

    /// Closes every connection of this broker. Later calls that need a connection fail
    /// with [`ServiceErrorKind::Closed`](crate::ServiceErrorKind::Closed).
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Receives the messages of a [`Mailbox`], which are not acknowledged.
pub trait Subscription: fmt::Debug + Send {
    /// Waits for the next message and returns it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future loses no message.
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>>;
}

/// The optional features of a broker, for the runtime and the conformance suite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerCapabilities {
    /// Whether a delivery of a consumer that has broken can be settled by a new
    /// consumer of the same broker; `false` by default. Otherwise the broker
    /// redelivers unsettled deliveries when their connection ends.
    pub settles_after_reconnect: bool,
    /// Whether each settlement is answered by [`Settled::Done`](crate::Settled::Done) or
    /// [`Settled::Gone`](crate::Settled::Gone), and never by
    /// [`Settled::Written`](crate::Settled::Written); `false` by default.
    pub confirms_settlements: bool,
    /// Whether [`Consumer::restore`](crate::Consumer::restore) returns messages that are
    /// acknowledged; `false` by default.
    pub restores_acknowledged: bool,
    /// Whether deliveries carry their [count](crate::Delivery::delivery_count), at least
    /// from one kind of queue; `false` by default.
    pub counts_deliveries: bool,
    /// The order in which messages of different priorities are delivered;
    /// [`PriorityOrder::None`] by default.
    pub priorities: PriorityOrder,
}

impl BrokerCapabilities {
    /// A broker with none of the features, and without priorities.
    pub const fn new() -> Self {
        Self {
            settles_after_reconnect: false,
            confirms_settlements: false,
            restores_acknowledged: false,
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

    /// Sets [`restores_acknowledged`](Self::restores_acknowledged).
    #[must_use]
    pub const fn restores_acknowledged(self, restores_acknowledged: bool) -> Self {
        Self {
            restores_acknowledged,
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

/// A message with its exchange and routing key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Publication {
    /// The message.
    pub message: Message,
    /// The exchange; empty for the default exchange, where the routing key is the
    /// name of a queue.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The queue to declare before the message is sent, so that the first message
    /// of a queue is not lost.
    pub queue: Option<Arc<Queue>>,
    /// Whether it is an error if no queue receives the message; `true` by default.
    /// RabbitMQ returns such a message to its sender (`mandatory`).
    pub mandatory: bool,
}

impl Publication {
    /// Checks that the message has an address: an exchange, or the name of a queue.
    /// Brokers call it for each message before they publish it.
    ///
    /// # Errors
    ///
    /// [`ServiceErrorKind::Invalid`] when exchange and routing key are both empty. No
    /// consumer receives messages from a queue without a name.
    pub fn check_address(&self) -> Result<(), ServiceError> {
        if !self.exchange.is_empty() || !self.routing_key.is_empty() {
            return Ok(());
        }
        let cause = "the name of the queue is empty";
        Err(
            ServiceError::new(ServiceErrorKind::Invalid, "publish to", "a queue", cause)
                .with_remedy("name an exchange, or the queue as routing key"),
        )
    }

    /// Sends `message` to the queue with this name.
    pub fn to_queue(message: Message, queue: impl Into<String>) -> Self {
        Self::to_exchange(message, String::new(), queue)
    }

    /// Sends `message` to `exchange` with `routing_key`.
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
            mandatory: true,
        }
    }

    /// Drops the message if no queue receives it, as for replies whose reader may be
    /// gone.
    #[must_use]
    pub fn not_mandatory(self) -> Self {
        Self {
            mandatory: false,
            ..self
        }
    }

    /// Sets the queue to declare before the message is sent.
    #[must_use]
    pub fn declare_queue(self, queue: Arc<Queue>) -> Self {
        Self {
            queue: Some(queue),
            ..self
        }
    }
}
