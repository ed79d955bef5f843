//! Counters of a worker: [`Counters`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Counters for `inspect stats`, heartbeats and the log message at the end.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) started_at: Instant,
    /// Started tasks, by name.
    pub(crate) by_task: BTreeMap<Arc<str>, u64>,
    /// Started tasks.
    pub(crate) processed: u64,
    /// Deliveries that the shutdown returned to their queues.
    pub(crate) returned: u64,
    /// Deliveries with which the worker ended while it was unknown whether their message
    /// is still on the broker.
    pub(crate) in_doubt: usize,
    /// Tasks that ended after the shutdown began.
    pub(crate) drained: u64,
}

impl Counters {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started_at: now,
            by_task: BTreeMap::new(),
            processed: 0,
            returned: 0,
            in_doubt: 0,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn started_tasks_are_counted_by_name() {
        let mut counters = Counters::new(Instant::now());
        for task in ["a", "b", "a"] {
            counters.start(&task.into());
        }
        let by_task: Vec<_> = counters
            .by_task
            .iter()
            .map(|(task, n)| (&**task, *n))
            .collect();
        assert_eq!(by_task, [("a", 2), ("b", 1)]);
        assert_eq!(counters.processed, 3);
    }
}
