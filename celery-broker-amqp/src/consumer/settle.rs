//! Telling the server what became of deliveries.

use std::time::{Duration, SystemTime};

use celery_runtime::{QueueEnd, ServiceError, ServiceErrorKind, Settlement};
use lapin::options::BasicAckOptions;
use lapin::types::ShortString;
use tokio::time::Instant;

use super::inner::ConsumerInner;
use super::unacked::{Ack, UnackedDelivery};
use crate::connection::AmqpConnection;
use crate::declarer::Declarer;
use crate::delay::{self, DelayRoute};
use crate::message;
use crate::publish::OutgoingMessage;
use crate::sync::lock;
use crate::table::short_string;

/// What is due within this time is waited for here: the shortest way through
/// the server takes as long.
const MAX_LOCAL_WAIT: Duration = Duration::from_millis(100);

/// A batch, sorted by what has to be done.
#[derive(Default)]
struct SettlementPlan {
    acks: Vec<u64>,
    /// And whether to give back.
    rejections: Vec<(u64, bool)>,
    /// To be sent anew before they are acknowledged.
    republishes: Vec<Republish>,
}

/// What became of messages that were to be sent anew.
#[derive(Default)]
struct RepublishOutcome {
    /// The server has them.
    republished: Vec<u64>,
    /// They can never be sent.
    failed: Vec<Republish>,
    /// Of those that may be sent later.
    failure: Option<ServiceError>,
}

struct Republish {
    tag: u64,
    unacked: UnackedDelivery,
    way: RepublishTarget,
}

/// How a message comes back to its queue.
enum RepublishTarget {
    /// To the end of the queue.
    QueueTail,
    /// When its time has come.
    Delayed { route: DelayRoute, due: Instant },
}

impl ConsumerInner {
    pub(super) async fn settle(&self, batch: &[Settlement]) -> Result<(), ServiceError> {
        let plan = self.plan(batch, SystemTime::now());
        self.write_settlements(plan.rejections, plan.acks).await?;
        let RepublishOutcome {
            republished,
            failed,
            failure,
        } = self.republish(plan.republishes).await;
        let mut back = Vec::new();
        for one in failed {
            match one.way {
                RepublishTarget::QueueTail => back.push((one.tag, true)),
                // Kept here until it is due, as it cannot be elsewhere.
                RepublishTarget::Delayed { due, .. } => self.due_queue.insert(due, one.tag),
            }
        }
        self.write_settlements(back, republished).await?;
        failure.map_or(Ok(()), Err)
    }

    async fn write_settlements(
        &self,
        rejections: Vec<(u64, bool)>,
        acks: Vec<u64>,
    ) -> Result<(), ServiceError> {
        let _guard = self.settling.lock().await;
        if !rejections.is_empty() {
            self.reject(rejections).await?;
        }
        self.acknowledge(acks).await
    }

    fn plan(&self, batch: &[Settlement], now: SystemTime) -> SettlementPlan {
        let mut plan = SettlementPlan::default();
        for settlement in batch {
            // What was settled before, or went with its connection.
            let Some(tag) = self.resolve_tag(settlement.tag()) else {
                continue;
            };
            match settlement {
                Settlement::Ack(_) => plan.acks.push(tag),
                Settlement::Reject(_) => plan.rejections.push((tag, false)),
                Settlement::Requeue(_, QueueEnd::Head) => plan.rejections.push((tag, true)),
                Settlement::Requeue(_, QueueEnd::Tail) => {
                    plan.republishes
                        .extend(self.republish_of(tag, |_| RepublishTarget::QueueTail));
                }
                Settlement::Defer(_, until) => {
                    let left = until.duration_since(now).unwrap_or_default();
                    let due = Instant::now() + left;
                    if left <= MAX_LOCAL_WAIT {
                        self.due_queue.insert(due, tag);
                        continue;
                    }
                    plan.republishes.extend(self.republish_of(tag, |queue| {
                        RepublishTarget::Delayed {
                            route: delay::deferred_route(queue, left),
                            due,
                        }
                    }));
                }
            }
        }
        plan
    }

    fn republish_of(
        &self,
        tag: u64,
        way: impl FnOnce(&str) -> RepublishTarget,
    ) -> Option<Republish> {
        let unacked = lock(&self.unacked).get(tag)?.clone();
        let way = way(self.queue_name(&unacked));
        Some(Republish { tag, unacked, way })
    }

    /// Sends messages anew, one by one a second time where something on their
    /// way had to be declared again.
    async fn republish(&self, mut republishes: Vec<Republish>) -> RepublishOutcome {
        let mut moved = RepublishOutcome::default();
        for _ in 0..2 {
            let answers = self.republish_once(&republishes).await;
            for (one, answer) in std::mem::take(&mut republishes).into_iter().zip(answers) {
                match answer {
                    Ok(()) => moved.republished.push(one.tag),
                    Err(error) if error.is_transient() => moved.failure = Some(error),
                    Err(error) => {
                        tracing::warn!("{error}");
                        republishes.push(one);
                    }
                }
            }
        }
        moved.failed = republishes;
        moved
    }

    async fn republish_once(&self, republishes: &[Republish]) -> Vec<Result<(), ServiceError>> {
        if republishes.is_empty() {
            return Vec::new();
        }
        let context = self.context("put off messages of");
        let connection = match self.shared.publishing.connection(context).await {
            Ok(connection) => connection,
            Err(error) => return vec![Err(error); republishes.len()],
        };
        let mut answers = Vec::with_capacity(republishes.len());
        let mut letters = Vec::with_capacity(republishes.len());
        for one in republishes {
            let prepared = match &one.way {
                RepublishTarget::Delayed { route, .. } => {
                    self.declare_route(&connection, route, &one.unacked).await
                }
                RepublishTarget::QueueTail => Ok(()),
            };
            let letter = prepared.and_then(|()| {
                self.outgoing_message(one)
                    .map_err(|cause| context.error(ServiceErrorKind::Invalid, cause))
            });
            answers.push(letter.map(|letter| letters.push(letter)));
        }
        let mut sent = self
            .shared
            .publish_messages(&connection, letters)
            .await
            .into_iter();
        for (one, answer) in republishes.iter().zip(&mut answers) {
            if answer.is_ok() {
                *answer = sent.next().unwrap_or(Ok(()));
            }
            if let (Err(_), RepublishTarget::Delayed { route, .. }) = (&answer, &one.way) {
                // Somebody may have deleted what was known to be there.
                route.forget_declarations(&connection.declarations);
                lock(&self.deferred_bindings).remove(&one.unacked.queue_index);
            }
        }
        answers
    }

    /// Makes sure that a parked message finds its way out and back.
    async fn declare_route(
        &self,
        connection: &AmqpConnection,
        route: &DelayRoute,
        unacked: &UnackedDelivery,
    ) -> Result<(), ServiceError> {
        let queue = self.queue_name(unacked);
        let object = format!("the delayed messages of queue {queue}");
        let mut declarer = Declarer::new(connection, self.shared.context("prepare", &object));
        let has_way_back = lock(&self.deferred_bindings).contains(&unacked.queue_index);
        if !has_way_back {
            delay::bind_deferred(&mut declarer, queue).await?;
            lock(&self.deferred_bindings).insert(unacked.queue_index);
        }
        let queue_type = self.shared.options.delayed_queue_type;
        route.declare(&mut declarer, queue_type).await
    }

    fn outgoing_message<'a>(&self, one: &'a Republish) -> Result<OutgoingMessage<'a>, String> {
        let (exchange, routing_key, properties) = match &one.way {
            RepublishTarget::QueueTail => (
                ShortString::default(),
                short_string(self.queue_name(&one.unacked))?,
                message::requeued(&one.unacked.properties),
            ),
            RepublishTarget::Delayed { route, .. } => (
                short_string(&route.exchange)?,
                short_string(&route.routing_key)?,
                message::deferred(&one.unacked.properties),
            ),
        };
        Ok(OutgoingMessage {
            exchange,
            routing_key,
            properties,
            body: &one.unacked.body,
        })
    }

    async fn acknowledge(&self, tags: Vec<u64>) -> Result<(), ServiceError> {
        let acks = lock(&self.unacked).acks(tags.clone());
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
