//! Taking deliveries.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use celery_runtime::{
    BoxFuture, ConsumeOptions, Consumer, Delivery, ExchangeKind, Queue, ServiceError,
    ServiceErrorKind, Settled, Settlement,
};
use tokio::sync::{Mutex, Notify};

use crate::binding::routes;
use crate::delivery::{delivery, redelivery};
use crate::fetch::Fetcher;
use crate::keys::ParsedTag;
use crate::link::{Attempt, Command, Script};
use crate::restore::RestoreSchedule;
use crate::settle::score;
use crate::shared::Shared;

static RETAG: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/retag.lua")));

/// How many deliveries one call may bring. Lua takes only so many values at a
/// time, and one answer has to fit into memory.
const MAX_RECEIVE: usize = 1000;

/// A consumer of some queues on one Redis.
///
/// What it holds when it is dropped stays noted on the server, for its successor
/// to settle or for the visibility timeout.
pub(crate) struct RedisConsumer {
    shared: Arc<Shared>,
    queues: Vec<String>,
    receive_state: Mutex<ReceiveState>,
    /// Makes the tags of this consumer unlike all others.
    consumer_id: String,
    next_tag_number: AtomicU64,
    interrupted: AtomicBool,
    closed: AtomicBool,
    /// Something happened that a waiting `receive` has to look at.
    wake: Notify,
    restore_schedule: RestoreSchedule,
    object: String,
}

/// What only `receive` works with.
struct ReceiveState {
    fetcher: Fetcher,
    /// Tags that dead consumers quarantined in quarantine hashes; fetched over first.
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
        let attempt = Attempt::new("consume", &object);
        if queues.is_empty() {
            let cause = "there is no queue to consume";
            return Err(attempt.error(&shared.link, ServiceErrorKind::Invalid, cause));
        }
        if let Some((queue, exchange)) = options.queues.iter().find_map(fanout_binding) {
            let cause = format!(
                "queue {queue} is bound to the fanout exchange {exchange}, whose messages Redis \
                 sends to who listens and keeps in no queue"
            );
            let error = attempt.error(&shared.link, ServiceErrorKind::Unsupported, cause);
            return Err(error.with_remedy("broadcast tasks need RabbitMQ"));
        }
        let fetcher = Fetcher::connect(&shared.link, attempt, &queues).await?;
        let quarantined = shared.quarantined_tags(attempt, &queues).await?;
        shared.recover_unconfirmed(attempt, &queues).await?;
        let restore_schedule = RestoreSchedule::start(Arc::clone(&shared));
        Ok(Self {
            receive_state: Mutex::new(ReceiveState {
                fetcher,
                quarantined,
            }),
            consumer_id: uuid::Uuid::new_v4().simple().to_string(),
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

    fn attempt(&self) -> Attempt<'_> {
        Attempt::new("consume", &self.object)
    }

    async fn receive_batch(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
        let mut receive_state = self.receive_state.lock().await;
        let max = max.min(MAX_RECEIVE);
        while !self.is_stopped()? {
            let fetched = self.fetch(&mut receive_state, max).await?;
            if !fetched.is_empty() {
                receive_state.fetcher.reset_poll_interval();
                return Ok(fetched);
            }
            let due = self.shared.parked.next_due(&self.queues, SystemTime::now());
            tokio::select! {
                () = receive_state.fetcher.changed() => {}
                () = self.wake.notified() => {}
                () = self.shared.link.closed() => {}
                () = sleep_or_pending(due) => {}
            }
        }
        Ok(Vec::new())
    }

    /// Whether nothing more shall be fetched; an error when it is not for us to
    /// say so.
    fn is_stopped(&self) -> Result<bool, ServiceError> {
        if self.shared.link.is_closed() {
            return Err(self.shared.link.closed_error(self.attempt()));
        }
        Ok(self.interrupted.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire))
    }

    /// What is there: first what dead consumers quarantined, then what was parked,
    /// then what waits in the queues. They do not mix, so that nothing fetched is
    /// forgotten when the next step fails.
    async fn fetch(
        &self,
        receive_state: &mut ReceiveState,
        max: usize,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let quarantined = self
            .retag_quarantined(&mut receive_state.quarantined, max)
            .await?;
        if !quarantined.is_empty() {
            return Ok(quarantined);
        }
        let due = self.due_deliveries(max).await?;
        if !due.is_empty() {
            return Ok(due);
        }
        let first = self
            .next_tag_number
            .fetch_add(max as u64, Ordering::Relaxed);
        let prefix = format!("{}-", self.consumer_id);
        let guard = self
            .shared
            .unconfirmed
            .begin(&prefix, first, max, &self.queues);
        let fetched = receive_state
            .fetcher
            .fetch(self.attempt(), max, &prefix, first)
            .await?;
        guard.confirm();
        Ok(fetched)
    }

    /// DelayedDeliveries deliveries whose time has come and that are still ours.
    async fn due_deliveries(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
        let now = SystemTime::now();
        let tags = self.shared.parked.take_due(&self.queues, now, max);
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let index = self.shared.link.options().layout.unacked_index();
        let mut commands = Vec::with_capacity(tags.len() * 2);
        for tag in &tags {
            commands.push(Command::new("HGET").arg(self.shared.hash_of(tag)).arg(tag));
            // DeliveryLocation anew from now on.
            let again = Command::new("ZADD").arg(&index).arg("XX");
            commands.push(again.arg(score(now)).arg(tag));
        }
        let answers = match self.shared.link.atomic(self.attempt(), commands).await {
            Ok(answers) => answers,
            Err(error) => {
                // They are due for our successor.
                tags.iter().for_each(|tag| self.shared.parked.add(tag, now));
                return Err(error);
            }
        };
        let entries = answers.into_iter().step_by(2);
        let due = tags.into_iter().zip(entries);
        Ok(due
            .filter_map(|(tag, entry)| redelivery(tag, entry.data()?))
            .collect())
    }

    async fn retag_quarantined(
        &self,
        quarantined: &mut Vec<String>,
        max: usize,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let mut retagged = Vec::new();
        while retagged.len() < max
            && let Some(old) = quarantined.last()
        {
            let number = self.next_tag_number.fetch_add(1, Ordering::Relaxed);
            let queue = ParsedTag::parse(old).queue;
            let new = crate::keys::quarantine_tag(&format!("{}-{number}", self.consumer_id), queue);
            let quarantine = self.shared.hash_of(old);
            let arguments = [old.as_bytes(), new.as_bytes()];
            let link = &self.shared.link;
            let raw = link
                .script(self.attempt(), &RETAG, &[&quarantine], &arguments)
                .await?;
            quarantined.pop();
            retagged.extend(raw.data().map(|raw| delivery(new, raw)));
        }
        Ok(retagged)
    }

    async fn shut_down(&self) -> Result<(), ServiceError> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.wake.notify_one();
        self.restore_schedule.stop().await;
        let parked = self.shared.parked.take_all(&self.queues);
        // The last one given back is the first one fetched again.
        let parked: Vec<String> = parked.into_iter().rev().collect();
        self.shared.return_unchanged(&parked).await
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

/// A queue and the fanout exchange that it is bound to, if there is one.
fn fanout_binding(queue: &Queue) -> Option<(&str, &str)> {
    let mut routes = routes(queue);
    let (exchange, _) = routes.find(|(exchange, _)| exchange.kind == ExchangeKind::Fanout)?;
    Some((&queue.name, &exchange.name))
}

async fn sleep_or_pending(time: Option<std::time::Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
