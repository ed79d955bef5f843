//! Leases: the deliveries that this process holds, which it renews while it lives.
//!
//! kombu restores a delivery whose score in `unacked_index` is older than the
//! visibility timeout. A worker renews the scores of what it holds at a third of that
//! time, so that neither a long task nor a long wait for a slot makes its message run
//! twice. The owner of all these deliveries, which is this process, has an entry of its
//! own, which is renewed within seconds: other workers of this crate restore the
//! deliveries of an owner that stopped renewing it, long before the visibility timeout.
//!
//! This module has the state in memory; `renewal` talks to the server.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use celery_runtime::{DeliveryTag, env};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::keys::{DeliveryLocation, ParsedTag};

/// The time without a consumer, and without an attempt to start one, after which the
/// deliveries in hand are forgotten: their worker is gone.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// The deliveries that this process holds, on one server.
#[derive(Debug)]
pub(crate) struct Leases {
    /// The unique text at the start of each tag of this process.
    owner: String,
    next_consumer: AtomicU64,
    state: Mutex<LeaseState>,
    /// Wakes the renewal when the last consumer ends.
    stop: Notify,
}

#[derive(Debug, Default)]
struct LeaseState {
    held: BTreeSet<String>,
    /// Where the consumers wait for deliveries that were taken back.
    consumers: Vec<Weak<LostLeases>>,
    /// The number of consumers that are open.
    open: usize,
    /// The last time at which a consumer was open or was to be started.
    used_at: Option<Instant>,
    /// The last renewal of the owner, while that is supported.
    owner_renewed_at: Option<Instant>,
    /// Since when the owner has been renewed without a pause.
    renewed_since: Option<Instant>,
    /// Whether the server refuses the owner's entry.
    is_owner_refused: bool,
    /// Whether a task renews what this process holds.
    is_renewing: bool,
}

/// Deliveries that were taken back from one consumer.
#[derive(Debug, Default)]
pub(crate) struct LostLeases {
    tags: Mutex<Vec<DeliveryTag>>,
    changed: Notify,
}

impl LostLeases {
    /// Waits until deliveries were taken back, or until the leases are current again
    /// after a pause.
    pub(crate) async fn next(&self) -> Vec<DeliveryTag> {
        self.changed.notified().await;
        std::mem::take(&mut lock(&self.tags))
    }
}

/// An open consumer, which keeps the renewal alive.
#[derive(Debug)]
pub(crate) struct OpenConsumer {
    leases: Arc<Leases>,
    /// The text at the start of the consumer's tags.
    pub(crate) tag_prefix: String,
    pub(crate) lost: Arc<LostLeases>,
}

impl Leases {
    pub(crate) fn new() -> Self {
        Self {
            owner: env::uuid_simple(),
            next_consumer: AtomicU64::new(0),
            state: Mutex::default(),
            stop: Notify::new(),
        }
    }

    /// Adds deliveries that were received.
    pub(crate) fn hold<'a>(&self, tags: impl IntoIterator<Item = &'a str>) {
        let is_unacked = |tag: &&str| ParsedTag::parse(tag).location == DeliveryLocation::Unacked;
        let tags = tags.into_iter().filter(is_unacked).map(ToOwned::to_owned);
        self.lock().held.extend(tags);
    }

    /// Removes a delivery that is settled or deferred.
    pub(crate) fn release(&self, tag: &str) {
        self.lock().held.remove(tag);
    }

    /// Returns whether this process holds a delivery.
    pub(crate) fn holds(&self, tag: &str) -> bool {
        self.lock().held.contains(tag)
    }

    /// Returns whether no other worker may have restored the deliveries in hand: the
    /// owner was renewed within `rescue_after`, or is never rescued.
    pub(crate) fn are_current(&self, rescue_after: Duration) -> bool {
        let state = self.lock();
        let renewed = state.owner_renewed_at;
        rescue_after.is_zero()
            || state.is_owner_refused
            || renewed.is_some_and(|time| time.elapsed() < rescue_after)
    }

    /// Returns the text at the start of each tag of this process.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    pub(crate) fn held(&self) -> Vec<String> {
        self.lock().held.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        lock(&self.state)
    }

    /// Reports deliveries that the server does not have any more to all consumers.
    pub(crate) fn report(&self, missing: Vec<String>) {
        let mut state = self.lock();
        let lost: Vec<_> = missing
            .into_iter()
            .filter(|tag| state.held.remove(tag))
            .map(DeliveryTag::new)
            .collect();
        state.consumers.retain(|one| one.strong_count() > 0);
        for consumer in state.consumers.iter().filter_map(Weak::upgrade) {
            lock(&consumer.tags).extend_from_slice(&lost);
            if !lost.is_empty() {
                consumer.changed.notify_one();
            }
        }
    }

    /// Records a renewal of the owner. After a pause it wakes the consumers.
    pub(crate) fn owner_renewed(&self, rescue_after: Duration) {
        let was_current = self.are_current(rescue_after);
        let mut state = self.lock();
        let now = env::instant();
        let last = state.owner_renewed_at.replace(now);
        if last.is_none_or(|last| now - last > rescue_after / 2) {
            state.renewed_since = Some(now);
        }
        if !was_current {
            for consumer in state.consumers.iter().filter_map(Weak::upgrade) {
                consumer.changed.notify_one();
            }
        }
    }

    /// Returns whether owners that are not renewed are dead: this process has renewed its
    /// own for as long. After a pause of the server, or of this process, the others need
    /// time to renew theirs.
    pub(crate) fn knows_dead_owners(&self, rescue_after: Duration) -> bool {
        let since = self.lock().renewed_since;
        since.is_some_and(|since| since.elapsed() >= rescue_after)
    }

    /// Records that the server refuses the owner's entry.
    pub(crate) fn refuse_owner(&self) {
        self.lock().is_owner_refused = true;
    }

    pub(crate) fn is_owner_refused(&self) -> bool {
        self.lock().is_owner_refused
    }

    /// Opens a consumer. Returns it, and whether a renewal has to be started for it.
    pub(crate) fn open(self: &Arc<Self>) -> (OpenConsumer, bool) {
        let number = self.next_consumer.fetch_add(1, Ordering::Relaxed);
        let lost = Arc::new(LostLeases::default());
        let mut state = self.lock();
        state.open += 1;
        state.consumers.push(Arc::downgrade(&lost));
        let starts_renewal = !std::mem::replace(&mut state.is_renewing, true);
        let consumer = OpenConsumer {
            leases: Arc::clone(self),
            tag_prefix: format!("{}-{number}-", self.owner),
            lost,
        };
        (consumer, starts_renewal)
    }

    /// Forgets what this process holds if its last consumer closes. Returns then whether
    /// it still held deliveries.
    pub(crate) fn close_last(&self) -> Option<bool> {
        let mut state = self.lock();
        if state.open > 1 {
            return None;
        }
        state.owner_renewed_at = None;
        let held = std::mem::take(&mut state.held);
        Some(!held.is_empty())
    }

    /// Waits until the last consumer has ended.
    pub(crate) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Returns whether the renewal ends, because no consumer is open.
    pub(crate) fn ends_renewal(&self) -> bool {
        let mut state = self.lock();
        state.is_renewing = state.open > 0;
        !state.is_renewing
    }

    /// Begins the start of a consumer. Deliveries of a worker that is gone are
    /// forgotten.
    pub(crate) fn begin(&self) {
        let mut state = self.lock();
        let is_abandoned = |time: Instant| time.elapsed() > ABANDONED_AFTER;
        if state.open == 0 && state.used_at.is_some_and(is_abandoned) {
            state.held.clear();
        }
        state.used_at = Some(env::instant());
    }
}

impl Drop for OpenConsumer {
    fn drop(&mut self) {
        let mut state = self.leases.lock();
        state.open = state.open.saturating_sub(1);
        state.used_at = Some(env::instant());
        if state.open == 0 {
            self.leases.stop.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn missing_delivery_is_reported_unless_it_was_released() {
        let leases = Leases::new();
        let lost = Arc::new(LostLeases::default());
        leases.lock().consumers.push(Arc::downgrade(&lost));
        leases.hold(["a-0:q", "a-1:q", "raw:a-2:q"]);
        assert_eq!(leases.held(), ["a-0:q", "a-1:q"]);
        leases.release("a-0:q");
        leases.report(vec!["a-0:q".to_owned(), "a-1:q".to_owned()]);
        assert_eq!(lost.next().await, [DeliveryTag::new("a-1:q")]);
        assert!(!leases.holds("a-1:q"));
    }

    #[tokio::test(start_paused = true)]
    async fn deliveries_of_a_worker_that_is_gone_are_forgotten() {
        let leases = Leases::new();
        leases.begin();
        leases.hold(["a-0:q"]);
        tokio::time::advance(ABANDONED_AFTER).await;
        leases.begin();
        assert!(leases.holds("a-0:q"));
        tokio::time::advance(ABANDONED_AFTER + Duration::from_secs(1)).await;
        leases.begin();
        assert!(!leases.holds("a-0:q"));
    }

    #[tokio::test(start_paused = true)]
    async fn dead_owners_are_known_after_renewals_without_a_pause() {
        let after = Duration::from_secs(20);
        let leases = Leases::new();
        let renew_for = async |steps: u32| {
            for _ in 0..steps {
                tokio::time::advance(Duration::from_secs(5)).await;
                leases.owner_renewed(after);
            }
        };
        renew_for(4).await;
        assert!(!leases.knows_dead_owners(after));
        renew_for(1).await;
        assert!(leases.knows_dead_owners(after));
        tokio::time::advance(Duration::from_secs(6)).await;
        renew_for(1).await;
        assert!(!leases.knows_dead_owners(after));
    }

    #[tokio::test(start_paused = true)]
    async fn leases_are_current_until_the_owner_counts_as_dead() {
        let after = Duration::from_secs(24);
        let leases = Leases::new();
        assert!(!leases.are_current(after) && leases.are_current(Duration::ZERO));
        leases.owner_renewed(after);
        assert!(leases.are_current(after));
        tokio::time::advance(after).await;
        assert!(!leases.are_current(after));
    }
}
