//! Deferred deliveries that are due soon and wait in the consumer.

use std::collections::BTreeSet;
use std::sync::Mutex;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::sync::lock;

/// Delivery tags, ordered by the time at which they are due.
#[derive(Debug, Default)]
pub(super) struct DueQueue {
    tags: Mutex<BTreeSet<(Instant, u64)>>,
    changed: Notify,
}

impl DueQueue {
    pub(super) fn insert(&self, due: Instant, tag: u64) {
        lock(&self.tags).insert((due, tag));
        self.changed.notify_one();
    }

    /// Removes and returns a tag that is due.
    pub(super) fn pop_due(&self) -> Option<u64> {
        let mut tags = lock(&self.tags);
        let (due, _) = tags.first()?;
        if *due > Instant::now() {
            return None;
        }
        tags.pop_first().map(|(_, tag)| tag)
    }

    /// Waits until a tag is due.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a cancelled wait removes nothing.
    pub(super) async fn wait_due(&self) {
        loop {
            let first = lock(&self.tags).first().map(|(due, _)| *due);
            let Some(first) = first else {
                self.changed.notified().await;
                continue;
            };
            // The timer comes first: a delivery that is due stays due, whatever
            // is inserted meanwhile.
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(first) => return,
                () = self.changed.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tags_are_returned_in_the_order_they_are_due() {
        let queue = DueQueue::default();
        let now = Instant::now();
        queue.insert(now + Duration::from_millis(80), 2);
        queue.insert(now + Duration::from_millis(30), 1);
        assert_eq!(queue.pop_due(), None);
        queue.wait_due().await;
        assert_eq!(now.elapsed(), Duration::from_millis(30));
        assert_eq!((queue.pop_due(), queue.pop_due()), (Some(1), None));
        queue.wait_due().await;
        assert_eq!(queue.pop_due(), Some(2));
    }
}
