//! Settling deliveries: acknowledge, reject, requeue and defer.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use celery_runtime::{QueueEnd, ServiceError, ServiceErrorKind, Settled, Settlement};
use futures_util::future::{FusedFuture, FutureExt, try_join_all};
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use lapin::types::ShortString;
use tokio::time::Instant;

use super::inner::ConsumerInner;
use super::unacked::{Ack, UnackedDelivery};
use crate::connection::AmqpConnection;
use crate::declarer::Declarer;
use crate::delay::{self, DelayRoute};
use crate::lanes::OutgoingMessage;
use crate::message;
use crate::sync::lock;
use crate::table::short_string;

/// The longest delay that a deferred delivery spends in the consumer. The
/// shortest route through the server takes as long.
const MAX_LOCAL_DELAY: Duration = Duration::from_millis(100);

/// A batch of settlements, sorted by operation.
#[derive(Default)]
struct SettlementPlan {
    acks: Vec<u64>,
    /// The tags to reject, and whether to requeue them.
    rejections: Vec<(u64, bool)>,
    /// The deliveries to publish again before they are acknowledged.
    republications: Vec<Republication>,
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

/// The deliveries of a batch that were to be published again, by outcome.
#[derive(Default)]
struct RepublishOutcome {
    /// The tags of the deliveries that the server has confirmed.
    confirmed: Vec<u64>,
    /// The deliveries that failed permanently.
    rejected: Vec<Republication>,
    /// The tags of the deliveries that failed transiently.
    failed: Vec<(u64, ServiceError)>,
}

/// A delivery to publish again.
struct Republication {
    tag: u64,
    unacked: UnackedDelivery,
    target: RepublishTarget,
}

/// The route on which a delivery returns to its queue.
enum RepublishTarget {
    /// To the end of the queue, at once.
    QueueTail,
    /// Through the delay queues, at its due time.
    Delayed { route: DelayRoute, due: Instant },
}

impl ConsumerInner {
    /// Settles a batch and returns the outcome of each settlement.
    pub(super) async fn settle(&self, batch: &[Settlement]) -> Vec<Result<Settled, ServiceError>> {
        let SettlementPlan {
            acks,
            rejections,
            republications,
            mut outcomes,
        } = self.plan(batch, SystemTime::now());
        let tags = rejections.iter().map(|&(tag, _)| tag);
        let tags: Vec<u64> = tags.chain(acks.iter().copied()).collect();
        let written = self.write_settlements(rejections, acks).await;
        if let Err(error) = &written {
            // A copy that is published now could not be acknowledged here.
            let unsent: Vec<u64> = republications.iter().map(|one| one.tag).collect();
            outcomes.set(&unsent, &Err(error.clone()));
        }
        let is_written = written.is_ok();
        outcomes.set(&tags, &written.map(|()| Settled::Written));
        if republications.is_empty() || !is_written {
            return outcomes.into_results();
        }
        let RepublishOutcome {
            confirmed,
            rejected,
            failed,
        } = self.republish(republications).await;
        for (tag, error) in failed {
            outcomes.set(&[tag], &Err(error));
        }
        let mut tags = confirmed.clone();
        let mut requeues = Vec::new();
        for republication in rejected {
            let tag = republication.tag;
            match republication.target {
                RepublishTarget::QueueTail => {
                    tags.push(tag);
                    requeues.push((tag, true));
                }
                // The server cannot delay it, so it waits in the consumer.
                RepublishTarget::Delayed { due, .. } => {
                    self.due_queue.insert(due, tag);
                    outcomes.set(&[tag], &Ok(Settled::Done));
                }
            }
        }
        let written = self.write_settlements(requeues, confirmed).await;
        outcomes.set(&tags, &written.map(|()| Settled::Written));
        outcomes.into_results()
    }

    /// Writes the rejections, then the acknowledgements.
    async fn write_settlements(
        &self,
        rejections: Vec<(u64, bool)>,
        acks: Vec<u64>,
    ) -> Result<(), ServiceError> {
        let _guard = self.settle_lock.lock().await;
        if !rejections.is_empty() {
            self.reject(rejections).await?;
        }
        self.acknowledge(acks).await
    }

    /// Sorts a batch by operation. Deliveries that are due soon wait in the
    /// consumer from now on.
    fn plan(&self, batch: &[Settlement], now: SystemTime) -> SettlementPlan {
        let mut plan = SettlementPlan::default();
        let mut seen = BTreeSet::new();
        for settlement in batch {
            // No tag: settled before, also in this batch, or lost with its
            // connection.
            let tag = self.resolve_tag(settlement.tag());
            let tag = tag.filter(|tag| seen.insert(*tag));
            plan.outcomes.0.push((tag, Ok(Settled::Gone)));
            let Some(tag) = tag else {
                continue;
            };
            match settlement {
                Settlement::Ack(_) => plan.acks.push(tag),
                Settlement::Reject(_) => plan.rejections.push((tag, false)),
                Settlement::Requeue(_, QueueEnd::Head) => plan.rejections.push((tag, true)),
                Settlement::Requeue(_, QueueEnd::Tail) => {
                    plan.republications
                        .extend(self.republication(tag, |_| RepublishTarget::QueueTail));
                }
                Settlement::Defer(_, until) => {
                    let delay = until.duration_since(now).unwrap_or_default();
                    let due = Instant::now() + delay;
                    if delay <= MAX_LOCAL_DELAY {
                        self.due_queue.insert(due, tag);
                        plan.outcomes.set(&[tag], &Ok(Settled::Done));
                        continue;
                    }
                    let target = |queue: &str| RepublishTarget::Delayed {
                        route: delay::deferred_route(queue, delay),
                        due,
                    };
                    plan.republications.extend(self.republication(tag, target));
                }
            }
        }
        plan
    }

    fn republication(
        &self,
        tag: u64,
        target: impl FnOnce(&str) -> RepublishTarget,
    ) -> Option<Republication> {
        let unacked = lock(&self.unacked).get(tag)?.clone();
        let target = target(self.queue_name(&unacked));
        Some(Republication {
            tag,
            unacked,
            target,
        })
    }

    /// Publishes deliveries again. Those that fail permanently are tried a second
    /// time, because the first attempt may have used an exchange or a queue that
    /// was deleted and is declared again by the second.
    async fn republish(&self, mut republications: Vec<Republication>) -> RepublishOutcome {
        let mut outcome = RepublishOutcome::default();
        for _ in 0..2 {
            let results = self.republish_once(&republications).await;
            let attempted = std::mem::take(&mut republications);
            for (republication, result) in attempted.into_iter().zip(results) {
                match result {
                    Ok(()) => outcome.confirmed.push(republication.tag),
                    Err(error) if error.is_transient() => {
                        outcome.failed.push((republication.tag, error));
                    }
                    Err(error) => {
                        tracing::warn!("consumer/settle: {error}");
                        republications.push(republication);
                    }
                }
            }
        }
        outcome.rejected = republications;
        outcome
    }

    async fn republish_once(
        &self,
        republications: &[Republication],
    ) -> Vec<Result<(), ServiceError>> {
        if republications.is_empty() {
            return Vec::new();
        }
        let context = self.context("defer messages of");
        let connection = match self.shared.publishing.connection(context).await {
            Ok(connection) => connection,
            Err(error) => return vec![Err(error); republications.len()],
        };
        let mut results = Vec::with_capacity(republications.len());
        let mut messages = Vec::with_capacity(republications.len());
        for republication in republications {
            let declared = match &republication.target {
                RepublishTarget::Delayed { route, .. } => {
                    self.declare_route(&connection, route, &republication.unacked)
                        .await
                }
                RepublishTarget::QueueTail => Ok(()),
            };
            let message = declared.and_then(|()| {
                self.republished_message(republication)
                    .map_err(|cause| context.error(ServiceErrorKind::Invalid, cause))
            });
            results.push(message.map(|message| messages.push(message)));
        }
        let published = self.shared.publish_messages(&connection, messages).await;
        let mut published = published.into_iter();
        for (republication, result) in republications.iter().zip(&mut results) {
            if result.is_ok() {
                *result = published.next().unwrap_or(Ok(()));
            }
            if let (Err(_), RepublishTarget::Delayed { route, .. }) =
                (&result, &republication.target)
            {
                // A part of the route may have been deleted on the server.
                route.forget_declarations(&connection.declarations);
                lock(&self.deferred_bindings).remove(&republication.unacked.queue_index);
            }
        }
        results
    }

    /// Declares the route of a deferred message and binds its queue to the end of
    /// the route.
    async fn declare_route(
        &self,
        connection: &AmqpConnection,
        route: &DelayRoute,
        unacked: &UnackedDelivery,
    ) -> Result<(), ServiceError> {
        let queue = self.queue_name(unacked);
        let object = format!("the delayed messages of queue {queue}");
        let mut declarer = Declarer::new(connection, self.shared.context("prepare", &object));
        let is_bound = lock(&self.deferred_bindings).contains(&unacked.queue_index);
        if !is_bound {
            delay::bind_deferred(&mut declarer, queue).await?;
            lock(&self.deferred_bindings).insert(unacked.queue_index);
        }
        let queue_type = self.shared.options.delayed_queue_type;
        route.declare(&mut declarer, queue_type).await
    }

    fn republished_message(
        &self,
        republication: &Republication,
    ) -> Result<OutgoingMessage, String> {
        let unacked = &republication.unacked;
        let (exchange, routing_key, properties) = match &republication.target {
            RepublishTarget::QueueTail => (
                ShortString::default(),
                short_string(self.queue_name(unacked))?,
                message::requeued(&unacked.properties),
            ),
            RepublishTarget::Delayed { route, .. } => (
                short_string(&route.exchange)?,
                short_string(&route.routing_key)?,
                message::deferred(&unacked.properties),
            ),
        };
        Ok(OutgoingMessage {
            exchange,
            routing_key,
            properties,
            body: unacked.body.clone(),
            mandatory: true,
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

    /// Rejects deliveries, and requeues those with the flag. The caller holds the
    /// lock `settle_lock`.
    pub(super) async fn reject(&self, mut tags: Vec<(u64, bool)>) -> Result<(), ServiceError> {
        tags.sort_unstable();
        let rejections = tags.iter().map(|&(tag, requeue)| {
            self.channel
                .basic_reject(tag, BasicRejectOptions { requeue })
        });
        let settled = tags.iter().map(|&(tag, _)| tag).collect();
        self.write(rejections, settled).await
    }

    /// Writes settlement frames and forgets their deliveries.
    ///
    /// lapin sends a frame once its future has been polled, even if this call is
    /// cancelled then. RabbitMQ closes the channel when a delivery is settled
    /// twice, so the deliveries are forgotten right after the first poll.
    async fn write<F>(
        &self,
        frames: impl Iterator<Item = F>,
        tags: Vec<u64>,
    ) -> Result<(), ServiceError>
    where
        F: Future<Output = lapin::Result<()>> + Send,
    {
        let mut frames: Vec<_> = frames.map(|frame| Box::pin(frame).fuse()).collect();
        let first_poll = poll_fn(|cx| {
            let polled = frames.iter_mut().map(|frame| frame.poll_unpin(cx));
            // Every frame is polled, even after one that failed.
            let polled: Vec<_> = polled.collect();
            Poll::Ready(polled.into_iter().find_map(|poll| match poll {
                Poll::Ready(Err(error)) => Some(error),
                _ => None,
            }))
        });
        let failure = first_poll.await;
        lock(&self.unacked).remove(tags);
        let pending = frames.into_iter().filter(|frame| !frame.is_terminated());
        let written = match failure {
            None => {
                let pending = self.connection.await_response(try_join_all(pending)).await;
                pending.map(drop)
            }
            Some(error) => Err(error),
        };
        written.map_err(|error| self.context("settle messages of").wrap(error))
    }
}
