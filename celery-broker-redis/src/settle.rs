//! What becomes of deliveries on the server.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use celery_runtime::{QueueEnd, ServiceError, Settlement};

use crate::entry::{RequeuedEnvelope, UnackedEntry};
use crate::keys::{DeliveryLocation, ParsedTag};
use crate::link::{Attempt, Command, RedisReply, Script};
use crate::shared::Shared;

pub(crate) static REQUEUE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/requeue.lua")));

const ATTEMPT: Attempt<'static> = Attempt::new("settle", "deliveries");

/// Whether a message that goes back says that it was delivered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedeliveredFlag {
    Set,
    Unchanged,
}

/// Where a message goes back to, and with what.
#[derive(Clone, Copy, Debug)]
struct Requeue<'a> {
    tag: &'a str,
    end: QueueEnd,
    flag: RedeliveredFlag,
}

impl Shared {
    /// Settles a batch: one round trip, and a second one only if something is
    /// requeued.
    pub(crate) async fn settle(&self, batch: &[Settlement]) -> Result<(), ServiceError> {
        let requeued = batch.iter().filter_map(|settlement| match settlement {
            Settlement::Requeue(tag, end) => Some(Requeue {
                tag: tag.as_str(),
                end: *end,
                flag: RedeliveredFlag::Set,
            }),
            _ => None,
        });
        let requeued: Vec<_> = requeued.collect();
        let mut commands = self.endings(batch);
        let first_entry = commands.len();
        commands.extend(requeued.iter().map(|one| self.read(one.tag)));
        if commands.is_empty() {
            return Ok(());
        }
        let mut replies = self.link.atomic(ATTEMPT, commands).await?;
        for settlement in batch {
            if let Settlement::Defer(tag, until) = settlement {
                self.parked.add(tag.as_str(), *until);
            }
        }
        let entries = replies.split_off(first_entry.min(replies.len()));
        self.put_back(&requeued, entries).await
    }

    /// Gives deliveries back to the heads of their queues, as if they had never
    /// been taken. The last tag ends up first.
    pub(crate) async fn return_unchanged(&self, tags: &[String]) -> Result<(), ServiceError> {
        if tags.is_empty() {
            return Ok(());
        }
        let requeued: Vec<_> = tags
            .iter()
            .map(|tag| Requeue {
                tag,
                end: QueueEnd::Head,
                flag: RedeliveredFlag::Unchanged,
            })
            .collect();
        let commands = tags.iter().map(|tag| self.read(tag)).collect();
        let entries = self.link.atomic(ATTEMPT, commands).await?;
        self.put_back(&requeued, entries).await
    }

    /// The commands for all that is not requeued.
    fn endings(&self, batch: &[Settlement]) -> Vec<Command> {
        let layout = &self.link.options().layout;
        let mut held = Vec::new();
        let mut raw: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut parked = Vec::new();
        for settlement in batch {
            let text = settlement.tag().as_str();
            let tag = ParsedTag::parse(text);
            match (settlement, tag.location) {
                (Settlement::Requeue(..), _)
                | (Settlement::Defer(..), DeliveryLocation::Quarantine) => {}
                (Settlement::Defer(_, until), DeliveryLocation::Unacked) => {
                    parked.push((text, *until))
                }
                (_, DeliveryLocation::Unacked) => held.push(text),
                (_, DeliveryLocation::Quarantine) => raw.entry(tag.queue).or_default().push(text),
            }
        }
        let mut commands = Vec::new();
        if !held.is_empty() {
            commands.push(Command::new("ZREM").arg(layout.unacked_index()).args(&held));
            commands.push(Command::new("HDEL").arg(layout.unacked()).args(&held));
        }
        for (queue, tags) in raw {
            commands.push(
                Command::new("HDEL")
                    .arg(layout.quarantine(queue))
                    .args(tags),
            );
        }
        if !parked.is_empty() {
            // XX: what is no longer ours must not come back into the index.
            let mut command = Command::new("ZADD").arg(layout.unacked_index()).arg("XX");
            for (tag, until) in parked {
                let held_since = held_since(until, layout.visibility_timeout);
                command = command.arg(score(held_since)).arg(tag);
            }
            commands.push(command);
        }
        commands
    }

    fn read(&self, tag: &str) -> Command {
        Command::new("HGET").arg(self.hash_of(tag)).arg(tag)
    }

    /// The hash that holds a delivery.
    pub(crate) fn hash_of(&self, tag: &str) -> String {
        let layout = &self.link.options().layout;
        let tag = ParsedTag::parse(tag);
        match tag.location {
            DeliveryLocation::Unacked => layout.unacked(),
            DeliveryLocation::Quarantine => layout.quarantine(tag.queue),
        }
    }

    /// Pushes what was read, unless somebody else ended the delivery meanwhile.
    async fn put_back(
        &self,
        requeued: &[Requeue<'_>],
        entries: Vec<RedisReply>,
    ) -> Result<(), ServiceError> {
        let commands: Vec<_> = requeued
            .iter()
            .zip(entries)
            .filter_map(|(one, entry)| self.push(*one, entry.data()?))
            .collect();
        if commands.is_empty() {
            return Ok(());
        }
        let answers = self.link.pipeline(ATTEMPT, commands).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop))
    }

    fn push(&self, requeue: Requeue<'_>, entry: Bytes) -> Option<Command> {
        let layout = &self.link.options().layout;
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

/// How long others wait for a worker to hand out what it parked. They are
/// workers with clocks of their own, and a restart takes a moment.
const GRACE: Duration = Duration::from_secs(10);

/// Since when a delivery that is parked `until` a time counts as held: so that
/// the visibility timeout passes, for every worker alike, shortly after that
/// time. Nobody restores it before it is due, and a dead worker delays it by
/// seconds and not by the whole timeout.
fn held_since(until: SystemTime, visibility_timeout: Duration) -> SystemTime {
    until
        .checked_sub(visibility_timeout)
        .map_or(until, |since| since + GRACE)
}

/// A time as kombu notes it: seconds since 1970.
pub(crate) fn score(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}", since.as_secs(), since.subsec_micros())
}
