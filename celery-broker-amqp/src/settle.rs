//! Telling the server what became of deliveries.

use std::time::{Duration, SystemTime};

use celery_runtime::{QueueEnd, ServiceError, ServiceErrorKind, Settlement};
use futures_util::future::try_join_all;
use lapin::options::BasicAckOptions;
use lapin::types::ShortString;
use tokio::time::Instant;

use crate::consumer::Inner;
use crate::delay::{self, Detour};
use crate::known::Kind;
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
    Parked(Detour),
}

impl Inner {
    pub(crate) async fn settle(&self, batch: &[Settlement]) -> Result<(), ServiceError> {
        let Plan {
            mut acks,
            rejections,
            moves,
        } = self.plan(batch, SystemTime::now());
        let moved = self.move_on(moves, &mut acks).await;
        let turn = self.settling.lock().await;
        if !rejections.is_empty() {
            self.reject(rejections).await?;
        }
        self.acknowledge(acks).await?;
        drop(turn);
        moved
    }

    fn plan(&self, batch: &[Settlement], now: SystemTime) -> Plan {
        let mut plan = Plan::default();
        for settlement in batch {
            // What was settled before, or went with its connection.
            let Some(tag) = self.own(settlement.tag()) else {
                continue;
            };
            match settlement {
                Settlement::Ack(_) => plan.acks.push(tag),
                Settlement::Reject(_) => plan.rejections.push((tag, false)),
                Settlement::Requeue(_, QueueEnd::Head) => plan.rejections.push((tag, true)),
                Settlement::Requeue(_, QueueEnd::Tail) => {
                    plan.moves.extend(self.move_of(tag, |_| Some(Way::Tail)));
                }
                Settlement::Park(_, until) => {
                    let left = until.duration_since(now).unwrap_or_default();
                    let far = |queue: &str| (left > SOON).then(|| delay::park(queue, left))?;
                    match self.move_of(tag, |queue| far(queue).map(Way::Parked)) {
                        Some(parked) => plan.moves.push(parked),
                        None => self.soon.insert(Instant::now() + left, tag),
                    }
                }
            }
        }
        plan
    }

    fn move_of(&self, tag: u64, way: impl FnOnce(&str) -> Option<Way>) -> Option<Move> {
        let held = lock(&self.ledger).get(tag)?.clone();
        let way = way(self.queue(&held))?;
        Some(Move { tag, held, way })
    }

    /// Sends messages anew, and adds those that the server has to what is
    /// acknowledged.
    async fn move_on(&self, moves: Vec<Move>, acks: &mut Vec<u64>) -> Result<(), ServiceError> {
        if moves.is_empty() {
            return Ok(());
        }
        let attempt = self.attempt("put off messages of");
        let live = self.shared.publishing.live(attempt).await?;
        let mut letters = Vec::with_capacity(moves.len());
        for one in &moves {
            if let Way::Parked(detour) = &one.way {
                self.prepare(&live, detour, self.queue(&one.held)).await?;
            }
            let letter = self.letter(one);
            letters.push(letter.map_err(|cause| attempt.error(ServiceErrorKind::Invalid, cause))?);
        }
        let answers = self.shared.send(&live, letters).await;
        let mut failure = Ok(());
        for (one, answer) in moves.iter().zip(answers) {
            match answer {
                Ok(()) => acks.push(one.tag),
                Err(error) => {
                    // The way back may have gone with the queue.
                    live.known.forget(Kind::Parking, self.queue(&one.held));
                    failure = Err(error);
                }
            }
        }
        failure
    }

    async fn prepare(&self, live: &Live, detour: &Detour, queue: &str) -> Result<(), ServiceError> {
        let object = format!("the delayed messages of queue {queue}");
        let attempt = self.shared.attempt("prepare", &object);
        let mut desk = Desk::new(live, attempt);
        delay::bind_parked(&mut desk, queue).await?;
        detour
            .declare(&mut desk, self.shared.options.delayed_queue_type)
            .await
    }

    fn letter<'a>(&self, one: &'a Move) -> Result<Letter<'a>, String> {
        let (exchange, routing_key, properties) = match &one.way {
            Way::Tail => (
                ShortString::default(),
                short(self.queue(&one.held))?,
                message::again(&one.held.properties),
            ),
            Way::Parked(detour) => (
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
        let written = self.live.answer(try_join_all(frames)).await;
        written.map_err(|error| self.attempt("acknowledge messages of").failed(error))?;
        lock(&self.ledger).remove(tags);
        Ok(())
    }
}
