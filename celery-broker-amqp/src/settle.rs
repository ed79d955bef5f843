//! Telling the server what became of deliveries.

use std::time::{Duration, SystemTime};

use celery_runtime::{QueueEnd, ServiceError, ServiceErrorKind, Settled, Settlement};
use lapin::options::BasicAckOptions;
use lapin::types::ShortString;
use tokio::time::Instant;

use crate::consumer::Inner;
use crate::delay::{self, Detour};
use crate::ledger::{Ack, Held};
use crate::link::{Live, lock};
use crate::message;
use crate::publish::Letter;
use crate::table::short;
use crate::topology::Desk;

/// What is due within this time is waited for here: the shortest way through
/// the server takes as long.
const SOON: Duration = Duration::from_millis(100);

/// A batch, sorted by what has to be done.
#[derive(Default)]
struct Plan {
    acks: Vec<u64>,
    /// And whether to give back.
    rejections: Vec<(u64, bool)>,
    /// To be sent anew before they are acknowledged.
    moves: Vec<Move>,
    /// The outcome of each settlement, as far as it is known.
    outcomes: Outcomes,
}

/// The outcomes of a batch, in its order, with the tag of each settlement.
#[derive(Default)]
struct Outcomes(Vec<(Option<u64>, Result<Settled, ServiceError>)>);

impl Outcomes {
    /// Sets the outcome of these tags.
    fn set(&mut self, tags: &[u64], outcome: &Result<Settled, ServiceError>) {
        let mut tags = tags.to_vec();
        tags.sort_unstable();
        for (tag, known) in &mut self.0 {
            if tag.is_some_and(|tag| tags.binary_search(&tag).is_ok()) {
                known.clone_from(outcome);
            }
        }
    }

    fn into_results(self) -> Vec<Result<Settled, ServiceError>> {
        self.0.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

/// What became of messages that were to be sent anew.
#[derive(Default)]
struct Moved {
    /// The server has them.
    gone: Vec<u64>,
    /// They can never be sent.
    stuck: Vec<Move>,
    /// They may be sent later.
    failed: Vec<(u64, ServiceError)>,
}

struct Move {
    tag: u64,
    held: Held,
    way: Way,
}

/// How a message comes back to its queue.
enum Way {
    /// To the end of the queue.
    Tail,
    /// When its time has come.
    Parked { detour: Detour, due: Instant },
}

impl Inner {
    pub(crate) async fn settle(&self, batch: &[Settlement]) -> Vec<Result<Settled, ServiceError>> {
        let Plan {
            acks,
            rejections,
            moves,
            mut outcomes,
        } = self.plan(batch, SystemTime::now());
        let tags = rejections.iter().map(|&(tag, _)| tag);
        let tags: Vec<u64> = tags.chain(acks.iter().copied()).collect();
        let written = self.send_off(rejections, acks).await;
        outcomes.set(&tags, &written.map(|()| Settled::Written));
        if moves.is_empty() {
            return outcomes.into_results();
        }
        let Moved {
            gone,
            stuck,
            failed,
        } = self.move_on(moves).await;
        for (tag, error) in failed {
            outcomes.set(&[tag], &Err(error));
        }
        let mut tags = gone.clone();
        let mut back = Vec::new();
        for one in stuck {
            match one.way {
                Way::Tail => {
                    tags.push(one.tag);
                    back.push((one.tag, true));
                }
                // Kept here until it is due, as it cannot be elsewhere.
                Way::Parked { due, .. } => {
                    self.soon.insert(due, one.tag);
                    outcomes.set(&[one.tag], &Ok(Settled::Done));
                }
            }
        }
        let written = self.send_off(back, gone).await;
        outcomes.set(&tags, &written.map(|()| Settled::Written));
        outcomes.into_results()
    }

    async fn send_off(
        &self,
        rejections: Vec<(u64, bool)>,
        acks: Vec<u64>,
    ) -> Result<(), ServiceError> {
        let _turn = self.settling.lock().await;
        if !rejections.is_empty() {
            self.reject(rejections).await?;
        }
        self.acknowledge(acks).await
    }

    fn plan(&self, batch: &[Settlement], now: SystemTime) -> Plan {
        let mut plan = Plan::default();
        for settlement in batch {
            // Settled before, or lost with its connection.
            let tag = self.own(settlement.tag());
            plan.outcomes.0.push((tag, Ok(Settled::Gone)));
            let Some(tag) = tag else {
                continue;
            };
            match settlement {
                Settlement::Ack(_) => plan.acks.push(tag),
                Settlement::Reject(_) => plan.rejections.push((tag, false)),
                Settlement::Requeue(_, QueueEnd::Head) => plan.rejections.push((tag, true)),
                Settlement::Requeue(_, QueueEnd::Tail) => {
                    plan.moves.extend(self.move_of(tag, |_| Way::Tail));
                }
                Settlement::Defer(_, until) => {
                    let left = until.duration_since(now).unwrap_or_default();
                    let due = Instant::now() + left;
                    if left <= SOON {
                        self.soon.insert(due, tag);
                        plan.outcomes.set(&[tag], &Ok(Settled::Done));
                        continue;
                    }
                    plan.moves.extend(self.move_of(tag, |queue| Way::Parked {
                        detour: delay::park(queue, left),
                        due,
                    }));
                }
            }
        }
        plan
    }

    fn move_of(&self, tag: u64, way: impl FnOnce(&str) -> Way) -> Option<Move> {
        let held = lock(&self.ledger).get(tag)?.clone();
        let way = way(self.queue(&held));
        Some(Move { tag, held, way })
    }

    /// Sends messages anew, one by one a second time where something on their
    /// way had to be declared again.
    async fn move_on(&self, mut moves: Vec<Move>) -> Moved {
        let mut moved = Moved::default();
        for _ in 0..2 {
            let answers = self.send_anew(&moves).await;
            for (one, answer) in std::mem::take(&mut moves).into_iter().zip(answers) {
                match answer {
                    Ok(()) => moved.gone.push(one.tag),
                    Err(error) if error.is_transient() => moved.failed.push((one.tag, error)),
                    Err(error) => {
                        tracing::warn!("{error}");
                        moves.push(one);
                    }
                }
            }
        }
        moved.stuck = moves;
        moved
    }

    async fn send_anew(&self, moves: &[Move]) -> Vec<Result<(), ServiceError>> {
        if moves.is_empty() {
            return Vec::new();
        }
        let attempt = self.attempt("put off messages of");
        let live = match self.shared.publishing.live(attempt).await {
            Ok(live) => live,
            Err(error) => return vec![Err(error); moves.len()],
        };
        let mut answers = Vec::with_capacity(moves.len());
        let mut letters = Vec::with_capacity(moves.len());
        for one in moves {
            let prepared = match &one.way {
                Way::Parked { detour, .. } => self.prepare(&live, detour, &one.held).await,
                Way::Tail => Ok(()),
            };
            let letter = prepared.and_then(|()| {
                self.letter(one)
                    .map_err(|cause| attempt.error(ServiceErrorKind::Invalid, cause))
            });
            answers.push(letter.map(|letter| letters.push(letter)));
        }
        let mut sent = self.shared.send(&live, letters).await.into_iter();
        for (one, answer) in moves.iter().zip(&mut answers) {
            if answer.is_ok() {
                *answer = sent.next().unwrap_or(Ok(()));
            }
            if let (Err(_), Way::Parked { detour, .. }) = (&answer, &one.way) {
                // Somebody may have deleted what was known to be there.
                detour.forget(&live.known);
                lock(&self.ways_back).remove(&one.held.number);
            }
        }
        answers
    }

    /// Makes sure that a parked message finds its way out and back.
    async fn prepare(&self, live: &Live, detour: &Detour, held: &Held) -> Result<(), ServiceError> {
        let queue = self.queue(held);
        let object = format!("the delayed messages of queue {queue}");
        let mut desk = Desk::new(live, self.shared.attempt("prepare", &object));
        let has_way_back = lock(&self.ways_back).contains(&held.number);
        if !has_way_back {
            delay::bind_parked(&mut desk, queue).await?;
            lock(&self.ways_back).insert(held.number);
        }
        let queue_type = self.shared.options.delayed_queue_type;
        detour.declare(&mut desk, queue_type).await
    }

    fn letter<'a>(&self, one: &'a Move) -> Result<Letter<'a>, String> {
        let (exchange, routing_key, properties) = match &one.way {
            Way::Tail => (
                ShortString::default(),
                short(self.queue(&one.held))?,
                message::again(&one.held.properties),
            ),
            Way::Parked { detour, .. } => (
                short(&detour.exchange)?,
                short(&detour.routing_key)?,
                message::parked(&one.held.properties),
            ),
        };
        Ok(Letter {
            exchange,
            routing_key,
            properties,
            body: &one.held.body,
        })
    }

    async fn acknowledge(&self, tags: Vec<u64>) -> Result<(), ServiceError> {
        let acks = lock(&self.ledger).acks(tags.clone());
        let frames = acks.into_iter().map(|ack| {
            let (tag, multiple) = match ack {
                Ack::One(tag) => (tag, false),
                Ack::UpTo(tag) => (tag, true),
            };
            self.channel.basic_ack(tag, BasicAckOptions { multiple })
        });
        self.write(frames, tags).await
    }
}
