//! The parts of a consumer that receiving and settling share.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use celery_protocol::DeliveryInfo;
use celery_runtime::{
    ConsumeOptions, Delivery, DeliveryTag, Queue, ServiceError, ServiceErrorKind,
};
use lapin::Channel;
use lapin::types::ShortString;
use tokio::sync::Notify;

use super::due_queue::DueQueue;
use super::receive_state::ReceiveState;
use super::unacked::{UnackedDeliveries, UnackedDelivery};
use crate::connection::AmqpConnection;
use crate::delay;
use crate::error::ErrorContext;
use crate::message;
use crate::shared::Shared;
use crate::sync::lock;
use crate::table::short_string;

pub(super) struct ConsumerInner {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<AmqpConnection>,
    pub(super) channel: Channel,
    /// Tells its tags from those of another consumer.
    pub(super) id: u64,
    pub(super) queues: Vec<(Arc<str>, Queue)>,
    pub(super) prefetch: AtomicU16,
    pub(super) state: tokio::sync::Mutex<ReceiveState>,
    pub(super) unacked: Mutex<UnackedDeliveries>,
    /// Deliveries that are due in a moment.
    pub(super) due_queue: DueQueue,
    /// The queues to which parked messages find their way back.
    pub(super) deferred_bindings: Mutex<HashSet<usize>>,
    /// Settlements go out one batch after the other: an acknowledgement of
    /// several must not overtake a rejection among them.
    pub(super) settling: tokio::sync::Mutex<()>,
    pub(super) interrupted: AtomicBool,
    pub(super) interrupt: Notify,
}

impl ConsumerInner {
    pub(super) fn new(
        shared: &Arc<Shared>,
        connection: Arc<AmqpConnection>,
        channel: Channel,
        options: &ConsumeOptions,
        deferred_bindings: HashSet<usize>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
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
        }
    }

    /// A delivery whose moment has come, unless it was settled meanwhile.
    pub(super) fn redelivery(&self, tag: u64) -> Option<Delivery> {
        let unacked = lock(&self.unacked);
        unacked
            .get(tag)
            .map(|unacked| self.to_delivery(tag, unacked))
    }

    pub(super) fn to_delivery(&self, tag: u64, unacked: &UnackedDelivery) -> Delivery {
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
    pub(super) fn resolve_tag(&self, tag: &DeliveryTag) -> Option<u64> {
        let (id, tag) = tag.as_str().split_once('-')?;
        let (id, tag): (u64, u64) = (id.parse().ok()?, tag.parse().ok()?);
        (id == self.id && lock(&self.unacked).contains(tag)).then_some(tag)
    }

    pub(super) fn queue_name(&self, unacked: &UnackedDelivery) -> &str {
        &self.queues[unacked.queue_index].0
    }

    pub(super) fn context(&self, operation: &'static str) -> ErrorContext<'_> {
        self.shared.context(operation, "the worker's queues")
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

    pub(super) async fn wait_for_interrupt(&self) {
        loop {
            let interrupt = self.interrupt.notified();
            if self.is_interrupted() {
                return;
            }
            interrupt.await;
        }
    }
}
