//! The consumer: receives deliveries from queues.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use celery_protocol::Message;
use celery_runtime::{
    BoxFuture, ConsumeOptions, Consumer, Delivery, DeliveryTag, ExchangeKind, Queue, ServiceError,
    ServiceErrorKind, Settled, Settlement, env,
};
use tokio::sync::{Mutex, Notify};

use crate::binding::routes;
use crate::client::{Operation, Script};
use crate::delivery::{delivery, redelivery};
use crate::fetch::Fetcher;
use crate::keys::ParsedTag;
use crate::lease::OpenConsumer;
use crate::restore::RestoreSchedule;
use crate::shared::Shared;

static DUE: LazyLock<Script> = LazyLock::new(|| script!("due.lua"));
static RETAG: LazyLock<Script> = LazyLock::new(|| script!("retag.lua"));

/// The limit of deliveries per call. Lua unpacks a limited number of values,
/// and one reply has to fit into memory.
const MAX_RECEIVE: usize = 1000;

/// A consumer of queues on one Redis.
///
/// Its unsettled deliveries stay on the server when it is dropped. Its
/// successor settles them, or they are restored after the visibility timeout.
pub(crate) struct RedisConsumer {
    shared: Arc<Shared>,
    queues: Vec<String>,
    state: Mutex<ReceiveState>,
    /// Keeps the deliveries in hand renewed.
    open: OpenConsumer,
    next_tag_number: AtomicU64,
    interrupted: AtomicBool,
    closed: AtomicBool,
    /// Wakes a waiting `receive` after an interrupt, a close or a deferred
    /// delivery.
    wake: Notify,
    restore_schedule: RestoreSchedule,
    object: String,
}

/// State of `receive` alone.
struct ReceiveState {
    fetcher: Fetcher,
    /// Quarantined tags of earlier consumers, which this consumer returns
    /// first.
    quarantined: Vec<String>,
}

impl RedisConsumer {
    pub(crate) async fn start(
        shared: Arc<Shared>,
        options: &ConsumeOptions,
    ) -> Result<Self, ServiceError> {
        let queues: Vec<String> = options
            .queues
            .iter()
            .map(|queue| queue.name.clone())
            .collect();
        let object = match queues.as_slice() {
            [queue] => format!("queue {queue}"),
            queues => format!("{} queues", queues.len()),
        };
        let operation = Operation::new("consume", &object);
        if queues.is_empty() {
            let cause = "the list of queues is empty";
            return Err(operation.error(&shared.client, ServiceErrorKind::Invalid, cause));
        }
        if let Some((queue, exchange)) = options.queues.iter().find_map(fanout_binding) {
            let cause = format!(
                "queue {queue} is bound to the fanout exchange {exchange}, whose messages Redis \
                 delivers to current subscribers and stores in no queue"
            );
            let error = operation.error(&shared.client, ServiceErrorKind::Unsupported, cause);
            return Err(error.with_remedy("broadcast tasks need RabbitMQ"));
        }
        let open = shared.open_consumer(&options.owner, &queues).await?;
        let fetcher = Fetcher::connect(&shared, operation, &queues).await?;
        let quarantined = shared.quarantined_tags(operation, &queues).await?;
        shared.recover_unconfirmed(operation, &open.leases).await?;
        let restore_schedule = RestoreSchedule::start(Arc::clone(&shared));
        Ok(Self {
            state: Mutex::new(ReceiveState {
                fetcher,
                quarantined,
            }),
            open,
            next_tag_number: AtomicU64::new(0),
            interrupted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            wake: Notify::new(),
            shared,
            queues,
            restore_schedule,
            object,
        })
    }

    fn operation(&self) -> Operation<'_> {
        Operation::new("consume", &self.object)
    }

    async fn receive_batch(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
        let mut state = self.state.lock().await;
        let max = max.min(MAX_RECEIVE);
        while !self.is_stopped()? {
            let fetched = self.fetch(&mut state, max).await?;
            if !fetched.is_empty() {
                state.fetcher.reset_poll_interval();
                return Ok(fetched);
            }
            let due = self
                .shared
                .delayed
                .next_due(&self.queues, env::system_time());
            // Every branch only ends the wait, so the order is free of starvation.
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = self.shared.client.closed() => {}
                () = state.fetcher.changed() => {}
                () = sleep_or_pending(due) => {}
            }
        }
        Ok(Vec::new())
    }

    /// Returns whether the consumer is interrupted or closed.
    ///
    /// # Errors
    ///
    /// If the broker is closed.
    fn is_stopped(&self) -> Result<bool, ServiceError> {
        if self.shared.client.is_closed() {
            return Err(self.shared.client.closed_error(self.operation()));
        }
        Ok(self.interrupted.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire))
    }

    /// Returns deliveries from the first source that has any: quarantined
    /// messages of earlier consumers, due deferred deliveries, the queues. One
    /// call uses one source, so that no delivery is lost if the next step
    /// fails.
    async fn fetch(
        &self,
        state: &mut ReceiveState,
        max: usize,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let quarantined = self.retag_quarantined(state, max).await?;
        if !quarantined.is_empty() {
            return Ok(quarantined);
        }
        let due = self.due_deliveries(&mut state.fetcher, max).await?;
        if !due.is_empty() {
            return Ok(due);
        }
        let first = self
            .next_tag_number
            .fetch_add(max as u64, Ordering::Relaxed);
        let prefix = &self.open.tag_prefix;
        let guard = self
            .shared
            .unconfirmed
            .begin(prefix, first, max, &self.queues);
        let fetched = state
            .fetcher
            .fetch(self.operation(), max, prefix, first)
            .await?;
        self.hold(&fetched);
        guard.confirm();
        Ok(fetched)
    }

    /// Returns deferred deliveries that are due and still unacked.
    async fn due_deliveries(
        &self,
        fetcher: &mut Fetcher,
        max: usize,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let delayed = &self.shared.delayed;
        let mut due = delayed.take_due(&self.queues, env::system_time(), max);
        let mut deliveries = Vec::new();
        // All of these may be gone: another worker has settled or restored them.
        while deliveries.is_empty()
            && let Some(first) = due.first()
        {
            let hash = self.shared.hash_of(first);
            let index = self.shared.client.options().layout.unacked_index();
            let limits = fetcher.limits();
            let bytes = limits.bytes.to_string();
            let tags = due
                .iter()
                .take_while(|tag| self.shared.hash_of(tag) == hash);
            let tags = tags.map(str::as_bytes);
            let arguments: Vec<&[u8]> = std::iter::once(bytes.as_bytes()).chain(tags).collect();
            let keys = [hash.as_str(), index.as_str()];
            let entries = fetcher
                .bounded(self.operation(), limits, &DUE, &keys, &arguments)
                .await?
                .list();
            let tags = due.done(entries.len().max(1));
            let read = tags.into_iter().zip(entries);
            deliveries.extend(read.filter_map(|(tag, entry)| redelivery(tag, entry.data()?)));
        }
        self.hold(&deliveries);
        Ok(deliveries)
    }

    fn hold(&self, deliveries: &[Delivery]) {
        let tags = deliveries.iter().map(|delivery| delivery.tag.as_str());
        self.shared.leases.hold(tags);
    }

    /// Gives quarantined messages of earlier consumers new tags and returns
    /// them.
    async fn retag_quarantined(
        &self,
        state: &mut ReceiveState,
        max: usize,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let mut retagged = Vec::new();
        let limits = state.fetcher.limits();
        let mut size = 0;
        while retagged.len() < max
            && size < limits.bytes
            && let Some(old) = state.quarantined.last()
        {
            let number = self.next_tag_number.fetch_add(1, Ordering::Relaxed);
            let queue = ParsedTag::parse(old).queue;
            let new =
                crate::keys::quarantine_tag(&format!("{}{number}", self.open.tag_prefix), queue);
            let quarantine = self.shared.hash_of(old);
            let arguments = [old.as_bytes(), new.as_bytes()];
            let keys = [quarantine.as_str()];
            let fetcher = &mut state.fetcher;
            let raw = fetcher.bounded(self.operation(), limits, &RETAG, &keys, &arguments);
            let raw = match raw.await {
                Ok(raw) => raw.data(),
                Err(error) if retagged.is_empty() => return Err(error),
                Err(_) => break,
            };
            state.quarantined.pop();
            size += raw.as_ref().map_or(0, Bytes::len);
            retagged.extend(raw.map(|raw| delivery(new, raw)));
        }
        Ok(retagged)
    }

    async fn shut_down(&self) -> Result<(), ServiceError> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.wake.notify_one();
        self.restore_schedule.stop().await;
        // A fetch without an answer may have taken messages.
        let recovered = self
            .shared
            .recover_unconfirmed(self.operation(), &self.open.leases)
            .await;
        let returned = self.shared.return_deferred(&self.queues).await;
        let left = self.shared.end_ownership(&self.open.leases).await;
        recovered.and(returned).and(left)
    }
}

impl Consumer for RedisConsumer {
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>> {
        Box::pin(self.receive_batch(max))
    }

    fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn settle<'a>(
        &'a self,
        batch: &'a [Settlement],
    ) -> BoxFuture<'a, Vec<Result<Settled, ServiceError>>> {
        Box::pin(async move {
            if self.closed.load(Ordering::Acquire) {
                return vec![Ok(Settled::Gone); batch.len()];
            }
            let settled = self.shared.settle(batch).await;
            if batch.iter().any(|one| matches!(one, Settlement::Defer(..))) {
                self.wake.notify_one();
            }
            settled
        })
    }

    fn restore<'a>(
        &'a self,
        tag: &'a DeliveryTag,
        queue: &'a str,
        message: &'a Message,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.shared.restore_copy(tag.as_str(), queue, message))
    }

    fn lost(&self) -> BoxFuture<'_, Vec<DeliveryTag>> {
        Box::pin(self.open.leases.lost())
    }

    fn has_current_leases(&self) -> bool {
        let layout = &self.shared.client.options().layout;
        self.open.leases.are_current(layout.rescue_after)
    }

    fn close(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        Box::pin(self.shut_down())
    }
}

impl fmt::Debug for RedisConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConsumer")
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// Returns the name of a queue and of the fanout exchange that it is bound to,
/// if any.
fn fanout_binding(queue: &Queue) -> Option<(&str, &str)> {
    let mut routes = routes(queue);
    let (exchange, _) = routes.find(|(exchange, _)| exchange.kind == ExchangeKind::Fanout)?;
    Some((&queue.name, &exchange.name))
}

/// Sleeps, or never returns for `None`.
async fn sleep_or_pending(time: Option<std::time::Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
