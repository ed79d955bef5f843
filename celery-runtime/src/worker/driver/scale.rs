//! Concurrency, autoscaling and the prefetch window.

use crate::worker::driver::Driver;

impl Driver {
    /// Returns how many deliveries the worker may hold for running and waiting
    /// tasks.
    pub(crate) fn window(&self) -> usize {
        // With autoscaling the backlog has to exceed the current slots to be seen.
        window(self.slots.max_concurrency(), self.multiplier())
    }

    pub(crate) fn multiplier(&self) -> usize {
        if self.settings.disable_prefetch {
            1
        } else {
            self.limits.multiplier
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
        let prefetch = prefetch(self.window(), self.limits.multiplier);
        self.connection.supervisor.options.prefetch = prefetch;
        if let Some(consumer) = &self.connection.consumer {
            consumer.set_prefetch(prefetch);
        }
    }

    /// Raises the concurrency to the backlog, with autoscaling.
    pub(crate) fn scale_up(&mut self) {
        if let Some(size) = self.slots.scale_up(self.deliveries.pending) {
            self.set_concurrency(size);
        }
    }

    /// Lowers the concurrency to the backlog, with autoscaling.
    pub(crate) fn scale_down(&mut self) {
        if let Some(size) = self.slots.scale_down(self.deliveries.pending) {
            self.set_concurrency(size);
        }
    }
}

/// Returns the broker's prefetch: none with a multiplier of 1, so that the worker
/// holds no message that another worker could start at once.
pub(crate) fn prefetch(window: usize, multiplier: usize) -> u16 {
    match multiplier {
        1 => 0,
        _ => u16::try_from(window).unwrap_or(u16::MAX),
    }
}

/// Returns how many deliveries a worker may hold, at most what AMQP's 16-bit
/// prefetch can express.
pub(crate) fn window(concurrency: usize, multiplier: usize) -> usize {
    match multiplier {
        0 => usize::from(u16::MAX),
        _ => concurrency
            .saturating_mul(multiplier)
            .min(usize::from(u16::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplier_of_one_prefetches_nothing() {
        let prefetch = |multiplier| prefetch(window(10, multiplier), multiplier);
        assert_eq!([1, 2, 4].map(prefetch), [0, 20, 40]);
        assert_eq!(prefetch(0), u16::MAX);
    }
}
