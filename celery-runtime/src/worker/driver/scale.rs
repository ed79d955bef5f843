//! Changes of the concurrency and the prefetch.

use crate::worker::driver::Driver;

impl Driver {
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
