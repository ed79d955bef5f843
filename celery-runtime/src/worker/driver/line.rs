//! The line for a slot, and the slots.

use super::{Driver, Event, Key, Work};
use crate::worker::rates;

impl Driver {
    /// In line for a slot, or later where tasks of its type are limited.
    pub(super) fn line_up(&mut self, key: Key) {
        if let Some(entry) = self.entries.find(key)
            && let Work::Task { job, .. } = &entry.work
            && let Some(turn) = self.rates.turn(&job.task, &job.id, self.now.instant)
        {
            return self.event(key, Event::Hold(turn));
        }
        self.line.push_back(key);
    }

    pub(super) fn free_slot(&mut self) {
        self.busy = self.busy.saturating_sub(1);
        if self.stopping.is_some() {
            self.tally.drained += 1;
        }
    }

    /// The limits of declarations and settings.
    pub(super) fn limit_rates(&mut self) {
        if self.settings.disable_rate_limits {
            return;
        }
        let default = self.settings.default_rate_limit.as_deref();
        for task in self.intake.registry.iter() {
            let Some(limit) = task.declaration.options.rate_limit.or(default) else {
                continue;
            };
            match rates::parse(limit) {
                Ok(rate @ Some(_)) => {
                    self.rates.set(&task.name, rate);
                    self.rate_limits
                        .insert(task.name.to_string(), limit.to_owned());
                }
                Ok(None) => {}
                Err(cause) => tracing::error!(
                    "task {} is not limited: cannot read its rate limit {limit:?}: {cause}",
                    task.name
                ),
            }
        }
    }
}
