//! Leases: the deliveries that this process holds, which it renews while it lives.
//!
//! kombu restores a delivery whose score in `unacked_index` is older than the
//! visibility timeout. A worker renews the scores of what it holds at a third of that
//! time, so that neither a long task nor a long wait for a slot makes its message run
//! twice. The owner of all these deliveries, which is this process, has an entry of its
//! own, which is renewed within seconds: other workers of this crate restore the
//! deliveries of an owner that stopped renewing it, long before the visibility timeout.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use celery_runtime::{DeliveryTag, ServiceError, env};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::{Command, DedicatedConnection, Operation, RedisReply, Script};
use crate::keys::{DeliveryLocation, ParsedTag};
use crate::rescue::DeadOwner;
use crate::shared::Shared;

static RENEW: LazyLock<Script> = LazyLock::new(|| script!("renew.lua"));
static OWNER_RENEW: LazyLock<Script> = LazyLock::new(|| script!("owner_renew.lua"));

const OPERATION: Operation<'static> = Operation::new("renew", "deliveries");
const OWNER_OPERATION: Operation<'static> = Operation::new("renew", "the owner of deliveries");

/// The number of tags in one request.
const CHUNK_SIZE: usize = 1000;

/// The number of dead owners that one renewal lists.
const MAX_DEAD_OWNERS: usize = 10;

/// The time after which the owners are forgotten if no process renews any.
const OWNERS_EXPIRE: Duration = Duration::from_secs(24 * 3600);

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

    fn held(&self) -> Vec<String> {
        self.lock().held.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        lock(&self.state)
    }

    /// Reports deliveries that the server does not have any more to all consumers.
    fn report(&self, missing: Vec<String>) {
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
    fn owner_renewed(&self, rescue_after: Duration) {
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
    fn tells_dead_owners(&self, rescue_after: Duration) -> bool {
        let since = self.lock().renewed_since;
        since.is_some_and(|since| since.elapsed() >= rescue_after)
    }

    /// Returns whether the renewal ends, because no consumer is open.
    fn ends_renewal(&self) -> bool {
        let mut state = self.lock();
        state.is_renewing = state.open > 0;
        !state.is_renewing
    }

    /// Begins the start of a consumer. Deliveries of a worker that is gone are
    /// forgotten.
    fn begin(&self) {
        let mut state = self.lock();
        let is_abandoned = |time: Instant| time.elapsed() > ABANDONED_AFTER;
        if state.open == 0 && state.used_at.is_some_and(is_abandoned) {
            state.held.clear();
        }
        state.used_at = Some(env::instant());
    }
}

impl Shared {
    /// Renews what this process holds and opens a consumer, which keeps it renewed.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub(crate) async fn open_consumer(self: &Arc<Self>) -> Result<OpenConsumer, ServiceError> {
        self.leases.begin();
        let mut connection = self.client.dedicated(OPERATION).await?;
        self.renew_owner(&mut connection).await?;
        self.renew_held(&mut connection).await?;
        let leases = &self.leases;
        let number = leases.next_consumer.fetch_add(1, Ordering::Relaxed);
        let lost = Arc::new(LostLeases::default());
        let mut state = leases.lock();
        state.open += 1;
        state.consumers.push(Arc::downgrade(&lost));
        let starts_renewal = !std::mem::replace(&mut state.is_renewing, true);
        drop(state);
        if starts_renewal {
            env::spawn(renew(Arc::clone(self), connection));
        }
        Ok(OpenConsumer {
            leases: Arc::clone(leases),
            tag_prefix: format!("{}-{number}-", leases.owner),
            lost,
        })
    }

    /// Renews the entry of this process, and returns the owners that are dead.
    async fn renew_owner(
        &self,
        connection: &mut DedicatedConnection,
    ) -> Result<Vec<DeadOwner>, ServiceError> {
        let layout = &self.client.options().layout;
        if layout.rescue_after.is_zero() || self.leases.lock().is_owner_refused {
            return Ok(Vec::new());
        }
        let owners = layout.owners();
        let rescue_after = format!("{:.6}", layout.rescue_after.as_secs_f64());
        let most = MAX_DEAD_OWNERS.to_string();
        let expire = OWNERS_EXPIRE.as_secs().to_string();
        let arguments = [
            self.leases.owner.as_bytes(),
            rescue_after.as_bytes(),
            most.as_bytes(),
            expire.as_bytes(),
        ];
        let answer = connection
            .script(OWNER_OPERATION, &OWNER_RENEW, &[&owners], &arguments)
            .await;
        let reply = match answer {
            Ok(reply) => reply,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                self.leases.lock().is_owner_refused = true;
                tracing::warn!(
                    "deliveries of dead workers are restored after the visibility timeout only: \
                     {error}"
                );
                return Ok(Vec::new());
            }
        };
        self.leases.owner_renewed(layout.rescue_after);
        if !self.leases.tells_dead_owners(layout.rescue_after) {
            return Ok(Vec::new());
        }
        let mut replies = reply.list().into_iter();
        let mut dead = Vec::new();
        while let (Some(owner), Some(time)) = (replies.next(), replies.next()) {
            if let (Some(owner), Some(renewed_at)) = (owner.text(), time.text()) {
                dead.push(DeadOwner { owner, renewed_at });
            }
        }
        Ok(dead)
    }

    /// Returns the command that renews one delivery.
    pub(crate) fn renew_command(&self, tag: &str) -> Command {
        let layout = &self.client.options().layout;
        let keys = [layout.unacked_index(), layout.unacked()];
        RENEW.by_text(&keys.each_ref().map(String::as_str), &[tag.as_bytes()])
    }

    /// Renews the deliveries in hand, and reports those that are not unacked any more.
    async fn renew_held(&self, connection: &mut DedicatedConnection) -> Result<(), ServiceError> {
        let layout = &self.client.options().layout;
        let keys = [layout.unacked_index(), layout.unacked()];
        let keys = keys.each_ref().map(String::as_str);
        for chunk in self.leases.held().chunks(CHUNK_SIZE) {
            let tags: Vec<_> = chunk.iter().map(String::as_bytes).collect();
            let reply = connection.script(OPERATION, &RENEW, &keys, &tags).await?;
            let missing = reply.list().into_iter().filter_map(RedisReply::text);
            self.leases.report(missing.collect());
        }
        Ok(())
    }
}

/// Renews the owner and the deliveries in hand while consumers are open, on a connection
/// of its own, so that neither a full pool nor a long answer delays it.
async fn renew(shared: Arc<Shared>, connection: DedicatedConnection) {
    let mut connection = Some(connection);
    let interval = shared.client.options().layout.renewal_interval();
    let held_interval = shared.client.options().layout.visibility_timeout / 3;
    let mut held_renewed_at = env::instant();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shared.leases.stop.notified() => {}
            () = shared.client.closed() => {}
            _ = ticks.tick() => {}
        }
        if shared.client.is_closed() || shared.leases.ends_renewal() {
            return;
        }
        let is_current = shared
            .leases
            .are_current(shared.client.options().layout.rescue_after);
        let renews_held = !is_current || held_renewed_at.elapsed() + interval > held_interval;
        let started = env::instant();
        match shared.renew_once(&mut connection, renews_held).await {
            Ok(()) if renews_held => held_renewed_at = started,
            Ok(()) => {}
            Err(error) => {
                connection = None;
                tracing::warn!("{error}");
            }
        }
    }
}

impl Shared {
    async fn renew_once(
        &self,
        connection: &mut Option<DedicatedConnection>,
        renews_held: bool,
    ) -> Result<(), ServiceError> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.client.dedicated(OPERATION).await?),
        };
        if renews_held {
            self.renew_held(connection).await?;
        }
        for dead in self.renew_owner(connection).await? {
            self.rescue(&dead).await;
        }
        let queues = self.unconfirmed.queues();
        if queues.is_empty() {
            return Ok(());
        }
        self.recover_unconfirmed(OPERATION, &queues).await
    }

    /// Ends the ownership of a process that stops consuming: what it still holds is
    /// restored by others at once.
    pub(crate) async fn end_ownership(&self) -> Result<(), ServiceError> {
        let (is_last, holds) = {
            let mut state = self.leases.lock();
            let is_last = state.open <= 1;
            let holds = !state.held.is_empty();
            if is_last {
                state.held.clear();
                state.owner_renewed_at = None;
            }
            (is_last, holds)
        };
        if !is_last {
            return Ok(());
        }
        self.leave(&self.leases.owner, holds).await
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
    async fn dead_owners_are_told_after_renewals_without_a_pause() {
        let after = Duration::from_secs(20);
        let leases = Leases::new();
        let renew_for = async |steps: u32| {
            for _ in 0..steps {
                tokio::time::advance(Duration::from_secs(5)).await;
                leases.owner_renewed(after);
            }
        };
        renew_for(4).await;
        assert!(!leases.tells_dead_owners(after));
        renew_for(1).await;
        assert!(leases.tells_dead_owners(after));
        tokio::time::advance(Duration::from_secs(6)).await;
        renew_for(1).await;
        assert!(!leases.tells_dead_owners(after));
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
