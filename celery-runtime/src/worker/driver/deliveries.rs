//! The deliveries in flight: their timers, their counts, and the events for them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Instant;

use crate::boundary::{Consumer, Delivery, DeliveryTag};
use crate::execution::Job;
use crate::worker::delivery::decode::Decoded;
use crate::worker::delivery::event::{Action, DeliveryEvent, Revocation};
use crate::worker::delivery::in_flight::{DeliveryKey, InFlight, InFlightDelivery, Payload};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::driver::Driver;

/// The deliveries that a worker holds.
#[derive(Default)]
pub(crate) struct Deliveries {
    pub(crate) in_flight: InFlight,
    /// Deliveries whose task has not ended.
    pub(crate) pending: usize,
    /// Pending deliveries that are not acknowledged.
    pub(crate) unsettled: usize,
    pub(crate) timers: BinaryHeap<Reverse<(Instant, DeliveryKey)>>,
    /// A buffer that is reused for each event.
    pub(crate) actions: Vec<Action>,
}

impl Driver {
    /// Adds a received delivery. A redelivery of a task that is in flight here
    /// starts nothing.
    pub(crate) fn admit(&mut self, delivery: Delivery, consumer: &Arc<dyn Consumer>) {
        let is_redelivered =
            delivery.redelivered || delivery.delivery_count.is_some_and(|count| count > 0);
        let (state, payload) = match self.decoder.decode(
            delivery.content,
            delivery.redelivered,
            delivery.delivery_count,
        ) {
            Decoded::Task { job, .. }
                if is_redelivered
                    && self.reattach(&job, &delivery.queue, &delivery.tag, consumer) =>
            {
                return;
            }
            Decoded::Task { job, run, policy } => {
                (DeliveryState::of_task(policy), Payload::Task { job, run })
            }
            Decoded::Rejected { content, rejection } => {
                tracing::error!(
                    "cannot run a message of queue {}: {}",
                    delivery.queue,
                    rejection.detail
                );
                self.emit_rejected(&rejection);
                (
                    DeliveryState::of_rejected(rejection, self.on_unknown),
                    Payload::Rejected(content),
                )
            }
        };
        let mut entry = InFlightDelivery::new(
            state,
            delivery.tag,
            Arc::downgrade(consumer),
            delivery.queue,
            payload,
        );
        let mut first = DeliveryEvent::Arrived;
        if let Payload::Task { job, .. } = &entry.payload {
            entry.was_scheduled = self.monitor.scheduled.remove(&job.id);
            if self.revocations.ids.contains(&job.id) {
                tracing::info!("task {} is revoked", job.id);
                first = DeliveryEvent::Revoked(Revocation::Unstarted);
            }
        }
        let key = self.deliveries.in_flight.insert(entry);
        self.event(key, first);
        self.scale_up();
        if let Some(stop) = self.shutdown.stage {
            self.event(key, DeliveryEvent::Stop(stop));
        }
    }

    /// Gives a redelivery's tag to the delivery that lost its connection. Returns
    /// whether there is one.
    pub(crate) fn reattach(
        &mut self,
        job: &Job,
        queue: &str,
        tag: &DeliveryTag,
        consumer: &Arc<dyn Consumer>,
    ) -> bool {
        let Some(key) = self.deliveries.in_flight.take_redelivered(job, queue) else {
            return false;
        };
        if let Some(entry) = self.deliveries.in_flight.find_mut(key) {
            entry.tag = tag.clone();
            entry.consumer = Arc::downgrade(consumer);
        }
        tracing::info!("task {} is redelivered while in flight", job.id);
        self.event(key, DeliveryEvent::Redelivered);
        true
    }

    /// Passes an event to the state machine of a delivery and performs the
    /// resulting actions.
    pub(crate) fn event(&mut self, key: DeliveryKey, event: DeliveryEvent) {
        let now = self.now;
        let mut actions = std::mem::take(&mut self.deliveries.actions);
        let Some(entry) = self.deliveries.in_flight.find_mut(key) else {
            return;
        };
        if matches!(event, DeliveryEvent::Done | DeliveryEvent::DoneWith(_)) {
            entry.outgoing = None;
        }
        let was_pending = entry.state.is_pending();
        let was_unsettled = entry.state.is_unsettled();
        entry.state.handle(event, now, &mut actions);
        let is_pending = entry.state.is_pending();
        let is_unsettled = entry.state.is_unsettled();
        if let Some(time) = entry.state.timeout() {
            self.deliveries.timers.push(Reverse((time, key)));
        }
        self.deliveries.pending =
            self.deliveries.pending + usize::from(is_pending) - usize::from(was_pending);
        let before = self.deliveries.unsettled + usize::from(is_unsettled);
        self.deliveries.unsettled = before - usize::from(was_unsettled);
        for action in actions.drain(..) {
            self.perform(key, action);
        }
        self.deliveries.actions = actions;
    }
}
