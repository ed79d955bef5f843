//! What a worker counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::env;

/// Counts for `inspect stats`, heartbeats and the last line of the log.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) started_at: Instant,
    /// Tasks that were started, by name.
    pub(crate) by_task: BTreeMap<Arc<str>, u64>,
    /// Tasks that were started.
    pub(crate) processed: u64,
    /// Deliveries that were given back when the worker stopped.
    pub(crate) returned: u64,
    /// Tasks that ended after the worker was told to stop.
    pub(crate) drained: u64,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            started_at: env::instant(),
            by_task: BTreeMap::new(),
            processed: 0,
            returned: 0,
            drained: 0,
        }
    }

    pub(crate) fn start(&mut self, task: &Arc<str>) {
        self.processed += 1;
        match self.by_task.get_mut(task) {
            Some(count) => *count += 1,
            None => {
                self.by_task.insert(Arc::clone(task), 1);
            }
        }
    }
}
