//! Sending settlements to the broker.

use std::sync::Arc;

use futures_util::FutureExt;

use crate::backoff::Backoff;
use crate::boundary::{Consumer, QueueEnd, ServiceError, Settled, Settlement};
use crate::env;
use crate::worker::delivery::in_flight::InFlightDelivery;
use crate::worker::driver::{DeliveryEvent, DeliveryKey, Driver, EffectError, Finished, Payload};

/// Settlements of one request.
type Batch = Vec<(DeliveryKey, Settlement)>;

impl Driver {
    pub(crate) fn send_settlements(&mut self) {
        if self.settlements.is_empty() {
            return;
        }
        // Settlements that republish may take long, and must not delay the others.
        let is_quick = |(_, settlement): &(DeliveryKey, Settlement)| settlement.is_quick();
        let all = std::mem::take(&mut self.settlements);
        let (quick, slow): (Vec<_>, Vec<_>) = all.into_iter().partition(is_quick);
        for batch in [quick, slow] {
            for (consumer, batch) in self.by_consumer(batch) {
                self.send_batch(consumer, batch);
            }
        }
    }

    /// Groups settlements by consumer; there is nearly always one.
    pub(crate) fn by_consumer(
        &mut self,
        settlements: Vec<(DeliveryKey, Settlement)>,
    ) -> Vec<(Arc<dyn Consumer>, Batch)> {
        let mut batches: Vec<(Arc<dyn Consumer>, Batch)> = Vec::new();
        for (key, settlement) in settlements {
            let Some(entry) = self.in_flight.find(key) else {
                continue;
            };
            let by = self.connection.settling_consumer(&entry.consumer);
            let Some(by) = by else {
                self.event(key, DeliveryEvent::Failed(EffectError::NotSent));
                continue;
            };
            match batches
                .iter_mut()
                .find(|(known, _)| Arc::ptr_eq(known, &by))
            {
                Some((_, batch)) => batch.push((key, settlement)),
                None => batches.push((by, vec![(key, settlement)])),
            }
        }
        batches
    }

    /// Passes the outcomes of a batch to its deliveries.
    pub(crate) fn settled(
        &mut self,
        consumer: &Arc<dyn Consumer>,
        keys: Vec<DeliveryKey>,
        outcomes: Vec<Result<Settled, ServiceError>>,
    ) {
        if let Some(error) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
            tracing::warn!("{error}");
            // A replaced consumer reports a broken connection only here.
            if self.connection.is_replaced(consumer) {
                self.invalidate_deliveries_of(consumer);
            }
        }
        if outcomes.len() < keys.len() {
            let missing = keys.len() - outcomes.len();
            tracing::error!("the broker left {missing} settlements unanswered");
        }
        let mut outcomes = outcomes.into_iter();
        for key in keys {
            let outcome = outcomes.next();
            self.note_settled(key, outcome.as_ref());
            let event = match outcome {
                Some(Ok(Settled::Done | Settled::Written)) => DeliveryEvent::Done,
                Some(Ok(Settled::Gone)) => DeliveryEvent::Gone,
                Some(Err(error)) => DeliveryEvent::Failed(EffectError::from(&error)),
                None => DeliveryEvent::Failed(EffectError::Unknown),
            };
            self.event(key, event);
        }
        self.connection.drop_drained(&self.in_flight);
    }

    /// Counts a delivery that the shutdown has returned, and logs one that the broker does
    /// not hold any more.
    fn note_settled(&mut self, key: DeliveryKey, outcome: Option<&Result<Settled, ServiceError>>) {
        let Some(Ok(settled)) = outcome else { return };
        let Some(entry) = self.in_flight.find(key) else {
            return;
        };
        match (settled, &entry.payload) {
            (Settled::Gone, Payload::Task { job, .. }) => tracing::warn!(
                "task {} of queue {}: the broker does not hold its delivery any more",
                job.id,
                entry.queue
            ),
            (Settled::Gone, Payload::Rejected(_)) => {}
            (Settled::Done | Settled::Written, _) => {
                let is_returned = self.shutdown.is_requested() && entry.state.is_returning();
                self.monitor.counters.returned += u64::from(is_returned);
            }
        }
    }

    pub(crate) fn send_batch(&mut self, consumer: Arc<dyn Consumer>, batch: Batch) {
        let (keys, batch): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let settling = self.connection.settle(Arc::clone(&consumer), batch);
        let settled = settling.map(|settled| Finished::Settled(consumer, keys, settled));
        self.futures.push(Box::pin(settled));
    }

    /// Returns the message of a delivery to its queue, from the copy in memory if the
    /// broker does not hold it any more.
    pub(crate) fn restore(&mut self, key: DeliveryKey) {
        let Some(entry) = self.in_flight.find(key) else {
            return;
        };
        let Payload::Task { job, .. } = &entry.payload else {
            return;
        };
        let Some(consumer) = self.connection.settling_consumer(&entry.consumer) else {
            return self.event(key, DeliveryEvent::Restored(Err(EffectError::NotSent)));
        };
        let (tag, queue, job) = (entry.tag.clone(), Arc::clone(&entry.queue), Arc::clone(job));
        let object = format!("the message of task {}", job.id);
        let restoring = self.executor.with_timeout("restore", object, async move {
            consumer.restore(&tag, &queue, &job.message).await
        });
        let restored = restoring.map(move |outcome| Finished::Restored(key, outcome));
        self.futures.push(Box::pin(restored));
    }

    /// Requeues what the broker may still hold of a message that was delivered again while
    /// its task was in flight. That is nothing, unless the message was sent twice.
    pub(crate) fn return_replaced(&mut self, delivery: InFlightDelivery) {
        if delivery.replaced.is_empty() {
            return;
        }
        let Some(consumer) = self.connection.settling_consumer(&delivery.consumer) else {
            return;
        };
        let requeue = |tag| Settlement::Requeue(tag, QueueEnd::Tail);
        let mut batch: Vec<_> = delivery.replaced.into_iter().map(requeue).collect();
        self.futures.push(Box::pin(async move {
            for attempt in 0.. {
                let settled = consumer.settle(&batch).await;
                let mut outcomes = settled.into_iter();
                batch.retain(|_| outcomes.next().is_none_or(|outcome| outcome.is_err()));
                if batch.is_empty() {
                    break;
                }
                tokio::time::sleep(Backoff::CONNECTION.delay(attempt, env::random())).await;
            }
            Finished::Nothing
        }));
    }

    /// Reports a delivery of which it is unknown whether its message is still on the
    /// broker.
    pub(crate) fn report_in_doubt(&mut self, key: DeliveryKey) {
        self.monitor.counters.in_doubt += 1;
        if let Some(entry) = self.in_flight.find(key)
            && let Payload::Task { job, .. } = &entry.payload
        {
            tracing::error!(
                "task {} of queue {} may be lost or may run again: its acknowledgement is in \
                 doubt, and the broker did not answer when its message was returned",
                job.id,
                entry.queue
            );
        }
    }
}
