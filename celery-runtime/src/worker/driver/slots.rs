//! Concurrency slots and the queue of deliveries that wait for one.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::task::RateLimit;
use crate::worker::driver::{DeliveryEvent, DeliveryKey, Driver, Payload};
use crate::worker::isolated::Children;

/// The slots of a worker: as many tasks run at the same time.
pub(crate) struct Slots {
    /// Deliveries that wait for a slot.
    pub(crate) ready: VecDeque<DeliveryKey>,
    pub(crate) concurrency: usize,
    /// Slots in use; more than `concurrency` right after a reduction.
    pub(crate) busy: usize,
    /// Threads for blocking tasks, one for each slot.
    pub(crate) threads: usize,
    /// Maximum and minimum of `concurrency` with autoscaling.
    pub(crate) autoscale: Option<(usize, usize)>,
    /// The child processes, if there are isolated tasks.
    pub(crate) children: Option<Arc<Children>>,
}

impl Slots {
    pub(crate) fn new(
        concurrency: usize,
        autoscale: Option<(usize, usize)>,
        children: Option<Arc<Children>>,
    ) -> Self {
        Self {
            ready: VecDeque::new(),
            concurrency,
            busy: 0,
            threads: concurrency,
            autoscale,
            children,
        }
    }

    /// The highest concurrency that autoscaling may reach.
    pub(crate) fn max_concurrency(&self) -> usize {
        self.autoscale.map_or(self.concurrency, |(max, _)| max)
    }
}

impl Driver {
    /// Queues a delivery for a slot, or defers it under a rate limit.
    pub(crate) fn enqueue(&mut self, key: DeliveryKey) {
        if let Some(entry) = self.deliveries.in_flight.find(key)
            && let Payload::Task { job, .. } = &entry.payload
            && let Some(start_at) = self
                .rates
                .buckets
                .reserve(&job.task, &job.id, self.now.instant)
        {
            return self.event(key, DeliveryEvent::RateLimited(start_at));
        }
        self.slots.ready.push_back(key);
    }

    pub(crate) fn release_slot(&mut self) {
        self.slots.busy = self.slots.busy.saturating_sub(1);
        if self.shutdown.stage.is_some() {
            self.monitor.counters.drained += 1;
        }
    }

    /// Loads the rate limits of declarations and settings.
    pub(crate) fn load_rate_limits(&mut self) {
        if self.settings.disable_rate_limits {
            return;
        }
        let default = self.settings.default_rate_limit.as_deref();
        for task in self.decoder.registry.iter() {
            let Some(limit) = task.declaration.options.rate_limit.or(default) else {
                continue;
            };
            match RateLimit::parse(limit) {
                Ok(RateLimit { per_second: None }) => {}
                Ok(RateLimit { per_second }) => {
                    self.rates
                        .buckets
                        .set(&task.name, per_second, self.now.instant);
                    self.rates
                        .texts
                        .insert(task.name.to_string(), limit.to_owned());
                }
                Err(cause) => tracing::error!(
                    "task {} has no rate limit: cannot read {limit:?}: {cause}",
                    task.name
                ),
            }
        }
    }
}
