//! What becomes of deliveries on the server.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use celery_runtime::{QueueEnd, ServiceError, Settled, Settlement};

use crate::broker::Shared;
use crate::entry::{Entry, Returned};
use crate::keys::{Held, Tag};
use crate::link::{Attempt, Command, Reply, Script};

pub(crate) static MOVE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/move.lua")));

const ATTEMPT: Attempt<'static> = Attempt::new("settle", "deliveries");

/// Whether a message that goes back says that it was delivered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    Redelivered,
    Unchanged,
}

/// Where a message goes back to, and with what.
#[derive(Clone, Copy, Debug)]
struct Requeue<'a> {
    tag: &'a str,
    end: QueueEnd,
    flag: Flag,
}

/// The command whose reply answers a settlement.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Removed from the hash that held it: 1, or 0 where it was gone.
    Removed(usize),
    /// The score of a deferred delivery: nil where it was gone.
    Score(usize),
    /// The entry to requeue: nil where it was gone.
    Entry(usize),
    /// A malformed message stays in its hash until it is due.
    Kept,
}

/// The commands of a batch, and the answer to each settlement.
#[derive(Debug, Default)]
struct Transaction {
    commands: Vec<Command>,
    answers: Vec<Answer>,
}

impl Transaction {
    /// Adds a command and returns its place among the replies.
    fn push(&mut self, command: Command) -> usize {
        self.commands.push(command);
        self.commands.len() - 1
    }
}

impl Shared {
    /// Settles a batch: one round trip, and a second one only where something is
    /// requeued.
    pub(crate) async fn settle(&self, batch: &[Settlement]) -> Vec<Result<Settled, ServiceError>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let Transaction { commands, answers } = self.transaction(batch);
        let replies = match self.link.atomic(ATTEMPT, commands).await {
            Ok(replies) => replies,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut settled = Vec::with_capacity(batch.len());
        let mut requeues = Vec::new();
        for (place, (settlement, answer)) in batch.iter().zip(answers).enumerate() {
            let reply = |at: usize| replies.get(at).cloned().unwrap_or(Reply::Nil);
            let is_done = match answer {
                Answer::Removed(at) => reply(at).number() > 0,
                Answer::Score(at) => reply(at).data().is_some(),
                Answer::Entry(at) => {
                    let (tag, end) = match settlement {
                        Settlement::Requeue(tag, end) => (tag.as_str(), *end),
                        other => (other.tag().as_str(), QueueEnd::Head),
                    };
                    let flag = Flag::Redelivered;
                    requeues.push((place, Requeue { tag, end, flag }, reply(at)));
                    false
                }
                Answer::Kept => true,
            };
            if let Settlement::Defer(tag, until) = settlement
                && is_done
            {
                self.parked.add(tag.as_str(), *until);
            }
            settled.push(Ok(if is_done {
                Settled::Done
            } else {
                Settled::Gone
            }));
        }
        let (places, requeues): (Vec<_>, Vec<_>) = requeues
            .into_iter()
            .map(|(place, requeue, entry)| (place, (requeue, entry)))
            .unzip();
        for (place, outcome) in places.into_iter().zip(self.put_back(requeues).await) {
            settled[place] = outcome;
        }
        settled
    }

    /// Gives deliveries back to the heads of their queues, as if they had never
    /// been taken. The last tag ends up first.
    pub(crate) async fn give_back(&self, tags: &[String]) -> Result<(), ServiceError> {
        if tags.is_empty() {
            return Ok(());
        }
        let requeues = tags.iter().map(|tag| Requeue {
            tag,
            end: QueueEnd::Head,
            flag: Flag::Unchanged,
        });
        let commands = tags.iter().map(|tag| self.read(tag)).collect();
        let entries = self.link.atomic(ATTEMPT, commands).await?;
        let requeued = self.put_back(requeues.zip(entries).collect()).await;
        requeued.into_iter().try_for_each(|one| one.map(drop))
    }

    /// The commands for a batch. A delivery leaves the index before its hash, so
    /// that nothing restores it in between.
    fn transaction(&self, batch: &[Settlement]) -> Transaction {
        let layout = &self.link.options().layout;
        let mut transaction = Transaction::default();
        let removed = batch.iter().filter_map(|settlement| match settlement {
            Settlement::Ack(tag) | Settlement::Reject(tag) => {
                (Tag::parse(tag.as_str()).place == Held::Unacked).then_some(tag.as_str())
            }
            Settlement::Requeue(..) | Settlement::Defer(..) => None,
        });
        let removed: Vec<_> = removed.collect();
        if !removed.is_empty() {
            transaction.push(
                Command::new("ZREM")
                    .arg(layout.unacked_index())
                    .args(&removed),
            );
        }
        for settlement in batch {
            let text = settlement.tag().as_str();
            let place = Tag::parse(text).place;
            let answer = match settlement {
                Settlement::Ack(_) | Settlement::Reject(_) => {
                    let command = Command::new("HDEL").arg(self.held_in(text)).arg(text);
                    Answer::Removed(transaction.push(command))
                }
                Settlement::Requeue(..) => Answer::Entry(transaction.push(self.read(text))),
                Settlement::Defer(..) if place == Held::Raw => Answer::Kept,
                Settlement::Defer(_, until) => {
                    // XX: a delivery that is no longer ours must not come back
                    // into the index.
                    let held_since = held_since(*until, layout.visibility_timeout);
                    transaction.push(
                        Command::new("ZADD")
                            .arg(layout.unacked_index())
                            .arg("XX")
                            .arg(score(held_since))
                            .arg(text),
                    );
                    let command = Command::new("ZSCORE").arg(layout.unacked_index()).arg(text);
                    Answer::Score(transaction.push(command))
                }
            };
            transaction.answers.push(answer);
        }
        transaction
    }

    fn read(&self, tag: &str) -> Command {
        Command::new("HGET").arg(self.held_in(tag)).arg(tag)
    }

    /// The hash that holds a delivery.
    pub(crate) fn held_in(&self, tag: &str) -> String {
        let layout = &self.link.options().layout;
        let tag = Tag::parse(tag);
        match tag.place {
            Held::Unacked => layout.unacked(),
            Held::Raw => layout.holding(tag.queue),
        }
    }

    /// Moves entries that were read back to their queues, unless another worker
    /// settled or restored them meanwhile. One outcome for each.
    async fn put_back(
        &self,
        requeues: Vec<(Requeue<'_>, Reply)>,
    ) -> Vec<Result<Settled, ServiceError>> {
        let mut settled = vec![Ok(Settled::Gone); requeues.len()];
        let (places, commands): (Vec<_>, Vec<_>) = requeues
            .into_iter()
            .enumerate()
            .filter_map(|(place, (requeue, entry))| {
                Some((place, self.push(requeue, entry.data()?)?))
            })
            .unzip();
        if commands.is_empty() {
            return settled;
        }
        match self.link.pipeline(ATTEMPT, commands).await {
            Ok(answers) => {
                for (place, answer) in places.into_iter().zip(answers) {
                    settled[place] = answer.map(|moved| match moved.number() {
                        0 => Settled::Gone,
                        _ => Settled::Done,
                    });
                }
            }
            Err(error) => {
                for place in places {
                    settled[place] = Err(error.clone());
                }
            }
        }
        settled
    }

    fn push(&self, requeue: Requeue<'_>, entry: Bytes) -> Option<Command> {
        let layout = &self.link.options().layout;
        let tag = Tag::parse(requeue.tag);
        let envelope = match tag.place {
            Held::Unacked => Entry::parse(&entry)?.envelope,
            Held::Raw => entry,
        };
        let returned = match requeue.flag {
            Flag::Redelivered => Returned::flagged(&envelope),
            Flag::Unchanged => Returned::unchanged(&envelope),
        };
        let list = layout.list_for(tag.queue, returned.priority);
        let push: &[u8] = match requeue.end {
            QueueEnd::Head => b"RPUSH",
            QueueEnd::Tail => b"LPUSH",
        };
        let keys = [self.held_in(requeue.tag), layout.unacked_index(), list];
        let keys = keys.each_ref().map(String::as_str);
        let arguments = [requeue.tag.as_bytes(), push, &returned.envelope, b""];
        Some(MOVE.by_text(&keys, &arguments))
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
