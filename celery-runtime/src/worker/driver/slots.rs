//! Concurrency slots: waiting deliveries and rate limits.

use crate::worker::delivery::event::Revocation;
use crate::worker::driver::{DeliveryEvent, DeliveryKey, Driver, Payload};

impl Driver {
    /// Assigns free slots to waiting deliveries.
    pub(crate) fn grant_slots(&mut self) {
        while let Some(key) = self.slots.grant() {
            let Some(entry) = self
                .in_flight
                .find(key)
                .filter(|entry| entry.state.is_waiting())
            else {
                // It no longer waits, as during a shutdown.
                self.slots.release();
                continue;
            };
            if let Payload::Task { job, .. } = &entry.payload
                && self.revocations.covers(job)
            {
                self.slots.release();
                self.event(key, DeliveryEvent::Revoked(Revocation::Unstarted));
                continue;
            }
            self.event(key, DeliveryEvent::SlotGranted);
        }
    }

    /// Queues a delivery for a slot, or defers it under a rate limit.
    pub(crate) fn enqueue(&mut self, key: DeliveryKey) {
        if let Some(entry) = self.in_flight.find(key)
            && let Payload::Task { job, .. } = &entry.payload
            && let Some(start_at) = self.rates.reserve(&job.task, &job.id, self.now.instant)
        {
            return self.event(key, DeliveryEvent::RateLimited(start_at));
        }
        self.slots.enqueue(key);
    }

    pub(crate) fn release_slot(&mut self) {
        self.slots.release();
        if self.shutdown.is_requested() {
            self.monitor.counters.drained += 1;
        }
    }
}
