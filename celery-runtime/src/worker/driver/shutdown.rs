//! The worker's end.

use crate::env;
use crate::worker::driver::{DeliveryEvent, Driver, Payload, Stop};
use crate::worker::error::WorkerError;

impl Driver {
    pub(crate) fn is_over(&self) -> bool {
        let settled = self.entries.is_empty() && !self.receiving;
        let given_up = self.give_up_at.is_some_and(|time| time <= env::instant());
        // Asked to wait even where nothing is to be waited for.
        if self.soft_until.is_some() && self.settings.soft_shutdown_on_idle {
            return false;
        }
        self.stopping.is_some() && (settled || given_up)
    }

    pub(crate) async fn close(mut self) -> Result<(), WorkerError> {
        self.now = self.clock.moment();
        self.tell_of_worker("worker-offline");
        self.save_state();
        tracing::info!(
            "the worker has stopped: {} tasks finished, {} deliveries returned",
            self.counters.drained,
            self.counters.returned
        );
        let deadline = self.executor.deadline;
        self.events.close(deadline).await;
        if let Some(consumer) = &self.consumer {
            let closed = tokio::time::timeout(self.executor.deadline, consumer.close()).await;
            if let Ok(Err(error)) = closed {
                tracing::warn!("{error}");
            }
        }
        match (self.failure.clone(), self.entries.len()) {
            (Some(error), _) => Err(WorkerError::Broker(error)),
            (None, 0) => Ok(()),
            (None, count) => Err(WorkerError::Unsettled { count }),
        }
    }

    pub(crate) fn stop(&mut self, stop: Stop) {
        let stop = self.soften(stop);
        tracing::info!("{stop:?} stop: {} deliveries in hand", self.entries.len());
        let is_first = self.stopping.is_none();
        self.stopping = Some(stop);
        if let Some(consumer) = &self.consumer {
            consumer.interrupt();
        }
        // The last one taken goes back first, so that they line up at the
        // head of the queue in the order in which they were taken.
        for key in self.entries.keys().into_iter().rev() {
            if let Some(entry) = self.entries.find(key) {
                if is_first && entry.life.is_reserved() {
                    self.counters.returned += 1;
                }
                if let Payload::Task { job, .. } = &entry.work {
                    job.control.signal_shutdown();
                }
            }
            self.event(key, DeliveryEvent::Stop(stop));
        }
    }

    /// A cold stop gives running tasks some time where it is set up to.
    pub(crate) fn soften(&mut self, stop: Stop) -> Stop {
        let timeout = self.settings.soft_shutdown_timeout;
        let worth_it = self.busy > 0 || self.settings.soft_shutdown_on_idle;
        let is_new = self.soft_until.is_none() && self.stopping != Some(Stop::Soft);
        if stop == Stop::Cold && !timeout.is_zero() && worth_it && is_new {
            self.soft_until = Some(self.now.instant + timeout);
            return Stop::Soft;
        }
        if stop == Stop::Cold {
            self.soft_until = None;
        }
        stop
    }
}
