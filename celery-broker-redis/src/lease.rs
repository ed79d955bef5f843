//! Leases: the deliveries that a worker of this process holds, which it renews while it
//! lives.
//!
//! kombu restores a delivery whose score in `unacked_index` is older than the
//! visibility timeout. A worker renews the scores of what it holds at a third of that
//! time, so that neither a long task nor a long wait for a slot makes its message run
//! twice. The owner of all these deliveries, which is one worker, has an entry of its
//! own, which is renewed within seconds: other workers of this crate restore the
//! deliveries of an owner that stopped renewing it, long before the visibility timeout.
//!
//! This module has the state in memory; `renewal` talks to the server.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use celery_runtime::{DeliveryOwner, DeliveryTag, env};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::keys::{DeliveryLocation, ParsedTag};

/// The leases of all workers that consume with one broker.
#[derive(Debug, Default)]
pub(crate) struct LeaseRegistry {
    all: Mutex<Vec<Arc<Leases>>>,
}

/// The deliveries that one worker holds.
#[derive(Debug)]
pub(crate) struct Leases {
    /// The unique text at the start of each tag of the worker.
    owner: String,
    /// Whether the worker exists.
    worker: Weak<DeliveryOwner>,
    next_consumer: AtomicU64,
    state: Mutex<LeaseState>,
    /// Wakes the renewal when a consumer ends.
    ended: Notify,
    /// Wakes the worker after deliveries were taken back, or when its leases are current
    /// again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct LeaseState {
    held: BTreeSet<String>,
    /// Deliveries that were taken back, until the worker has read them.
    lost: Vec<DeliveryTag>,
    /// The queues of each open consumer.
    open: Vec<Vec<String>>,
    /// Whether the last consumer was closed.
    is_closed: bool,
    /// The last renewal of the owner, while that is supported.
    owner_renewed_at: Option<Instant>,
    /// Since when the owner has been renewed without a pause.
    renewed_since: Option<Instant>,
    /// Whether the server refuses the owner's entry.
    is_owner_refused: bool,
    /// The task that renews what the worker holds.
    renewal: Option<JoinHandle<()>>,
}

/// An open consumer of a worker.
#[derive(Debug)]
pub(crate) struct OpenConsumer {
    pub(crate) leases: Arc<Leases>,
    /// The text at the start of the consumer's tags.
    pub(crate) tag_prefix: String,
    queues: Vec<String>,
    /// A consumer keeps the leases of its worker alive.
    _worker: Arc<DeliveryOwner>,
}

impl LeaseRegistry {
    /// Returns the leases of a worker.
    pub(crate) fn of(&self, worker: &Arc<DeliveryOwner>) -> Arc<Leases> {
        let mut all = lock(&self.all);
        let is_its = |one: &&Arc<Leases>| Weak::ptr_eq(&one.worker, &Arc::downgrade(worker));
        if let Some(leases) = all.iter().find(is_its) {
            return Arc::clone(leases);
        }
        let leases = Arc::new(Leases::new(Arc::downgrade(worker)));
        all.push(Arc::clone(&leases));
        leases
    }

    /// Adds deliveries that were received or found. Those of a worker that is gone are
    /// not added.
    pub(crate) fn hold<'a>(&self, tags: impl IntoIterator<Item = &'a str>) {
        for tag in tags {
            if let Some(leases) = self.find(tag) {
                leases.hold(tag);
            }
        }
    }

    /// Removes a delivery that is settled or deferred.
    pub(crate) fn release(&self, tag: &str) {
        if let Some(leases) = self.find(tag) {
            leases.lock().held.remove(tag);
        }
    }

    /// Returns whether a worker of this process holds a delivery.
    pub(crate) fn holds(&self, tag: &str) -> bool {
        self.find(tag).is_some_and(|leases| leases.holds(tag))
    }

    /// Removes the leases of a worker that is gone.
    pub(crate) fn remove(&self, leases: &Arc<Leases>) {
        lock(&self.all).retain(|one| !Arc::ptr_eq(one, leases));
    }

    fn find(&self, tag: &str) -> Option<Arc<Leases>> {
        let all = lock(&self.all);
        let is_its = |one: &&Arc<Leases>| tag.starts_with(&*one.owner);
        all.iter().find(is_its).map(Arc::clone)
    }
}

impl Leases {
    fn new(worker: Weak<DeliveryOwner>) -> Self {
        Self {
            owner: env::uuid_simple(),
            worker,
            next_consumer: AtomicU64::new(0),
            state: Mutex::default(),
            ended: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// Returns the text at the start of each tag of the worker.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// Returns whether the worker holds a delivery.
    pub(crate) fn holds(&self, tag: &str) -> bool {
        self.lock().held.contains(tag)
    }

    /// Returns whether an open consumer of the worker has the queue.
    pub(crate) fn consumes(&self, queue: &str) -> bool {
        let has_queue = |queues: &Vec<String>| queues.iter().any(|one| one == queue);
        self.lock().open.iter().any(has_queue)
    }

    /// Returns whether the worker has an open consumer.
    pub(crate) fn is_open(&self) -> bool {
        !self.lock().open.is_empty()
    }

    pub(crate) fn hold(&self, tag: &str) {
        if ParsedTag::parse(tag).location == DeliveryLocation::Unacked {
            self.lock().held.insert(tag.to_owned());
        }
    }

    pub(crate) fn held(&self) -> Vec<String> {
        self.lock().held.iter().cloned().collect()
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

    /// Records that the server does not have these deliveries any more.
    pub(crate) fn report(&self, missing: Vec<String>) {
        let mut state = self.lock();
        let before = state.lost.len();
        for tag in missing {
            if state.held.remove(&tag) {
                state.lost.push(DeliveryTag::new(tag));
            }
        }
        if state.lost.len() > before {
            self.changed.notify_one();
        }
    }

    /// Waits until deliveries were taken back, or until the leases are current again after
    /// a pause. Returns the deliveries.
    pub(crate) async fn lost(&self) -> Vec<DeliveryTag> {
        self.changed.notified().await;
        std::mem::take(&mut self.lock().lost)
    }

    /// Records a renewal of the owner that was requested at this time. `is_written` is
    /// false if the server has kept the entry as it was.
    pub(crate) fn owner_renewed(&self, at: Instant, rescue_after: Duration, is_written: bool) {
        let was_current = self.are_current(rescue_after);
        let mut state = self.lock();
        let last = state.owner_renewed_at.replace(at);
        let has_paused = last.is_none_or(|last| at - last > rescue_after / 2);
        if !is_written {
            state.renewed_since = None;
        } else if has_paused || state.renewed_since.is_none() {
            state.renewed_since = Some(at);
        }
        if !was_current && last.is_some() {
            self.changed.notify_one();
        }
    }

    /// Returns whether owners that are not renewed are dead: this worker has renewed its
    /// own for as long. After a pause of the server, or of this process, the others need
    /// time to renew theirs.
    pub(crate) fn knows_dead_owners(&self, rescue_after: Duration) -> bool {
        let since = self.lock().renewed_since;
        since.is_some_and(|since| since.elapsed() >= rescue_after)
    }

    /// Records that the server refuses the owner's entry. Returns whether it has refused
    /// it from the beginning, so that no other worker takes the owner for dead.
    pub(crate) fn refuse_owner(&self) -> bool {
        let mut state = self.lock();
        state.is_owner_refused |= state.owner_renewed_at.is_none();
        state.is_owner_refused
    }

    pub(crate) fn is_owner_refused(&self) -> bool {
        self.lock().is_owner_refused
    }

    /// Opens a consumer of the worker.
    pub(crate) fn open(
        self: &Arc<Self>,
        worker: &Arc<DeliveryOwner>,
        queues: &[String],
    ) -> OpenConsumer {
        let number = self.next_consumer.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.open.push(queues.to_vec());
        state.is_closed = false;
        OpenConsumer {
            leases: Arc::clone(self),
            tag_prefix: format!("{}-{number}-", self.owner),
            queues: queues.to_vec(),
            _worker: Arc::clone(worker),
        }
    }

    /// Starts the renewal, unless it runs. It ends with its runtime.
    pub(crate) fn start_renewal(&self, start: impl FnOnce() -> JoinHandle<()>) {
        let mut state = self.lock();
        if state.renewal.as_ref().is_none_or(JoinHandle::is_finished) {
            state.renewal = Some(start());
        }
    }

    /// Forgets what the worker holds if its last consumer closes. Returns then whether it
    /// still held deliveries.
    pub(crate) fn close_last(&self) -> Option<bool> {
        let mut state = self.lock();
        if state.open.len() > 1 {
            return None;
        }
        state.is_closed = true;
        state.owner_renewed_at = None;
        state.renewed_since = None;
        let held = std::mem::take(&mut state.held);
        Some(!held.is_empty())
    }

    /// Waits until a consumer has ended.
    pub(crate) async fn consumer_ended(&self) {
        self.ended.notified().await;
    }

    /// Returns whether the worker is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.worker.strong_count() == 0
    }

    /// Returns whether the worker has closed its last consumer.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        lock(&self.state)
    }
}

impl Drop for OpenConsumer {
    fn drop(&mut self) {
        let mut state = self.leases.lock();
        if let Some(index) = state.open.iter().position(|one| *one == self.queues) {
            state.open.swap_remove(index);
        }
        drop(state);
        self.leases.ended.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn missing_delivery_is_reported_unless_it_was_released() {
        let (registry, worker) = (LeaseRegistry::default(), Arc::default());
        let leases = registry.of(&worker);
        let tag = |number| format!("{}-0-{number}:q", leases.owner());
        let [first, second] = [tag(0), tag(1)];
        registry.hold([&*first, &*second, "other-0-0:q", "raw:a-2:q"]);
        assert_eq!(leases.held(), [first.clone(), second.clone()]);
        registry.release(&first);
        leases.report(vec![first, second.clone()]);
        assert!(!registry.holds(&second));
        assert_eq!(leases.lost().await, [DeliveryTag::new(second)]);
    }

    #[test]
    fn leases_belong_to_one_worker() {
        let (registry, worker) = (LeaseRegistry::default(), Arc::default());
        let leases = registry.of(&worker);
        assert!(Arc::ptr_eq(&leases, &registry.of(&worker)));
        assert!(!Arc::ptr_eq(&leases, &registry.of(&Arc::default())));
        let consumer = leases.open(&worker, &["q".to_owned()]);
        assert!(leases.consumes("q") && !leases.consumes("other"));
        drop(worker);
        assert!(!leases.is_abandoned());
        drop(consumer);
        assert!(leases.is_abandoned() && !leases.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn dead_owners_are_known_after_renewals_without_a_pause() {
        let leases = Leases::new(Weak::new());
        let renew_for = async |steps: u32| {
            for _ in 0..steps {
                tokio::time::advance(Duration::from_secs(5)).await;
                leases.owner_renewed(env::instant(), AFTER, true);
            }
        };
        renew_for(4).await;
        assert!(!leases.knows_dead_owners(AFTER));
        renew_for(1).await;
        assert!(leases.knows_dead_owners(AFTER));
        tokio::time::advance(Duration::from_secs(6)).await;
        renew_for(1).await;
        assert!(!leases.knows_dead_owners(AFTER));
        renew_for(4).await;
        assert!(leases.knows_dead_owners(AFTER));
        leases.owner_renewed(env::instant(), AFTER, false);
        assert!(!leases.knows_dead_owners(AFTER));
    }

    #[tokio::test(start_paused = true)]
    async fn leases_are_current_until_the_owner_counts_as_dead() {
        let leases = Leases::new(Weak::new());
        assert!(!leases.are_current(AFTER) && leases.are_current(Duration::ZERO));
        leases.owner_renewed(env::instant(), AFTER, true);
        assert!(leases.are_current(AFTER));
        assert!(!leases.refuse_owner(), "others know the owner");
        tokio::time::advance(AFTER).await;
        assert!(!leases.are_current(AFTER));
    }

    #[test]
    fn owner_that_was_never_written_needs_no_renewal() {
        let leases = Leases::new(Weak::new());
        assert!(leases.refuse_owner() && leases.are_current(AFTER));
    }
}
