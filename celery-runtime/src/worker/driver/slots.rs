//! The line for a slot, and the slots.

use crate::task::RateLimit;
use crate::worker::driver::{DeliveryEvent, DeliveryKey, Driver, Payload};

impl Driver {
    /// In line for a slot, or later where tasks of its type are limited.
    pub(crate) fn line_up(&mut self, key: DeliveryKey) {
        if let Some(entry) = self.entries.find(key)
            && let Payload::Task { job, .. } = &entry.work
            && let Some(turn) = self.rates.turn(&job.task, &job.id, self.now.instant)
        {
            return self.event(key, DeliveryEvent::RateLimited(turn));
        }
        self.line.push_back(key);
    }

    pub(crate) fn free_slot(&mut self) {
        self.busy = self.busy.saturating_sub(1);
        if self.stopping.is_some() {
            self.counters.drained += 1;
        }
    }

    /// The limits of declarations and settings.
    pub(crate) fn limit_rates(&mut self) {
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
                    self.rates.set(&task.name, per_second);
                    self.rate_limits
                        .insert(task.name.to_string(), limit.to_owned());
                }
                Err(cause) => tracing::error!(
                    "task {} is not limited: cannot read its rate limit {limit:?}: {cause}",
                    task.name
                ),
            }
        }
    }
}
