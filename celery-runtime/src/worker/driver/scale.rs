//! How many tasks at a time, and how much is held for them.

use crate::worker::driver::Driver;

impl Driver {
    /// Deliveries that may be held for tasks that run or will.
    pub(crate) fn window(&self) -> usize {
        // As many as there could be, or nobody would notice that more are needed.
        let slots = self.autoscale.map_or(self.concurrency, |(most, _)| most);
        window(slots, self.multiplier())
    }

    pub(crate) fn multiplier(&self) -> usize {
        match self.settings.disable_prefetch {
            true => 1,
            false => self.limits.multiplier,
        }
    }

    pub(crate) fn set_concurrency(&mut self, size: usize) {
        if size == self.concurrency {
            return;
        }
        tracing::info!("{} tasks at the same time", size);
        let threads = &self.executor.services.blocking;
        if size > self.threads {
            threads.grow(size - self.threads);
            self.threads = size;
        } else {
            // Those in use go on; their slots are not given to others.
            self.threads -= threads.shrink(self.threads - size);
        }
        self.concurrency = size;
        if let Some(children) = &self.children {
            children.resize(size);
        }
        self.set_prefetch();
    }

    pub(crate) fn set_prefetch(&mut self) {
        let prefetch = prefetch(self.window(), self.limits.multiplier);
        self.supervisor.options.prefetch = prefetch;
        if let Some(consumer) = &self.consumer {
            consumer.set_prefetch(prefetch);
        }
    }

    /// More slots for more work, where their number follows it.
    pub(crate) fn scale_up(&mut self) {
        if let Some((most, _)) = self.autoscale
            && self.pending > self.concurrency
            && self.concurrency < most
        {
            self.set_concurrency(self.pending.min(most));
        }
    }

    pub(crate) fn scale_down(&mut self) {
        if let Some((_, least)) = self.autoscale
            && self.pending < self.concurrency
        {
            self.set_concurrency(self.pending.max(least));
        }
    }
}

/// With one message for each task that can run, nothing is pushed ahead that
/// another worker could start at once.
pub(crate) fn prefetch(window: usize, multiplier: usize) -> u16 {
    match multiplier {
        1 => 0,
        _ => u16::try_from(window).unwrap_or(u16::MAX),
    }
}

/// AMQP counts in 16 bits, which also is more than enough to keep busy.
pub(crate) fn window(concurrency: usize, multiplier: usize) -> usize {
    match multiplier {
        0 => usize::from(u16::MAX),
        _ => concurrency
            .saturating_mul(multiplier)
            .min(usize::from(u16::MAX)),
    }
}
