//! Deliveries and their settlement: [`Consumer`].

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use celery_protocol::{DecodeError, Message};

use super::BoxFuture;
use super::error::ServiceError;
use super::queue::Queue;

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

/// Where a requeued message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a queue has two ends")]
pub enum QueueEnd {
    /// Next to be delivered.
    Head,
    /// Delivered after all that wait.
    Tail,
}
