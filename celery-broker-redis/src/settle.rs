//! Settling deliveries on the server.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use celery_protocol::Message;
use celery_runtime::{QueueEnd, ServiceError, ServiceErrorKind, Settled, Settlement, env};

use crate::client::{Command, Operation, RedisReply, Script};
use crate::entry::{RequeuedEnvelope, UnackedEntry};
use crate::keys::{DeliveryLocation, ParsedTag};
use crate::shared::Shared;

pub(crate) static REQUEUE: LazyLock<Script> = LazyLock::new(|| script!("requeue.lua"));
static DEFER: LazyLock<Script> = LazyLock::new(|| script!("defer.lua"));
static RESTORE_COPY: LazyLock<Script> = LazyLock::new(|| script!("restore_copy.lua"));

const OPERATION: Operation<'static> = Operation::new("settle", "deliveries");

/// Whether requeueing sets the redelivered flags of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedeliveredFlag {
    Set,
    Unchanged,
}

/// A delivery to push back to its queue.
#[derive(Clone, Copy, Debug)]
struct Requeue<'a> {
    tag: &'a str,
    end: QueueEnd,
    flag: RedeliveredFlag,
}

/// The command that decides the outcome of a settlement, by its position in the
/// pipeline.
#[derive(Clone, Copy, Debug)]
enum Deciding {
    /// `HDEL` of an acknowledged delivery: 0 if it no longer exists.
    Removed(usize),
    /// `HGET` of the entry to requeue: nil if it no longer exists.
    Entry(usize, QueueEnd),
    /// No command of the pipeline: the delivery is deferred by a script.
    Deferred(SystemTime),
    /// No command: a deferred malformed message stays in its quarantine hash.
    Kept(SystemTime),
    /// No command: an earlier settlement of the batch has the same delivery.
    Repeated,
}

/// The commands of a batch, and what decides each settlement.
#[derive(Debug, Default)]
struct SettleCommands {
    commands: Vec<Command>,
    deciding: Vec<Deciding>,
}

/// The outcome of one settlement.
type Outcome = Result<Settled, ServiceError>;

impl Shared {
    /// Settles a batch in one round trip, plus one if it requeues and one if it defers
    /// deliveries.
    pub(crate) async fn settle(&self, batch: &[Settlement]) -> Vec<Outcome> {
        let settled = self.settle_on_server(batch).await;
        // Without an answer the delivery may still be in hand.
        for (settlement, settled) in batch.iter().zip(&settled) {
            if settled.is_ok() {
                self.leases.release(settlement.tag().as_str());
            }
        }
        settled
    }

    async fn settle_on_server(&self, batch: &[Settlement]) -> Vec<Outcome> {
        let SettleCommands { commands, deciding } = self.commands(batch);
        let mut replies = Vec::new();
        if !commands.is_empty() {
            replies = match self.client.pipeline(OPERATION, commands).await {
                Ok(replies) => replies,
                Err(error) => return vec![Err(error); batch.len()],
            };
        }
        let mut settled = vec![Ok(Settled::Gone); batch.len()];
        let (mut requeues, mut deferred) = (Vec::new(), Vec::new());
        for (position, (settlement, deciding)) in batch.iter().zip(deciding).enumerate() {
            let tag = settlement.tag().as_str();
            let reply = |at: usize| replies.get(at).cloned().unwrap_or(Ok(RedisReply::Nil));
            match deciding {
                Deciding::Removed(at) => {
                    settled[position] = reply(at).map(|removed| outcome(removed.number() > 0));
                }
                Deciding::Entry(at, end) => match reply(at) {
                    Ok(entry) => {
                        let flag = RedeliveredFlag::Set;
                        requeues.push((position, Requeue { tag, end, flag }, entry));
                    }
                    Err(error) => settled[position] = Err(error),
                },
                Deciding::Deferred(until) => deferred.push((position, tag, until)),
                Deciding::Kept(until) => {
                    self.delayed.add(tag, until);
                    settled[position] = Ok(Settled::Done);
                }
                Deciding::Repeated => {}
            }
        }
        self.requeue(requeues, &mut settled).await;
        self.defer(&deferred, &mut settled).await;
        settled
    }

    /// Requeues deliveries whose entries were read.
    async fn requeue(
        &self,
        requeues: Vec<(usize, Requeue<'_>, RedisReply)>,
        settled: &mut [Outcome],
    ) {
        let (positions, requeues): (Vec<_>, Vec<_>) = requeues
            .into_iter()
            .map(|(position, requeue, entry)| (position, (requeue, entry)))
            .unzip();
        for (position, outcome) in positions.into_iter().zip(self.push_back(requeues).await) {
            settled[position] = outcome;
        }
    }

    /// Defers deliveries. A delivery that another worker has settled or restored does
    /// not return to the index.
    async fn defer(&self, deferred: &[(usize, &str, SystemTime)], settled: &mut [Outcome]) {
        if deferred.is_empty() {
            return;
        }
        let layout = &self.client.options().layout;
        let now = env::system_time();
        let visible = layout.visibility_timeout.as_secs_f64();
        let delays: Vec<String> = deferred
            .iter()
            .map(|(_, _, until)| delivered_after(*until, now, visible).to_string())
            .collect();
        let tags = deferred.iter().map(|(_, tag, _)| tag.as_bytes());
        let delays = delays.iter().map(String::as_bytes);
        let arguments: Vec<&[u8]> = tags
            .zip(delays)
            .flat_map(|(tag, delay)| [tag, delay])
            .collect();
        let keys = [layout.unacked_index()];
        let keys = keys.each_ref().map(String::as_str);
        let answer = self
            .client
            .script(OPERATION, &DEFER, &keys, &arguments)
            .await;
        let mut answers = answer.map(|answer| answer.list().into_iter());
        for (position, tag, until) in deferred {
            settled[*position] = match &mut answers {
                Ok(answers) => {
                    let is_done = answers.next().is_some_and(|answer| answer.number() > 0);
                    if is_done {
                        self.delayed.add(tag, *until);
                    }
                    Ok(outcome(is_done))
                }
                Err(error) => Err(error.clone()),
            };
        }
    }

    /// Returns a message to the head of its queue, from this copy if its delivery is not
    /// unacked any more.
    pub(crate) async fn restore_copy(
        &self,
        tag: &str,
        queue: &str,
        message: &Message,
    ) -> Result<(), ServiceError> {
        let layout = &self.client.options().layout;
        let object = format!("a message of queue {queue}");
        let operation = Operation::new("restore", &object);
        let Some(returned) = RequeuedEnvelope::of_message(message, queue) else {
            let cause = "the message cannot be encoded again";
            return Err(operation.error(&self.client, ServiceErrorKind::Invalid, cause));
        };
        let list = layout.list_for(queue, returned.priority);
        let keys = [layout.unacked(), layout.unacked_index(), list];
        let keys = keys.each_ref().map(String::as_str);
        let arguments = [tag.as_bytes(), &returned.envelope];
        self.client
            .script(operation, &RESTORE_COPY, &keys, &arguments)
            .await?;
        self.leases.release(tag);
        Ok(())
    }

    /// Returns a delivery to the head of its queue without the redelivered
    /// flags.
    pub(crate) async fn return_unchanged(&self, tag: &str) -> Result<(), ServiceError> {
        let entry = self.client.call(OPERATION, self.read_command(tag)).await?;
        let requeue = Requeue {
            tag,
            end: QueueEnd::Head,
            flag: RedeliveredFlag::Unchanged,
        };
        let requeued = self.push_back(vec![(requeue, entry)]).await;
        requeued.into_iter().try_for_each(|one| one.map(drop))
    }

    /// Returns the commands for a batch. They are no transaction: a server whose memory
    /// is full would refuse it as a whole, and could then never free any. A delivery
    /// leaves the hash first: a tag that is only in the index is harmless, and is removed
    /// by the next restore.
    fn commands(&self, batch: &[Settlement]) -> SettleCommands {
        let mut settle = SettleCommands::default();
        let mut seen = BTreeSet::new();
        let mut removed = Vec::new();
        for settlement in batch {
            let tag = settlement.tag().as_str();
            let is_unacked = ParsedTag::parse(tag).location == DeliveryLocation::Unacked;
            let position = settle.commands.len();
            let deciding = match settlement {
                _ if !seen.insert(tag) => Deciding::Repeated,
                Settlement::Ack(_) | Settlement::Reject(_) => {
                    let command = Command::new("HDEL").arg(self.hash_of(tag)).arg(tag);
                    settle.commands.push(command);
                    removed.extend(is_unacked.then_some(tag));
                    Deciding::Removed(position)
                }
                Settlement::Requeue(_, end) => {
                    settle.commands.push(self.read_command(tag));
                    Deciding::Entry(position, *end)
                }
                Settlement::Defer(_, until) if is_unacked => Deciding::Deferred(*until),
                Settlement::Defer(_, until) => Deciding::Kept(*until),
            };
            settle.deciding.push(deciding);
        }
        if !removed.is_empty() {
            let index = self.client.options().layout.unacked_index();
            let command = Command::new("ZREM").arg(index).args(&removed);
            settle.commands.push(command);
        }
        settle
    }

    /// Returns the command that reads the hash value of a delivery.
    fn read_command(&self, tag: &str) -> Command {
        Command::new("HGET").arg(self.hash_of(tag)).arg(tag)
    }

    /// Returns the key of the hash that holds a delivery.
    pub(crate) fn hash_of(&self, tag: &str) -> String {
        let layout = &self.client.options().layout;
        let tag = ParsedTag::parse(tag);
        match tag.location {
            DeliveryLocation::Unacked => layout.unacked(),
            DeliveryLocation::Quarantine => layout.quarantine(tag.queue),
        }
    }

    /// Pushes entries that were read back to their queues, unless another
    /// worker has settled or restored them already. Returns one outcome per
    /// entry.
    async fn push_back(
        &self,
        requeues: Vec<(Requeue<'_>, RedisReply)>,
    ) -> Vec<Result<Settled, ServiceError>> {
        let mut settled = vec![Ok(Settled::Gone); requeues.len()];
        let (positions, commands): (Vec<_>, Vec<_>) = requeues
            .into_iter()
            .enumerate()
            .filter_map(|(position, (requeue, entry))| {
                Some((position, self.requeue_command(requeue, entry.data()?)?))
            })
            .unzip();
        if commands.is_empty() {
            return settled;
        }
        match self.client.pipeline(OPERATION, commands).await {
            Ok(answers) => {
                for (position, answer) in positions.into_iter().zip(answers) {
                    settled[position] = answer.map(|moved| match moved.number() {
                        0 => Settled::Gone,
                        _ => Settled::Done,
                    });
                }
            }
            Err(error) => {
                for position in positions {
                    settled[position] = Err(error.clone());
                }
            }
        }
        settled
    }

    /// Returns the command that requeues one delivery, or `None` if its entry
    /// cannot be parsed.
    fn requeue_command(&self, requeue: Requeue<'_>, entry: Bytes) -> Option<Command> {
        let layout = &self.client.options().layout;
        let tag = ParsedTag::parse(requeue.tag);
        let envelope = match tag.location {
            DeliveryLocation::Unacked => UnackedEntry::parse(&entry)?.envelope,
            DeliveryLocation::Quarantine => entry,
        };
        let returned = match requeue.flag {
            RedeliveredFlag::Set => RequeuedEnvelope::redelivered(&envelope),
            RedeliveredFlag::Unchanged => RequeuedEnvelope::unchanged(&envelope),
        };
        let list = layout.list_for(tag.queue, returned.priority);
        let push: &[u8] = match requeue.end {
            QueueEnd::Head => b"RPUSH",
            QueueEnd::Tail => b"LPUSH",
        };
        let keys = [self.hash_of(requeue.tag), layout.unacked_index(), list];
        let keys = keys.each_ref().map(String::as_str);
        let arguments = [requeue.tag.as_bytes(), push, &returned.envelope, b""];
        Some(REQUEUE.by_text(&keys, &arguments))
    }
}

/// The time in which other workers leave a deferred delivery to the worker that
/// deferred it. It covers clock differences between hosts and a restart.
const RESTORE_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Returns how many seconds from now the time of delivery is that is recorded for a
/// deferred delivery. With it the visibility timeout passes shortly after `until` for
/// every worker: no worker restores the delivery before it is due, and a dead worker
/// delays it by seconds instead of by the whole timeout.
fn delivered_after(until: SystemTime, now: SystemTime, visibility_timeout: f64) -> f64 {
    let delay = until.duration_since(now).unwrap_or_default();
    (delay + RESTORE_GRACE_PERIOD).as_secs_f64() - visibility_timeout
}

fn outcome(is_done: bool) -> Settled {
    if is_done {
        Settled::Done
    } else {
        Settled::Gone
    }
}
