//! Settling deliveries: acknowledge, reject, requeue and defer.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use celery_runtime::{QueueEnd, ServiceError, ServiceErrorKind, Settled, Settlement};
use futures_util::future::{FutureExt, join_all};
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use lapin::types::ShortString;
use tokio::time::Instant;

use super::inner::{ConsumerInner, ReturnPath, TagState};
use super::pending_frames::SettlementFrame;
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
    /// The frames of earlier settlements that are repeated.
    repeated: Vec<SettlementFrame>,
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
            repeated,
            mut outcomes,
        } = self.plan(batch, SystemTime::now());
        let frames = self.queue_frames(rejections, acks);
        tokio::join!(self.await_writes(&frames), self.await_writes(&repeated));
        self.set_outcomes(&mut outcomes, &repeated, Settled::Gone);
        let failed = self.set_outcomes(&mut outcomes, &frames, Settled::Written);
        if let Some(error) = failed {
            // A copy that is published now could not be acknowledged here.
            let unsent: Vec<u64> = republications.iter().map(|one| one.tag).collect();
            outcomes.set(&unsent, &Err(error));
            return outcomes.into_results();
        }
        if republications.is_empty() {
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
        let mut requeues = Vec::new();
        for republication in rejected {
            let tag = republication.tag;
            match republication.target {
                RepublishTarget::QueueTail => requeues.push((tag, true)),
                // The server cannot delay it, so it waits in the consumer.
                RepublishTarget::Delayed { due, .. } => {
                    if self.local_delays.insert(due, tag) {
                        outcomes.set(&[tag], &Ok(Settled::Done));
                    } else {
                        requeues.push((tag, true));
                    }
                }
            }
        }
        let frames = self.queue_frames(requeues, confirmed);
        self.await_writes(&frames).await;
        self.set_outcomes(&mut outcomes, &frames, Settled::Written);
        outcomes.into_results()
    }

    /// Sets the outcome of each frame's deliveries, and returns the first error.
    fn set_outcomes(
        &self,
        outcomes: &mut Outcomes,
        frames: &[SettlementFrame],
        settled: Settled,
    ) -> Option<ServiceError> {
        let mut first_error = None;
        for frame in frames {
            let written = self.written(frame);
            outcomes.set(&frame.tags, &written.clone().map(|()| settled));
            first_error = first_error.or(written.err());
        }
        first_error
    }

    /// Sorts a batch by operation. Deliveries that are due soon wait in the
    /// consumer from now on.
    fn plan(&self, batch: &[Settlement], now: SystemTime) -> SettlementPlan {
        let mut plan = SettlementPlan::default();
        let mut seen = BTreeSet::new();
        for settlement in batch {
            // Gone: settled before, also in this batch, or lost with its connection.
            let tag = match self.tag_state(settlement.tag()) {
                TagState::Unsettled(tag) => seen.insert(tag).then_some(tag),
                TagState::Pending(tag, write) => {
                    let tags = vec![tag];
                    plan.repeated.push(SettlementFrame { tags, write });
                    plan.outcomes.0.push((Some(tag), Ok(Settled::Gone)));
                    continue;
                }
                TagState::Gone => None,
            };
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
                    if delay <= MAX_LOCAL_DELAY || !self.can_defer(tag) {
                        if self.local_delays.insert(due, tag) {
                            plan.outcomes.set(&[tag], &Ok(Settled::Done));
                        } else {
                            // An interrupted consumer hands out nothing more.
                            plan.rejections.push((tag, true));
                        }
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

    /// Reports whether the server can hold a deferred delivery.
    fn can_defer(&self, tag: u64) -> bool {
        let unacked = lock(&self.unacked);
        let index = unacked.get(tag).map(|unacked| self.queue_index(unacked));
        index.is_none_or(|index| lock(&self.return_paths)[index].is_usable())
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
                let index = self.queue_index(&republication.unacked);
                lock(&self.return_paths)[index] = ReturnPath::Unknown;
            }
        }
        results
    }

    /// Declares the route of a deferred message and binds its due queue to the end of
    /// the route.
    async fn declare_route(
        &self,
        connection: &AmqpConnection,
        route: &DelayRoute,
        unacked: &UnackedDelivery,
    ) -> Result<(), ServiceError> {
        let index = self.queue_index(unacked);
        let (name, queue) = &self.queues[index];
        let object = format!("the delayed messages of queue {name}");
        let mut declarer = Declarer::new(connection, self.shared.context("prepare", &object));
        let is_bound = lock(&self.return_paths)[index] == ReturnPath::Bound;
        if !is_bound {
            delay::bind_deferred(&mut declarer, queue).await?;
            lock(&self.return_paths)[index] = ReturnPath::Bound;
        }
        let queue_type = self.shared.options.delayed_queue_type;
        route.declare(&mut declarer, queue_type).await?;
        // It exists, so its messages need no channel of their own.
        connection.lanes.add_exchange(&route.exchange);
        Ok(())
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

    /// Queues the frames of rejections, with a flag for those to requeue, and then
    /// those of acknowledgements: one that covers several deliveries must not
    /// overtake the rejection of one of them. From now on these deliveries are in
    /// doubt, until [`written`](Self::written) says otherwise.
    pub(super) fn queue_frames(
        &self,
        mut rejections: Vec<(u64, bool)>,
        acks: Vec<u64>,
    ) -> Vec<SettlementFrame> {
        let mut unacked = lock(&self.unacked);
        rejections.sort_unstable();
        rejections.retain(|(tag, _)| unacked.remove(*tag));
        let mut frames = Vec::with_capacity(rejections.len() + 1);
        for (tag, requeue) in rejections {
            let channel = self.channel.clone();
            frames.push(SettlementFrame::queue(vec![tag], async move {
                if requeue {
                    // From RabbitMQ 4.3 on `basic.nack` does not count towards the
                    // delivery limit, and `basic.reject` does.
                    let options = BasicNackOptions {
                        requeue,
                        ..BasicNackOptions::default()
                    };
                    channel.basic_nack(tag, options).await
                } else {
                    let options = BasicRejectOptions { requeue };
                    channel.basic_reject(tag, options).await
                }
            }));
        }
        for Ack(tags) in unacked.acks(acks) {
            let Some(&last) = tags.last() else { continue };
            for tag in &tags {
                unacked.remove(*tag);
            }
            let multiple = tags.len() > 1;
            let channel = self.channel.clone();
            let write = async move { channel.basic_ack(last, BasicAckOptions { multiple }).await };
            frames.push(SettlementFrame::queue(tags, write));
        }
        lock(&self.pending_frames).insert(&frames);
        frames
    }

    /// Waits until the frames are written, have failed, or the time for a response
    /// has passed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the frames are written without this call, too.
    pub(super) async fn await_writes(&self, frames: &[SettlementFrame]) {
        let writes = join_all(frames.iter().map(|frame| frame.write.clone()));
        let _ = self.connection.await_response(writes.map(Ok)).await;
    }

    /// Forgets the deliveries of a written frame. Otherwise returns an error that is
    /// in doubt: lapin may still write the frame.
    pub(super) fn written(&self, frame: &SettlementFrame) -> Result<(), ServiceError> {
        let context = self.context("settle messages of");
        let error = match frame.write.peek() {
            Some(Ok(())) => {
                lock(&self.pending_frames).remove(&frame.tags);
                return Ok(());
            }
            Some(Err(error)) => context.wrap(error.clone()),
            None => context.error(ServiceErrorKind::TimedOut, "the socket accepts no data"),
        };
        if error.is_in_doubt() {
            return Err(error);
        }
        let error = context.error(ServiceErrorKind::Disconnected, error.to_string());
        Err(error)
    }
}
