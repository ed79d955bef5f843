//! The state that receiving and settling share.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use celery_protocol::{DeliveryInfo, Value};
use celery_runtime::{
    ConsumeOptions, Delivery, DeliveryTag, Queue, ServiceError, ServiceErrorKind,
};
use lapin::Channel;
use lapin::types::ShortString;
use tokio::sync::Notify;

use super::local_delays::LocalDelays;
use super::pending_frames::{FrameWrite, PendingFrames};
use super::receive_state::ReceiveState;
use super::unacked::{UnackedDeliveries, UnackedDelivery};
use crate::connection::AmqpConnection;
use crate::declaration_cache::EntityKind;
use crate::delay;
use crate::error::ErrorContext;
use crate::message;
use crate::shared::Shared;
use crate::sync::lock;
use crate::table::short_string;

/// A queue on the server that a consumer reads: a task queue, or its due queue.
pub(super) struct Source {
    pub(super) name: String,
    /// The index of the task queue.
    pub(super) queue_index: usize,
    /// Whether it is a due queue.
    pub(super) is_due: bool,
    /// Whether surplus deliveries of it always stay in the consumer.
    pub(super) keeps_surplus: bool,
}

/// How the deferred messages of a task queue return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReturnPath {
    /// Through bindings that were made.
    Bound,
    /// The bindings may have been deleted, and are made again.
    Unknown,
    /// The server refuses the bindings: deferred messages wait in the consumer.
    Refused,
    /// The server refuses the bindings for now: deferred messages wait in the consumer
    /// until a later attempt succeeds.
    Unavailable,
}

impl ReturnPath {
    /// Reports whether messages can be deferred in the server.
    pub(super) fn is_usable(self) -> bool {
        matches!(self, Self::Bound | Self::Unknown)
    }
}

/// Returns the task queues and then their due queues.
fn sources(queues: &[Queue], return_paths: &[ReturnPath]) -> Vec<Source> {
    let task_queues = queues
        .iter()
        .enumerate()
        .map(|(queue_index, queue)| Source {
            name: queue.name.clone(),
            queue_index,
            is_due: false,
            keeps_surplus: keeps_surplus(queue),
        });
    let indexes = (0..queues.len()).filter(|index| return_paths[*index] == ReturnPath::Bound);
    let due_queues = indexes.filter_map(|queue_index| {
        Some(Source {
            name: delay::due_queue_name(&queues[queue_index])?,
            queue_index,
            is_due: true,
            keeps_surplus: false,
        })
    });
    task_queues.chain(due_queues).collect()
}

/// The smallest delivery limit of a quorum queue that returns its surplus.
const MIN_RETURNING_LIMIT: u64 = 20;

/// Reports whether surplus deliveries of a queue always stay in the consumer, at most
/// one for each that was requested, as Python's workers do on every quorum queue.
///
/// Its consumer stays, too: a quorum queue also returns and counts the messages that
/// it has sent before it reads a `basic.cancel`.
fn keeps_surplus(queue: &Queue) -> bool {
    let limit = queue.arguments.get("x-delivery-limit");
    let limit = limit.and_then(Value::as_u64);
    queue.is_quorum() && limit.is_some_and(|limit| limit < MIN_RETURNING_LIMIT)
}

/// What a consumer knows about a delivery, with the server's tag.
pub(super) enum TagState {
    /// It is not settled.
    Unsettled(u64),
    /// The settlement was begun, and is not known to be written.
    Pending(u64, FrameWrite),
    /// The settlement was written, or the delivery is not one of this consumer.
    Gone,
}

/// The state of a consumer, shared with its requeue task.
pub(super) struct ConsumerInner {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<AmqpConnection>,
    pub(super) channel: Channel,
    /// Part of the delivery tags, to distinguish them from those of other consumers.
    pub(super) id: u64,
    /// The task queues, and their names for the deliveries.
    pub(super) queues: Vec<(Arc<str>, Queue)>,
    /// The queues that are consumed.
    pub(super) sources: Vec<Source>,
    /// The prefetch that the next `receive` applies.
    pub(super) prefetch: AtomicU16,
    pub(super) receiving: tokio::sync::Mutex<ReceiveState>,
    pub(super) unacked: Mutex<UnackedDeliveries>,
    /// Deferred deliveries that wait in the consumer.
    pub(super) local_delays: LocalDelays,
    /// How deferred messages return to each task queue.
    pub(super) return_paths: Mutex<Vec<ReturnPath>>,
    /// Held while due messages are moved.
    pub(super) moving: tokio::sync::Mutex<()>,
    /// Whether the channel is closed and due messages were moved.
    pub(super) finished: tokio::sync::Mutex<bool>,
    /// The settlements that are not known to be written. Locked after `unacked`
    /// where both are.
    pub(super) pending_frames: Mutex<PendingFrames>,
    pub(super) interrupted: AtomicBool,
    pub(super) interrupt: Notify,
    /// Whether the consumer is closed or dropped.
    pub(super) finish_requested: AtomicBool,
    pub(super) finish: Notify,
}

impl ConsumerInner {
    pub(super) fn new(
        shared: &Arc<Shared>,
        connection: Arc<AmqpConnection>,
        channel: Channel,
        options: &ConsumeOptions,
        return_paths: Vec<ReturnPath>,
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Self {
            shared: Arc::clone(shared),
            connection,
            channel,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            queues: options
                .queues
                .iter()
                .map(|queue| (Arc::from(queue.name.as_str()), queue.clone()))
                .collect(),
            prefetch: AtomicU16::new(options.prefetch),
            receiving: tokio::sync::Mutex::default(),
            unacked: Mutex::default(),
            local_delays: LocalDelays::default(),
            sources: sources(&options.queues, &return_paths),
            return_paths: Mutex::new(return_paths),
            moving: tokio::sync::Mutex::default(),
            finished: tokio::sync::Mutex::default(),
            pending_frames: Mutex::default(),
            interrupted: AtomicBool::new(false),
            interrupt: Notify::new(),
            finish_requested: AtomicBool::new(false),
            finish: Notify::new(),
        }
    }

    /// Returns a deferred delivery that is due, unless it has been settled.
    pub(super) fn redelivery(&self, tag: u64) -> Option<Delivery> {
        let unacked = lock(&self.unacked);
        unacked
            .get(tag)
            .map(|unacked| self.to_delivery(tag, unacked))
    }

    /// Converts a delivery for the runtime.
    pub(super) fn to_delivery(&self, tag: u64, unacked: &UnackedDelivery) -> Delivery {
        let source = &self.sources[unacked.source];
        let (name, queue) = &self.queues[source.queue_index];
        let (exchange, routing_key) = (unacked.exchange.as_str(), unacked.routing_key.as_str());
        // A delay is not visible: the message has the exchange and routing key of
        // one that was not delayed.
        let mut info = if source.is_due || delay::is_deferred_for(name, routing_key) {
            DeliveryInfo::new("", &**name)
        } else if let Some(key) = delay::original_routing_key(exchange, routing_key) {
            DeliveryInfo::new(queue.exchange.name.as_str(), key)
        } else {
            DeliveryInfo::new(exchange, routing_key)
        };
        info.redelivered = unacked.redelivered;
        let (message, count) = message::decode(&unacked.properties, info, unacked.body.clone());
        let delivery_tag = DeliveryTag::new(format!("{}-{tag}", self.id));
        let mut delivery = Delivery::new(delivery_tag, Arc::clone(name), message);
        delivery.delivery_count = count;
        delivery
    }

    /// Returns the state of a delivery.
    pub(super) fn tag_state(&self, tag: &DeliveryTag) -> TagState {
        let parse = |tag: &DeliveryTag| {
            let (id, tag) = tag.as_str().split_once('-')?;
            Some((id.parse::<u64>().ok()?, tag.parse::<u64>().ok()?))
        };
        let Some((_, tag)) = parse(tag).filter(|(id, _)| *id == self.id) else {
            return TagState::Gone;
        };
        if lock(&self.unacked).contains(tag) {
            return TagState::Unsettled(tag);
        }
        match lock(&self.pending_frames).get(tag) {
            Some(write) => TagState::Pending(tag, write),
            None => TagState::Gone,
        }
    }

    /// Returns the index of the task queue of a delivery.
    pub(super) fn queue_index(&self, unacked: &UnackedDelivery) -> usize {
        self.sources[unacked.source].queue_index
    }

    /// Returns the name of the task queue of a delivery.
    pub(super) fn queue_name(&self, unacked: &UnackedDelivery) -> &str {
        &self.queues[self.queue_index(unacked)].0
    }

    /// Returns the context for the errors of an operation.
    pub(super) fn context(&self, operation: &'static str) -> ErrorContext<'_> {
        let context = self.shared.context(operation, "the worker's queues");
        // A queue that this connection has declared may have been deleted meanwhile.
        let declarations = &self.connection.declarations;
        let is_known =
            |(_, queue): &(_, Queue)| declarations.contains(EntityKind::Queue, &queue.name);
        match self.queues.iter().all(is_known) {
            true => context.after_connect(),
            false => context,
        }
    }

    pub(super) fn short_string(&self, name: &str) -> Result<ShortString, ServiceError> {
        short_string(name).map_err(|cause| {
            self.context("consume")
                .error(ServiceErrorKind::Invalid, cause)
        })
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    pub(super) fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        self.interrupt.notify_waiters();
    }

    /// Waits until the consumer is interrupted.
    pub(super) async fn wait_for_interrupt(&self) {
        wait_for(&self.interrupted, &self.interrupt).await;
    }

    /// Interrupts the consumer, and ends its work in the background.
    pub(super) fn request_finish(&self) {
        self.interrupt();
        self.finish_requested.store(true, Ordering::SeqCst);
        self.finish.notify_waiters();
    }

    pub(super) fn is_finish_requested(&self) -> bool {
        self.finish_requested.load(Ordering::SeqCst)
    }

    /// Waits until the consumer is closed or dropped.
    pub(super) async fn wait_for_finish(&self) {
        wait_for(&self.finish_requested, &self.finish).await;
    }
}

async fn wait_for(flag: &AtomicBool, notify: &Notify) {
    loop {
        let notified = notify.notified();
        if flag.load(Ordering::SeqCst) {
            return;
        }
        notified.await;
    }
}
