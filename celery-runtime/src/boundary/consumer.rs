//! Deliveries and their settlement: [`Consumer`].

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use celery_protocol::{DecodeError, Message};

use super::BoxFuture;
use super::error::{ServiceError, ServiceErrorKind};
use super::queue::Queue;

/// Receives deliveries from queues and settles them.
///
/// # Contract
///
/// At most one [`receive`](Self::receive) runs at a time; the other methods may
/// be called at any time, also during it. After an error from `receive` the
/// consumer is broken: it delivers nothing more, and its owner starts a new one.
/// The first settlement of a delivery counts. A repeated one changes nothing and
/// is answered by [`Settled::Gone`]; one after [`close`](Self::close) changes
/// nothing and is answered by `Gone` or an error.
pub trait Consumer: fmt::Debug + Send + Sync {
    /// Waits for deliveries and returns at least one and at most `max`. An empty
    /// answer means [interrupted](Self::interrupt).
    ///
    /// # Errors
    ///
    /// When the connection breaks or a queue cannot be consumed. The consumer is then
    /// broken.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: deliveries that a dropped future had fetched stay unsettled
    /// until the broker redelivers them. Call [`interrupt`](Self::interrupt) and
    /// await the future instead.
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>>;

    /// Makes the pending [`receive`](Self::receive), and every later one, return at
    /// once with the deliveries it has fetched.
    fn interrupt(&self);

    /// Settles deliveries, in one round trip where the broker can. Returns one
    /// entry for each settlement, in their order. After an error that is
    /// [in doubt](ServiceError::is_in_doubt) the settlement may have been carried
    /// out; a repetition is then answered by [`Settled::Gone`].
    ///
    /// # Errors
    ///
    /// Each entry holds the error of its settlement, which stays unsettled unless the
    /// error is in doubt.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it open whether the settlements were carried out. A
    /// repetition is harmless.
    fn settle<'a>(
        &'a self,
        batch: &'a [Settlement],
    ) -> BoxFuture<'a, Vec<Result<Settled, ServiceError>>>;

    /// Returns a message whose acknowledgement may have been carried out to the head of
    /// its queue, because its task will not run here. If the broker still holds the
    /// delivery, it moves the message; otherwise it takes `message`, the copy in memory.
    /// Either way the queue has the message once. Brokers with the capability
    /// [`restores_acknowledged`](super::BrokerCapabilities::restores_acknowledged)
    /// implement it.
    ///
    /// # Errors
    ///
    /// After an error that is [in doubt](ServiceError::is_in_doubt) the message may have
    /// been returned. A repetition could then return it twice.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it open whether the message was returned.
    fn restore<'a>(
        &'a self,
        _tag: &'a DeliveryTag,
        queue: &'a str,
        _message: &'a Message,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        let error = ServiceError::new(
            ServiceErrorKind::Unsupported,
            "restore",
            format!("a message of queue {queue}"),
            "this broker keeps no copies of acknowledged messages",
        );
        Box::pin(std::future::ready(Err(error)))
    }

    /// Waits until the broker has taken unsettled deliveries back from this consumer,
    /// because their lease was not renewed in time, and returns their tags. Returns no
    /// tags when [`has_current_leases`](Self::has_current_leases) has become true. Never
    /// returns by default, for brokers that bind a delivery to its connection.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    fn lost(&self) -> BoxFuture<'_, Vec<DeliveryTag>> {
        Box::pin(std::future::pending())
    }

    /// Returns whether the broker certainly gives the unsettled deliveries of this
    /// consumer to no other one for now; `true` by default. A process that was frozen, or
    /// cut off from the broker for long, starts no task until this is so again.
    fn has_current_leases(&self) -> bool {
        true
    }

    /// Sets [`ConsumeOptions::prefetch`] from the next `receive` on. Does nothing by
    /// default, for brokers without prefetch.
    fn set_prefetch(&self, _prefetch: u16) {}

    /// Stops consuming. Deferred deliveries that this consumer keeps return to
    /// their queues; unsettled ones are redelivered by the broker's own rules. A
    /// repeated call does nothing.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after a dropped future, deferred deliveries are redelivered by
    /// the broker's own rules, too.
    fn close(&self) -> BoxFuture<'_, Result<(), ServiceError>>;
}

/// The queues of a consumer and its prefetch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumeOptions {
    /// The queues, in the order in which they were configured.
    pub queues: Vec<Queue>,
    /// The number of unsettled deliveries of each queue that the broker may push
    /// before [`Consumer::receive`] is called. With 0 the broker pushes none, so
    /// that other consumers get them. Brokers without prefetch ignore it.
    pub prefetch: u16,
    /// The owner of the deliveries. Consumers with clones of these options have the same
    /// one, others another one.
    pub owner: Arc<DeliveryOwner>,
}

impl ConsumeOptions {
    /// Consumes `queues` with up to `prefetch` unsettled deliveries of each, for a new
    /// owner.
    pub fn new(queues: Vec<Queue>, prefetch: u16) -> Self {
        Self {
            queues,
            prefetch,
            owner: Arc::default(),
        }
    }
}

/// The owner of the deliveries of consumers that follow each other, such as one worker.
///
/// On a broker that [`settles_after_reconnect`](super::BrokerCapabilities), deliveries
/// outlive a consumer. They are kept for their owner as long as it exists, and are given
/// to others when the last reference to it is dropped.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct DeliveryOwner {}

/// Identifies a delivery to the broker that made it, within this process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeliveryTag(Arc<str>);

impl DeliveryTag {
    /// A tag with this text, which the broker assigns.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the text that the broker assigned.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message delivered to a consumer, to be settled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delivery {
    /// Identifies the delivery in a [`Settlement`].
    pub tag: DeliveryTag,
    /// The name of the queue that it was delivered from.
    pub queue: Arc<str>,
    /// The message, or bytes that cannot be decoded as one.
    pub content: Content,
    /// Whether the broker reports an earlier delivery of the message.
    pub redelivered: bool,
    /// The number of earlier deliveries of the message; `None` if the broker does
    /// not count, or has not counted one yet.
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

    /// A delivery of bytes from `queue` that cannot be decoded as a message.
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

/// The content of a delivery.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "bytes are a message or they are not"
)]
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
pub enum Content {
    /// A message whose envelope was decoded.
    Message(Message),
    /// Bytes that are not a message of this broker.
    Malformed {
        /// The bytes as they were in the queue.
        raw: Bytes,
        /// The reason why they cannot be decoded.
        error: DecodeError,
    },
}

/// The final disposition of a delivery.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "brokers must carry out each of them"
)]
pub enum Settlement {
    /// Acknowledges the delivery: the broker deletes the message.
    Ack(DeliveryTag),
    /// Rejects the delivery: the broker drops the message, or dead-letters it where
    /// the queue is configured so.
    Reject(DeliveryTag),
    /// Returns the message to its queue, flagged as redelivered.
    Requeue(DeliveryTag, QueueEnd),
    /// Redelivers the message at this time or soon after, to a consumer of the same
    /// queue, usually this one. Until then it does not count towards the prefetch.
    Defer(DeliveryTag, SystemTime),
}

impl Settlement {
    /// Returns whether a broker settles it with a single command; the others may
    /// have to publish the message again.
    pub(crate) fn is_quick(&self) -> bool {
        matches!(
            self,
            Self::Ack(_) | Self::Reject(_) | Self::Requeue(_, QueueEnd::Head)
        )
    }

    /// Returns the tag of the delivery.
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
    /// The delivery was held and is settled.
    Done,
    /// The delivery is not held by this consumer any more: it was settled before,
    /// was delivered to another consumer, or the consumer is closed. Nothing was
    /// changed.
    Gone,
    /// The settlement was written to the connection. The broker sends no reply, so
    /// it is unknown whether the settlement arrives (AMQP).
    Written,
}

/// The end of the queue at which a message is requeued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a queue has two ends")]
pub enum QueueEnd {
    /// The message is delivered next.
    Head,
    /// The message is delivered after all that wait.
    Tail,
}
