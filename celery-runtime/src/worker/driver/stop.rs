//! Shutdown: its stages and the end of the driver.

use std::time::Instant;

use crate::boundary::ServiceError;
use crate::worker::driver::{DeliveryEvent, Driver, Payload, Stop};
use crate::worker::error::WorkerError;

/// The progress of a shutdown.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    /// The stage, once a shutdown was requested.
    pub(crate) stage: Option<Stop>,
    /// When a soft shutdown becomes a cold one.
    pub(crate) soft_until: Option<Instant>,
    /// When the driver ends with unsettled deliveries; set once no task runs.
    pub(crate) give_up_at: Option<Instant>,
    /// The error that caused the shutdown.
    pub(crate) error: Option<ServiceError>,
}

impl Driver {
    pub(crate) fn is_over(&self) -> bool {
        let settled = self.in_flight.is_empty() && !self.connection.is_receiving;
        let given_up = self
            .shutdown
            .give_up_at
            .is_some_and(|time| time <= self.now.instant);
        // `worker_enable_soft_shutdown_on_idle` waits also without a running task.
        if self.shutdown.soft_until.is_some() && self.settings.soft_shutdown_on_idle {
            return false;
        }
        self.shutdown.stage.is_some() && (settled || given_up)
    }

    pub(crate) async fn close(mut self) -> Result<(), WorkerError> {
        self.now = self.clock.moment();
        self.emit_worker_event("worker-offline");
        self.save_state();
        tracing::info!(
            "worker stopped: {} tasks finished, {} deliveries returned",
            self.monitor.counters.drained,
            self.monitor.counters.returned
        );
        let deadline = self.executor.deadline;
        self.monitor.dispatcher.close(deadline).await;
        if let Some(consumer) = &self.connection.consumer {
            let closed = tokio::time::timeout(self.executor.deadline, consumer.close()).await;
            if let Ok(Err(error)) = closed {
                tracing::warn!("{error}");
            }
        }
        match (self.shutdown.error.clone(), self.in_flight.len()) {
            (Some(error), _) => Err(WorkerError::Broker(error)),
            (None, 0) => Ok(()),
            (None, count) => Err(WorkerError::Unsettled { count }),
        }
    }

    pub(crate) fn stop(&mut self, stop: Stop) {
        let stop = self.apply_soft_shutdown(stop);
        tracing::info!(
            "{stop:?} shutdown: {} deliveries in flight",
            self.in_flight.len()
        );
        let is_first = self.shutdown.stage.is_none();
        self.shutdown.stage = Some(stop);
        if let Some(consumer) = &self.connection.consumer {
            consumer.interrupt();
        }
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

    /// Turns a cold shutdown into a soft one if `worker_soft_shutdown_timeout` is
    /// set.
    pub(crate) fn apply_soft_shutdown(&mut self, stop: Stop) -> Stop {
        let timeout = self.settings.soft_shutdown_timeout;
        let has_work = self.slots.busy() > 0 || self.settings.soft_shutdown_on_idle;
        let is_new = self.shutdown.soft_until.is_none() && self.shutdown.stage != Some(Stop::Soft);
        if stop == Stop::Cold && !timeout.is_zero() && has_work && is_new {
            self.shutdown.soft_until = Some(self.now.instant + timeout);
            return Stop::Soft;
        }
        if stop == Stop::Cold {
            self.shutdown.soft_until = None;
        }
        stop
    }
}
