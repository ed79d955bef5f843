//! Received deliveries, and the events for those in flight.

use std::sync::Arc;

use crate::boundary::{Consumer, Delivery, DeliveryTag};
use crate::execution::Job;
use crate::worker::delivery::decode::Decoded;
use crate::worker::delivery::event::{DeliveryEvent, Revocation};
use crate::worker::delivery::in_flight::{DeliveryKey, InFlightDelivery, Payload};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::driver::Driver;

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
                if self.decoder.emits_events {
                    self.monitor.rejected(&rejection, self.now.wall);
                }
                (
                    DeliveryState::of_rejected(
                        rejection,
                        self.executor.messages.sender.config.on_unknown,
                    ),
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
            if self.revocations.contains(&job.id) {
                tracing::info!("task {} is revoked", job.id);
                first = DeliveryEvent::Revoked(Revocation::Unstarted);
            }
        }
        let key = self.in_flight.insert(entry);
        self.event(key, first);
        self.scale_up();
        if let Some(stop) = self.shutdown.stage() {
            self.event(key, DeliveryEvent::Stop(stop));
        }
    }

    /// Assigns a redelivery to the delivery of the same message in flight. Returns
    /// whether there is one.
    fn reattach(
        &mut self,
        job: &Job,
        queue: &str,
        tag: &DeliveryTag,
        consumer: &Arc<dyn Consumer>,
    ) -> bool {
        let consumer = Arc::downgrade(consumer);
        let leased = self.connection.settles_after_reconnect();
        let reattached = self.in_flight.reattach(job, queue, tag, &consumer, leased);
        let Some(key) = reattached else { return false };
        tracing::info!("task {} is redelivered while in flight", job.id);
        self.event(key, DeliveryEvent::Redelivered);
        true
    }

    /// Passes an event to the state machine of a delivery and performs the
    /// resulting actions.
    pub(crate) fn event(&mut self, key: DeliveryKey, event: DeliveryEvent) {
        let mut actions = self
            .in_flight
            .handle(key, event, self.now, &mut self.window);
        for action in actions.drain(..) {
            self.perform(key, action);
        }
        self.in_flight.reuse(actions);
    }
}
