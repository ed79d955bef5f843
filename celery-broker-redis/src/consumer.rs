//! Taking deliveries.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use bytes::Bytes;
use celery_protocol::kombu;
use celery_runtime::{
    BoxFuture, ConsumeOptions, Consumer, Delivery, DeliveryTag, ExchangeKind, Queue, ServiceError,
    ServiceErrorKind, Settled, Settlement,
};
use tokio::sync::{Mutex, Notify};

use crate::broker::Shared;
use crate::entry::Entry;
use crate::fetch::Fetcher;
use crate::keys::{Held, Tag};
use crate::link::{Attempt, Command, Script};
use crate::restore::Sweeps;
use crate::route::ways;
use crate::settle::score;

static ADOPT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/adopt.lua")));

/// How many deliveries one call may bring. Lua takes only so many values at a
/// time, and one answer has to fit into memory.
const MOST: usize = 1000;

/// A consumer of some queues on one Redis.
///
/// What it holds when it is dropped stays noted on the server, for its successor
/// to settle or for the visibility timeout.
pub(crate) struct RedisConsumer {
    shared: Arc<Shared>,
    queues: Vec<String>,
    receiving: Mutex<Receiving>,
    /// Makes the tags of this consumer unlike all others.
    unique: String,
    number: AtomicU64,
    interrupted: AtomicBool,
    closed: AtomicBool,
    /// Something happened that a waiting `receive` has to look at.
    wake: Notify,
    sweeps: Sweeps,
    object: String,
}

/// What only `receive` works with.
struct Receiving {
    fetcher: Fetcher,
    /// Tags that dead consumers left in holding hashes; taken over first.
    left: Vec<String>,
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
        if let Some((queue, exchange)) = options.queues.iter().find_map(fanned_out) {
            let cause = format!(
                "queue {queue} is bound to the fanout exchange {exchange}, whose messages Redis \
                 sends to who listens and keeps in no queue"
            );
            let error = attempt.error(&shared.link, ServiceErrorKind::Unsupported, cause);
            return Err(error.with_remedy("broadcast tasks need RabbitMQ"));
        }
        let fetcher = Fetcher::connect(&shared.link, attempt, &queues).await?;
        let left = left_behind(&shared, attempt, &queues).await?;
        shared.resolve_doubts(attempt, &queues).await?;
        let sweeps = Sweeps::start(Arc::clone(&shared));
        Ok(Self {
            receiving: Mutex::new(Receiving { fetcher, left }),
            unique: uuid::Uuid::new_v4().simple().to_string(),
            number: AtomicU64::new(0),
            interrupted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            wake: Notify::new(),
            shared,
            queues,
            sweeps,
            object,
        })
    }

    fn attempt(&self) -> Attempt<'_> {
        Attempt::new("consume", &self.object)
    }

    async fn next(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
        let mut receiving = self.receiving.lock().await;
        let max = max.min(MOST);
        while !self.is_ended()? {
            let taken = self.take(&mut receiving, max).await?;
            if !taken.is_empty() {
                receiving.fetcher.found();
                return Ok(taken);
            }
            let due = self.shared.parked.next_due(&self.queues, SystemTime::now());
            tokio::select! {
                () = receiving.fetcher.changed() => {}
                () = self.wake.notified() => {}
                () = self.shared.link.closed() => {}
                () = sleep_or_never(due) => {}
            }
        }
        Ok(Vec::new())
    }

    /// Whether nothing more shall be taken; an error when it is not for us to
    /// say so.
    fn is_ended(&self) -> Result<bool, ServiceError> {
        if self.shared.link.is_closed() {
            return Err(self.shared.link.closed_error(self.attempt()));
        }
        Ok(self.interrupted.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire))
    }

    /// What is there: first what dead consumers left, then what was parked,
    /// then what waits in the queues. They do not mix, so that nothing taken is
    /// forgotten when the next step fails.
    async fn take(
        &self,
        receiving: &mut Receiving,
        max: usize,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let left = self.adopt(&mut receiving.left, max).await?;
        if !left.is_empty() {
            return Ok(left);
        }
        let due = self.due(max).await?;
        if !due.is_empty() {
            return Ok(due);
        }
        let first = self.number.fetch_add(max as u64, Ordering::Relaxed);
        let prefix = format!("{}-", self.unique);
        let taking = self.shared.doubts.begin(&prefix, first, max, &self.queues);
        let fetched = receiving
            .fetcher
            .fetch(self.attempt(), max, &prefix, first)
            .await?;
        taking.settled();
        Ok(fetched)
    }

    /// Parked deliveries whose time has come and that are still ours.
    async fn due(&self, max: usize) -> Result<Vec<Delivery>, ServiceError> {
        let now = SystemTime::now();
        let tags = self.shared.parked.take_due(&self.queues, now, max);
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let index = self.shared.link.options().layout.unacked_index();
        let mut commands = Vec::with_capacity(tags.len() * 2);
        for tag in &tags {
            commands.push(Command::new("HGET").arg(self.shared.held_in(tag)).arg(tag));
            // Held anew from now on.
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

    async fn adopt(
        &self,
        left: &mut Vec<String>,
        max: usize,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let mut adopted = Vec::new();
        while adopted.len() < max
            && let Some(old) = left.last()
        {
            let number = self.number.fetch_add(1, Ordering::Relaxed);
            let queue = Tag::parse(old).queue;
            let new = crate::keys::raw_tag(&format!("{}-{number}", self.unique), queue);
            let holding = self.shared.held_in(old);
            let arguments = [old.as_bytes(), new.as_bytes()];
            let link = &self.shared.link;
            let raw = link
                .script(self.attempt(), &ADOPT, &[&holding], &arguments)
                .await?;
            left.pop();
            adopted.extend(raw.data().map(|raw| delivery(new, raw)));
        }
        Ok(adopted)
    }

    async fn end(&self) -> Result<(), ServiceError> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.wake.notify_one();
        self.sweeps.stop().await;
        let parked = self.shared.parked.take_all(&self.queues);
        // The last one given back is the first one taken again.
        let parked: Vec<String> = parked.into_iter().rev().collect();
        self.shared.give_back(&parked).await
    }
}

impl Consumer for RedisConsumer {
    fn receive(&self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>> {
        Box::pin(self.next(max))
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
        Box::pin(self.end())
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
fn fanned_out(queue: &Queue) -> Option<(&str, &str)> {
    let mut ways = ways(queue);
    let (exchange, _) = ways.find(|(exchange, _)| exchange.kind == ExchangeKind::Fanout)?;
    Some((&queue.name, &exchange.name))
}

/// A delivery of bytes, whether they are a message or not.
pub(crate) fn delivery(tag: String, raw: Bytes) -> Delivery {
    let queue: Arc<str> = Tag::parse(&tag).queue.into();
    let tag = DeliveryTag::new(tag);
    match kombu::decode(&raw) {
        Ok(message) => Delivery::new(tag, queue, message),
        Err(error) => Delivery::malformed(tag, queue, raw, error),
    }
}

/// A delivery of what a tag stands for on the server.
fn redelivery(tag: String, held: Bytes) -> Option<Delivery> {
    let raw = match Tag::parse(&tag).place {
        Held::Raw => held,
        Held::Unacked => Entry::parse(&held)?.envelope,
    };
    Some(delivery(tag, raw))
}

/// The tags in the holding hashes of the queues.
async fn left_behind(
    shared: &Shared,
    attempt: Attempt<'_>,
    queues: &[String],
) -> Result<Vec<String>, ServiceError> {
    let layout = &shared.link.options().layout;
    let commands = queues
        .iter()
        .map(|queue| Command::new("HKEYS").arg(layout.holding(queue)));
    let answers = shared.link.pipeline(attempt, commands.collect()).await?;
    let mut left = Vec::new();
    for answer in answers {
        left.extend(
            answer?
                .list()
                .into_iter()
                .filter_map(crate::link::Reply::text),
        );
    }
    Ok(left)
}

async fn sleep_or_never(time: Option<std::time::Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
