//! Concurrency slots: waiting deliveries, rate limits, changes of the concurrency
//! and of the prefetch.

use crate::worker::delivery::event::Revocation;
use crate::worker::driver::{DeliveryEvent, DeliveryKey, Driver, Payload};

impl Driver {
    /// Assigns free slots to waiting deliveries.
    pub(crate) fn grant_slots(&mut self) {
        while let Some(key) = self.slots.grant(self.window.storing()) {
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

    pub(crate) fn set_concurrency(&mut self, size: usize) {
        let Some(threads) = self.slots.resize(size) else {
            return;
        };
        tracing::info!("concurrency is now {size}");
        let kept = self.pool.resize(size, threads);
        self.slots.keep_threads(kept);
        self.set_prefetch();
    }

    pub(crate) fn set_prefetch(&mut self) {
        let prefetch = self.window.prefetch(self.slots.max_concurrency());
        self.connection.set_prefetch(prefetch);
    }

    /// Raises the concurrency to the backlog, with autoscaling.
    pub(crate) fn scale_up(&mut self) {
        if let Some(size) = self.slots.scale_up(self.window.pending()) {
            self.set_concurrency(size);
        }
    }

    /// Lowers the concurrency to the backlog, with autoscaling.
    pub(crate) fn scale_down(&mut self) {
        if let Some(size) = self.slots.scale_down(self.window.pending()) {
            self.set_concurrency(size);
        }
    }
}
