//! Shutdown: its stages and the end of the driver.

use crate::worker::driver::{DeliveryEvent, Driver, Payload, Stop};
use crate::worker::error::WorkerError;

impl Driver {
    pub(crate) fn is_over(&self) -> bool {
        let is_settled = self.in_flight.is_empty() && !self.connection.is_receiving();
        self.shutdown.is_over(is_settled, self.now.instant)
    }

    pub(crate) async fn close(mut self) -> Result<(), WorkerError> {
        self.now = self.executor.clock.moment();
        self.emit_worker_event("worker-offline");
        self.save_state();
        tracing::info!(
            "worker stopped: {} tasks finished, {} deliveries returned",
            self.monitor.counters.drained,
            self.monitor.counters.returned
        );
        let deadline = self.executor.deadline;
        self.monitor.close(deadline).await;
        self.connection.close().await;
        match (self.shutdown.error().cloned(), self.in_flight.len()) {
            (Some(error), _) => Err(WorkerError::Broker(error)),
            (None, 0) => Ok(()),
            (None, count) => Err(WorkerError::Unsettled { count }),
        }
    }

    pub(crate) fn stop(&mut self, stop: Stop) {
        let is_first = !self.shutdown.is_requested();
        let is_busy = self.slots.busy() > 0;
        let stop = self.shutdown.request(stop, is_busy, self.now.instant);
        tracing::info!(
            "{stop:?} shutdown: {} deliveries in flight",
            self.in_flight.len()
        );
        self.connection.interrupt();
        // The newest delivery returns first, so that the head of the queue keeps
        // the order in which they were received.
        for key in self.in_flight.keys().into_iter().rev() {
            if let Some(entry) = self.in_flight.find(key) {
                if is_first && entry.state.is_reserved() {
                    self.monitor.counters.returned += 1;
                }
                if let Payload::Task { job, .. } = &entry.payload {
                    job.control.signal_shutdown();
                }
            }
            self.event(key, DeliveryEvent::Stop(stop));
        }
    }
}
