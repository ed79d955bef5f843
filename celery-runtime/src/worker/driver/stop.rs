//! Shutdown: its stages and the end of the driver.

use crate::worker::core::counters::Counters;
use crate::worker::delivery::in_flight::InFlightDelivery;
use crate::worker::driver::{DeliveryEvent, Driver, Payload, Stop};
use crate::worker::error::WorkerError;

impl Driver {
    pub(crate) fn is_over(&self) -> bool {
        let is_settled = self.in_flight.is_empty() && !self.connection.is_receiving();
        let is_restoring = || self.in_flight.iter().any(|one| one.state.is_restoring());
        let now = self.now.instant;
        self.shutdown.is_over(is_settled, is_restoring(), now)
    }

    /// Restores the messages of tasks that cannot start any more.
    pub(crate) fn give_up(&mut self) {
        for key in self.in_flight.keys().into_iter().rev() {
            self.event(key, DeliveryEvent::GiveUp);
        }
    }

    pub(crate) async fn close(mut self) -> Result<(), WorkerError> {
        self.now = self.executor.clock.moment();
        self.emit_worker_event("worker-offline");
        self.save_state();
        self.report_left();
        let Counters {
            processed,
            returned,
            in_doubt,
            ..
        } = self.monitor.counters;
        let count = self.in_flight.len();
        let deadline = self.executor.deadline;
        self.monitor.close(deadline).await;
        let closed = self.connection.close(self.shutdown.time_to_close()).await;
        let failed = closed.is_err();
        tracing::info!(
            "worker stopped: {processed} tasks run, {returned} deliveries returned, {count} not \
             settled, {in_doubt} in doubt"
        );
        match self.shutdown.error().cloned().or(closed.err()) {
            error if failed || count > 0 || in_doubt > 0 => Err(WorkerError::Unsettled {
                count,
                in_doubt,
                error,
            }),
            Some(error) => Err(WorkerError::Broker(error)),
            None => Ok(()),
        }
    }

    /// Logs each delivery that is left. Those whose message is still being restored are in
    /// doubt.
    fn report_left(&mut self) {
        for key in self.in_flight.keys() {
            let is_restoring = |one: &InFlightDelivery| one.state.is_restoring();
            if self.in_flight.find(key).is_some_and(is_restoring) {
                self.report_in_doubt(key);
                self.in_flight.remove(key);
            }
        }
        for delivery in self.in_flight.iter() {
            let queue = &delivery.queue;
            match &delivery.payload {
                Payload::Task { job, .. } if delivery.state.is_acknowledged() => tracing::error!(
                    "task {} of queue {queue}: its result and follow-up messages may be missing, \
                     because broker or backend did not answer",
                    job.id
                ),
                Payload::Task { job, .. } => tracing::error!(
                    "task {} of queue {queue}: its message is not settled, because broker or \
                     backend did not answer; the broker delivers it again",
                    job.id
                ),
                Payload::Rejected(_) => tracing::error!(
                    "a message of queue {queue} is not settled; the broker delivers it again"
                ),
            }
        }
    }

    pub(crate) fn stop(&mut self, stop: Stop) {
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
            if let Some(entry) = self.in_flight.find(key)
                && let Payload::Task { job, .. } = &entry.payload
            {
                job.control.signal_shutdown();
            }
            self.event(key, DeliveryEvent::Stop(stop));
        }
    }
}
