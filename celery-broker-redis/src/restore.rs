//! Restoring the deliveries of dead workers after kombu's visibility timeout.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use celery_runtime::{ServiceError, env};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::binding::StoredBinding;
use crate::client::{COMPARE_AND_DELETE, Command, Operation, RedisReply, Script};
use crate::entry::{RequeuedEnvelope, UnackedEntry};
use crate::keys::{ParsedTag, quarantine_tag};
use crate::settle::REQUEUE;
use crate::shared::Shared;

static EXPIRED: LazyLock<Script> = LazyLock::new(|| script!("expired.lua"));
static QUARANTINE: LazyLock<Script> = LazyLock::new(|| script!("quarantine.lua"));

const OPERATION: Operation<'static> = Operation::new("restore", "deliveries of dead workers");

/// The number of entries per read; messages may be large.
const RESTORE_BATCH_SIZE: usize = 20;

/// The queue of malformed entries whose tag names none.
const DEFAULT_QUEUE: &str = "celery";

/// The maximum time for which the lock of an interrupted restore blocks others.
/// Two concurrent restores are safe, but do the work twice.
const MAX_MUTEX_TTL: Duration = Duration::from_secs(10);

/// The time for which closing a consumer waits for a running restore before it
/// aborts it.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The task that restores deliveries when a consumer starts, and then as often
/// as kombu does: once per `unacked_restore_throttle` intervals of
/// `unacked_restore_interval`.
#[derive(Debug)]
pub(crate) struct RestoreSchedule {
    task: Mutex<Option<JoinHandle<()>>>,
    stop: Arc<Notify>,
}

impl RestoreSchedule {
    pub(crate) fn start(shared: Arc<Shared>) -> Self {
        let stop = Arc::new(Notify::new());
        let task = env::spawn(run(shared, Arc::clone(&stop)));
        Self {
            task: Mutex::new(Some(task)),
            stop,
        }
    }

    /// Stops after a running restore has ended, so that its lock is released.
    pub(crate) async fn stop(&self) {
        self.stop.notify_one();
        let Some(mut task) = self.take() else { return };
        if tokio::time::timeout(STOP_TIMEOUT, &mut task).await.is_err() {
            task.abort();
        }
    }

    fn take(&self) -> Option<JoinHandle<()>> {
        self.task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Drop for RestoreSchedule {
    fn drop(&mut self) {
        if let Some(task) = self.take() {
            task.abort();
        }
    }
}

/// Runs the restores. An error ends only one restore: the consumer reports lost
/// connections on its own, and the next restore may succeed.
async fn run(shared: Arc<Shared>, stop: Arc<Notify>) {
    let mut ticks = tokio::time::interval(shared.client.options().layout.restore_period());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.notified() => return,
            () = shared.client.closed() => return,
            _ = ticks.tick() => {}
        }
        match shared.restore().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "restored deliveries of dead workers"),
            Err(error) => tracing::warn!(%error, "cannot restore deliveries of dead workers"),
        }
    }
}

impl Shared {
    /// Restores deliveries whose visibility timeout has passed, up to
    /// `unacked_restore_limit`, and returns their number. Returns 0 while
    /// another worker holds the lock.
    pub(crate) async fn restore(&self) -> Result<usize, ServiceError> {
        let restored = self.with_restore_mutex(self.restore_expired()).await?;
        Ok(restored.unwrap_or_default())
    }

    /// Runs a restore while holding the lock; returns `None` while another worker
    /// holds it.
    pub(crate) async fn with_restore_mutex(
        &self,
        restoring: impl Future<Output = Result<usize, ServiceError>>,
    ) -> Result<Option<usize>, ServiceError> {
        let layout = &self.client.options().layout;
        let mutex = layout.unacked_mutex();
        let token = env::uuid();
        let lock = Command::new("SET")
            .arg(&mutex)
            .arg(&token)
            .arg("NX")
            .arg("PX");
        let expire = layout.unacked_mutex_expire.min(MAX_MUTEX_TTL).as_millis() as i64;
        let locked = self.client.call(OPERATION, lock.number(expire.max(1)));
        if locked.await?.data().is_none() {
            return Ok(None);
        }
        let restored = restoring.await;
        let (keys, arguments) = ([mutex.as_str()], [token.as_bytes()]);
        let unlocked = self
            .client
            .script(OPERATION, &COMPARE_AND_DELETE, &keys, &arguments)
            .await;
        let count = restored?;
        unlocked?;
        Ok(Some(count))
    }

    /// Restores expired deliveries while holding the lock.
    async fn restore_expired(&self) -> Result<usize, ServiceError> {
        let limit = self.client.options().layout.restore_limit;
        let mut bindings = BindingCache::default();
        let mut count = 0;
        while count < limit {
            let (latest, expired) = self.expired(RESTORE_BATCH_SIZE.min(limit - count)).await?;
            if expired.is_empty() {
                break;
            }
            let before = count;
            let mut commands = Vec::with_capacity(expired.len());
            for (tag, entry) in &expired {
                // A process that was frozen still holds its deliveries.
                let command = if self.leases.holds(tag) {
                    self.renew_command(tag)
                } else {
                    count += 1;
                    self.restore_command(&mut bindings, tag, entry, &latest)
                        .await?
                };
                commands.push(command);
            }
            for answer in self.client.pipeline(OPERATION, commands).await? {
                answer?;
            }
            // What was renewed expires again only later.
            if count == before {
                break;
            }
        }
        Ok(count)
    }

    /// Returns the highest score that counts as expired, and tag and entry of
    /// expired deliveries.
    async fn expired(&self, most: usize) -> Result<(String, Vec<(String, Bytes)>), ServiceError> {
        let layout = &self.client.options().layout;
        let keys = [layout.unacked_index(), layout.unacked()];
        let timeout = format!("{:.6}", layout.visibility_timeout.as_secs_f64());
        let limits = self.answer_budget.limits();
        let (most, bytes) = (most.to_string(), limits.bytes.to_string());
        let arguments = [timeout.as_bytes(), most.as_bytes(), bytes.as_bytes()];
        let keys = keys.each_ref().map(String::as_str);
        let mut replies = self
            .client
            .script(OPERATION, &EXPIRED, &keys, &arguments)
            .await
            .inspect_err(|error| self.answer_budget.failed(error, limits))?
            .list()
            .into_iter();
        let latest = replies
            .next()
            .and_then(RedisReply::text)
            .unwrap_or_default();
        let mut expired = Vec::new();
        while let (Some(tag), Some(entry)) = (replies.next(), replies.next()) {
            if let (Some(tag), Some(entry)) = (tag.text(), entry.data()) {
                expired.push((tag, entry));
            }
        }
        Ok((latest, expired))
    }

    /// Returns the command that restores one delivery.
    pub(crate) async fn restore_command(
        &self,
        bindings: &mut BindingCache,
        tag: &str,
        entry: &Bytes,
        latest: &str,
    ) -> Result<Command, ServiceError> {
        let layout = &self.client.options().layout;
        let Some(parsed) = UnackedEntry::parse(entry) else {
            tracing::error!(
                tag,
                "unacked entry is malformed; moving it to the quarantine"
            );
            return Ok(self.quarantine_command(tag));
        };
        let queues = bindings.queues(self, &parsed).await?;
        let returned = RequeuedEnvelope::redelivered(&parsed.envelope);
        let lists = queues
            .iter()
            .map(|queue| layout.list_for(queue, returned.priority));
        let keys = [layout.unacked(), layout.unacked_index()];
        let keys: Vec<String> = keys.into_iter().chain(lists).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let arguments = [
            tag.as_bytes(),
            b"RPUSH",
            &returned.envelope,
            latest.as_bytes(),
        ];
        Ok(REQUEUE.by_text(&keys, &arguments))
    }

    /// Returns the command that moves a malformed entry to a quarantine hash.
    fn quarantine_command(&self, tag: &str) -> Command {
        let layout = &self.client.options().layout;
        let queue = match ParsedTag::parse(tag).queue {
            "" => DEFAULT_QUEUE,
            queue => queue,
        };
        let keys = [
            layout.unacked(),
            layout.unacked_index(),
            layout.quarantine(queue),
        ];
        let keys = keys.each_ref().map(String::as_str);
        let unique = env::uuid_simple();
        QUARANTINE.by_text(
            &keys,
            &[tag.as_bytes(), quarantine_tag(&unique, queue).as_bytes()],
        )
    }
}

/// The bindings of exchanges that one restore has read.
#[derive(Default)]
pub(crate) struct BindingCache {
    known: HashMap<String, Vec<StoredBinding>>,
}

impl BindingCache {
    /// Returns the queues to which kombu would restore an entry: all that are
    /// bound with its routing key. Without a matching binding that is the queue
    /// named like the routing key, so that the message is kept.
    async fn queues(
        &mut self,
        shared: &Shared,
        entry: &UnackedEntry,
    ) -> Result<Vec<String>, ServiceError> {
        let own = || vec![entry.routing_key.clone()];
        if entry.exchange.is_empty() {
            return Ok(own());
        }
        if !self.known.contains_key(&entry.exchange) {
            let bindings = shared.bindings(&entry.exchange).await?;
            self.known.insert(entry.exchange.clone(), bindings);
        }
        let bindings = self
            .known
            .get(&entry.exchange)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let queues: Vec<String> = bindings
            .iter()
            .filter(|binding| binding.matches(&entry.routing_key))
            .map(|binding| binding.queue.clone())
            .collect();
        if !queues.is_empty() {
            return Ok(queues);
        }
        tracing::warn!(
            exchange = entry.exchange,
            routing_key = entry.routing_key,
            "no binding for a restored message; using the queue named like its routing key"
        );
        Ok(own())
    }
}
