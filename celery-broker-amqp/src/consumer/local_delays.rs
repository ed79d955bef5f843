//! Deferred deliveries that wait in the consumer.

use std::collections::BTreeSet;
use std::sync::Mutex;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::sync::lock;

/// Delivery tags, ordered by the time at which they are due.
#[derive(Debug, Default)]
pub(super) struct LocalDelays {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    tags: BTreeSet<(Instant, u64)>,
    is_closed: bool,
}

impl LocalDelays {
    /// Adds a tag. Returns `false` after [`close`](Self::close).
    pub(super) fn insert(&self, due: Instant, tag: u64) -> bool {
        let mut state = lock(&self.state);
        if state.is_closed {
            return false;
        }
        state.tags.insert((due, tag));
        self.changed.notify_one();
        true
    }

    /// Removes and returns a tag that is due.
    pub(super) fn pop_due(&self) -> Option<u64> {
        let tags = &mut lock(&self.state).tags;
        let (due, _) = tags.first()?;
        if *due > Instant::now() {
            return None;
        }
        tags.pop_first().map(|(_, tag)| tag)
    }

    /// Removes and returns all tags, and accepts no more.
    pub(super) fn close(&self) -> Vec<u64> {
        let mut state = lock(&self.state);
        state.is_closed = true;
        let tags = std::mem::take(&mut state.tags);
        tags.into_iter().map(|(_, tag)| tag).collect()
    }

    /// Waits until a tag is due.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a cancelled wait removes nothing.
    pub(super) async fn wait_due(&self) {
        loop {
            let first = lock(&self.state).tags.first().map(|(due, _)| *due);
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
        let delays = LocalDelays::default();
        let now = Instant::now();
        assert!(delays.insert(now + Duration::from_millis(80), 2));
        assert!(delays.insert(now + Duration::from_millis(30), 1));
        assert_eq!(delays.pop_due(), None);
        delays.wait_due().await;
        assert_eq!(now.elapsed(), Duration::from_millis(30));
        assert_eq!((delays.pop_due(), delays.pop_due()), (Some(1), None));
        delays.wait_due().await;
        assert_eq!(delays.pop_due(), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn closed_delays_return_every_tag_and_accept_no_more() {
        let delays = LocalDelays::default();
        let now = Instant::now();
        assert!(delays.insert(now + Duration::from_secs(3_600), 2));
        assert!(delays.insert(now, 1));
        assert_eq!(delays.close(), [1, 2]);
        assert!(!delays.insert(now, 3));
        assert_eq!((delays.pop_due(), delays.close()), (None, vec![]));
    }
}
