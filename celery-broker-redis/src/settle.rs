//! Settling deliveries on the server.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use celery_protocol::Message;
use celery_runtime::{QueueEnd, ServiceError, ServiceErrorKind, Settled, Settlement};

use crate::client::{Command, Operation, RedisReply, Script};
use crate::entry::{RequeuedEnvelope, UnackedEntry};
use crate::keys::{DeliveryLocation, ParsedTag};
use crate::shared::Shared;

pub(crate) static REQUEUE: LazyLock<Script> = LazyLock::new(|| script!("requeue.lua"));
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

/// The reply that decides the outcome of a settlement, by its position in the
/// transaction.
#[derive(Clone, Copy, Debug)]
enum SettleReply {
    /// `HDEL` of an acknowledged delivery: 0 if it no longer exists.
    Removed(usize),
    /// `ZSCORE` of a deferred delivery: nil if it no longer exists.
    Score(usize),
    /// `HGET` of the entry to requeue: nil if it no longer exists.
    Entry(usize),
    /// No command: a deferred malformed message stays in its quarantine hash.
    Kept,
    /// No command: an earlier settlement of the batch has the same delivery.
    Repeated,
}

/// The commands of a batch, and the deciding reply of each settlement.
#[derive(Debug, Default)]
struct Transaction {
    commands: Vec<Command>,
    deciding: Vec<SettleReply>,
}

impl Transaction {
    /// Adds a command and returns the position of its reply.
    fn push(&mut self, command: Command) -> usize {
        self.commands.push(command);
        self.commands.len() - 1
    }
}

impl Shared {
    /// Settles a batch in one round trip, plus one if it requeues deliveries.
    pub(crate) async fn settle(&self, batch: &[Settlement]) -> Vec<Result<Settled, ServiceError>> {
        let settled = self.settle_on_server(batch).await;
        // Without an answer the delivery may still be in hand.
        for (settlement, settled) in batch.iter().zip(&settled) {
            if settled.is_ok() {
                self.leases.release(settlement.tag().as_str());
            }
        }
        settled
    }

    async fn settle_on_server(&self, batch: &[Settlement]) -> Vec<Result<Settled, ServiceError>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let Transaction { commands, deciding } = self.transaction(batch);
        let replies = match self.client.atomic(OPERATION, commands).await {
            Ok(replies) => replies,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut settled = Vec::with_capacity(batch.len());
        let mut requeues = Vec::new();
        for (position, (settlement, decides)) in batch.iter().zip(deciding).enumerate() {
            let reply = |at: usize| replies.get(at).cloned().unwrap_or(RedisReply::Nil);
            let is_done = match decides {
                SettleReply::Removed(at) => reply(at).number() > 0,
                SettleReply::Score(at) => reply(at).data().is_some(),
                SettleReply::Entry(at) => {
                    let (tag, end) = match settlement {
                        Settlement::Requeue(tag, end) => (tag.as_str(), *end),
                        other => (other.tag().as_str(), QueueEnd::Head),
                    };
                    let flag = RedeliveredFlag::Set;
                    requeues.push((position, Requeue { tag, end, flag }, reply(at)));
                    false
                }
                SettleReply::Kept => true,
                SettleReply::Repeated => false,
            };
            if let Settlement::Defer(tag, until) = settlement
                && is_done
            {
                self.delayed.add(tag.as_str(), *until);
            }
            settled.push(Ok(if is_done {
                Settled::Done
            } else {
                Settled::Gone
            }));
        }
        let (positions, requeues): (Vec<_>, Vec<_>) = requeues
            .into_iter()
            .map(|(position, requeue, entry)| (position, (requeue, entry)))
            .unzip();
        for (position, outcome) in positions.into_iter().zip(self.push_back(requeues).await) {
            settled[position] = outcome;
        }
        settled
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

    /// Returns the commands for a batch. A delivery leaves the index before its
    /// hash, so that no restore finds it in between.
    fn transaction(&self, batch: &[Settlement]) -> Transaction {
        let layout = &self.client.options().layout;
        let mut transaction = Transaction::default();
        let mut seen = BTreeSet::new();
        let removed = batch.iter().filter_map(|settlement| {
            let tag = settlement.tag().as_str();
            let is_first = seen.insert(tag);
            let is_removed = matches!(settlement, Settlement::Ack(_) | Settlement::Reject(_));
            let is_indexed = ParsedTag::parse(tag).location == DeliveryLocation::Unacked;
            (is_first && is_removed && is_indexed).then_some(tag)
        });
        let removed: Vec<_> = removed.collect();
        if !removed.is_empty() {
            transaction.push(
                Command::new("ZREM")
                    .arg(layout.unacked_index())
                    .args(&removed),
            );
        }
        let mut seen = BTreeSet::new();
        for settlement in batch {
            let reply = if seen.insert(settlement.tag().as_str()) {
                self.add_settlement(&mut transaction, settlement)
            } else {
                SettleReply::Repeated
            };
            transaction.deciding.push(reply);
        }
        transaction
    }

    /// Adds the commands of one settlement, and returns the reply that decides
    /// its outcome.
    fn add_settlement(
        &self,
        transaction: &mut Transaction,
        settlement: &Settlement,
    ) -> SettleReply {
        let layout = &self.client.options().layout;
        let tag = settlement.tag().as_str();
        let location = ParsedTag::parse(tag).location;
        match settlement {
            Settlement::Ack(_) | Settlement::Reject(_) => {
                let command = Command::new("HDEL").arg(self.hash_of(tag)).arg(tag);
                SettleReply::Removed(transaction.push(command))
            }
            Settlement::Requeue(..) => SettleReply::Entry(transaction.push(self.read_command(tag))),
            Settlement::Defer(..) if location == DeliveryLocation::Quarantine => SettleReply::Kept,
            Settlement::Defer(_, until) => {
                // XX: a delivery that another worker has settled or restored must
                // not return to the index.
                let delivered_at = delivered_at(*until, layout.visibility_timeout);
                transaction.push(
                    Command::new("ZADD")
                        .arg(layout.unacked_index())
                        .arg("XX")
                        .arg(score(delivered_at))
                        .arg(tag),
                );
                let command = Command::new("ZSCORE").arg(layout.unacked_index()).arg(tag);
                SettleReply::Score(transaction.push(command))
            }
        }
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

/// Returns the time of delivery to record for a delivery that is deferred until
/// a time. With it the visibility timeout passes shortly after that time for
/// every worker: no worker restores the delivery before it is due, and a dead
/// worker delays it until the next restore instead of by the whole timeout.
fn delivered_at(until: SystemTime, visibility_timeout: Duration) -> SystemTime {
    until
        .checked_sub(visibility_timeout)
        .map_or(until, |since| since + RESTORE_GRACE_PERIOD)
}

/// Formats a time as a score of kombu: seconds since 1970.
pub(crate) fn score(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}", since.as_secs(), since.subsec_micros())
}
