//! Moves due messages to their task queues, for workers that do not read due queues.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use celery_protocol::Value;
use celery_runtime::{Queue, ServiceError, ServiceErrorKind};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use uuid::Uuid;

use super::inner::{ConsumerInner, ReturnPath};
use crate::connection::AmqpConnection;
use crate::declarer::Declarer;
use crate::delay;
use crate::lanes::{LaneConnection, OutgoingMessage};
use crate::message;
use crate::options::PublisherConfirms;
use crate::sync::lock;
use crate::transient_channel::TransientChannel;

/// The number of messages that are moved together, after the first one.
const BATCH_SIZE: usize = 100;

/// The time for the confirms of a batch. The messages of a batch without them return to
/// the due queue, and may be in both.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for moving messages when a consumer ends.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest number of checks that are skipped after batches without confirms.
const MAX_SKIPPED_CHECKS: u32 = 1 << 10;

/// Whose due messages are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readers {
    /// Those of due queues without a consumer.
    None,
    /// Those of due queues with fewer consumers than their task queue has.
    FewerThanTaskQueue,
}

/// The ready messages and the consumers of a queue.
struct QueueCounts {
    messages: u32,
    consumers: u32,
}

/// A due queue.
struct DueQueue {
    name: ShortString,
    /// The index of its task queue.
    queue_index: usize,
    /// Whether the consumer reads it.
    is_consumed: bool,
}

/// The batches of a due queue without confirms, in succession.
#[derive(Default)]
struct Doubts {
    count: u32,
    /// The number of checks to skip.
    skipped: u32,
}

impl Doubts {
    fn add(&mut self) {
        self.count += 1;
        let skipped = 1u32.checked_shl(self.count).unwrap_or(u32::MAX);
        self.skipped = skipped.min(MAX_SKIPPED_CHECKS);
    }

    /// Reports whether the next check is skipped.
    fn skips(&mut self) -> bool {
        let skips = self.skipped > 0;
        self.skipped = self.skipped.saturating_sub(1);
        skips
    }
}

impl ConsumerInner {
    /// Checks periodically whether due messages wait while the task queue has consumers
    /// that do not read them, such as Python's workers, and moves them. Returns when the
    /// consumer is closed or dropped, but not amid a move.
    pub(super) async fn move_periodically(&self) {
        let interval = self.shared.options.due_check_interval;
        let mut mover = DueMover::new(self);
        loop {
            // The workers of a fleet check at different times.
            let random = f64::from(Uuid::new_v4().as_u128() as u16) / f64::from(u16::MAX);
            tokio::select! {
                biased;
                () = self.wait_for_finish() => return,
                () = tokio::time::sleep(interval.mul_f64(0.75 + random / 2.0)) => {}
            }
            if !self.connection.is_connected() {
                return;
            }
            self.bind_unavailable().await;
            mover.move_all(Readers::FewerThanTaskQueue).await;
        }
    }

    /// Tries again to declare the due queues that were not available.
    async fn bind_unavailable(&self) {
        for (index, (_, queue)) in self.queues.iter().enumerate() {
            if lock(&self.return_paths)[index] != ReturnPath::Unavailable {
                continue;
            }
            let context = self.context("prepare the delayed messages of");
            let mut declarer = Declarer::new(&self.connection, context);
            let path = match delay::bind_deferred(&mut declarer, queue).await {
                Ok(()) => ReturnPath::Bound,
                Err(error) if error.is_transient() => ReturnPath::Unavailable,
                Err(_) => ReturnPath::Refused,
            };
            lock(&self.return_paths)[index] = path;
        }
    }

    /// Requeues what the consumer has not handed out, closes its channel, which returns
    /// its unsettled deliveries, and moves the due messages that have no reader any more.
    pub(super) async fn finish(&self) -> Result<(), ServiceError> {
        self.request_finish();
        let mut finished = self.finished.lock().await;
        if *finished {
            return Ok(());
        }
        if let Err(error) = self.requeue_unreceived().await {
            // RabbitMQ requeues the unsettled deliveries of a closed channel.
            tracing::debug!("consumer/finish: {error}");
        }
        let closed = self.channel.close(200, "".into());
        let closed = match self.connection.await_response(closed).await {
            Err(error) if self.channel.status().connected() => {
                Err(self.context("stop consuming from").wrap(error))
            }
            _ => Ok(()),
        };
        if self.connection.is_connected() {
            let mut mover = DueMover::new(self);
            let moving = mover.move_all(Readers::None);
            let _ = tokio::time::timeout(FINISH_TIMEOUT, moving).await;
        }
        *finished = true;
        closed
    }

    /// Returns the due queues that exist.
    fn due_queues(&self) -> Vec<DueQueue> {
        let paths = lock(&self.return_paths);
        let queues = self.queues.iter().enumerate();
        let bound = queues.filter(|(index, _)| paths[*index].is_usable());
        let due_queue = |(queue_index, (_, queue)): (usize, &(Arc<str>, Queue))| {
            let name = self.short_string(&delay::due_queue_name(queue)?).ok()?;
            let is_it =
                |source: &super::inner::Source| source.is_due && source.queue_index == queue_index;
            Some(DueQueue {
                name,
                queue_index,
                is_consumed: self.sources.iter().any(is_it),
            })
        };
        bound.filter_map(due_queue).collect()
    }
}

/// Moves the due messages of a consumer.
struct DueMover<'a> {
    consumer: &'a ConsumerInner,
    /// Open while messages are moved or, without the consumer's channel, counted.
    transient: Option<TransientChannel>,
    doubts: HashMap<usize, Doubts>,
}

impl<'a> DueMover<'a> {
    fn new(consumer: &'a ConsumerInner) -> Self {
        Self {
            consumer,
            transient: None,
            doubts: HashMap::new(),
        }
    }

    /// Moves the due messages of all queues.
    async fn move_all(&mut self, readers: Readers) {
        let shared = &self.consumer.shared;
        // An unconfirmed message may be in no queue.
        if shared.options.confirms == PublisherConfirms::Off {
            return;
        }
        let _guard = self.consumer.moving.lock().await;
        for due_queue in self.consumer.due_queues() {
            if shared.publishing.blocked_reason().is_some() {
                break;
            }
            // A message whose confirm does not arrive is published again by each move.
            let doubts = self.doubts.entry(due_queue.queue_index).or_default();
            if doubts.skips() {
                continue;
            }
            let moved = match self.wanted(&due_queue, readers).await {
                Ok(0) => continue,
                Ok(count) => self.move_messages(&due_queue, count, readers).await,
                Err(error) => Err(error),
            };
            if let Err(error) = moved {
                tracing::debug!("consumer/move_due: {error}");
                // Closing the channel returns what was fetched.
                self.transient = None;
            }
        }
        self.transient = None;
    }

    /// Returns how many messages of a due queue are to be moved.
    async fn wanted(
        &mut self,
        due_queue: &DueQueue,
        readers: Readers,
    ) -> Result<usize, ServiceError> {
        let due = self.count(due_queue.name.clone()).await?;
        if due.messages == 0 || (readers == Readers::None && due.consumers > 0) {
            return Ok(0);
        }
        let (name, queue) = &self.consumer.queues[due_queue.queue_index];
        let is_unread = readers == Readers::None || (!due_queue.is_consumed && due.consumers == 0);
        if is_unread && !has_limit(queue) {
            return Ok(due.messages as usize);
        }
        let name = self.consumer.short_string(name)?;
        let task_queue = self.count(name).await?;
        if !is_unread && task_queue.consumers <= due.consumers {
            return Ok(0);
        }
        Ok(room(queue, task_queue.messages).min(due.messages as usize))
    }

    /// Counts the messages of a queue, on the channel of the consumer: a check opens no
    /// channel. RabbitMQ closes the channel if the queue was deleted, which ends a
    /// consumer anyway, but must not end the settlements of an interrupted one.
    async fn count(&mut self, queue: ShortString) -> Result<QueueCounts, ServiceError> {
        let consumer = self.consumer;
        let channel = match consumer.is_interrupted() {
            true => self.transient().await?.channel.clone(),
            false => consumer.channel.clone(),
        };
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let counted = channel.queue_declare(queue, options, FieldTable::default());
        let counted = self.request("count the messages of", counted).await?;
        Ok(QueueCounts {
            messages: counted.message_count(),
            consumers: counted.consumer_count(),
        })
    }

    /// Returns the transient channel, and opens it if there is none.
    async fn transient(&mut self) -> Result<&TransientChannel, ServiceError> {
        let is_closed = |one: &mut TransientChannel| !one.channel.status().connected();
        drop(self.transient.take_if(is_closed));
        if self.transient.is_none() {
            let opened = TransientChannel::open(&self.consumer.connection).await;
            let context = self.consumer.context("move due messages of");
            let mut opened = opened.map_err(|error| context.wrap(error))?;
            opened.is_reusable = false;
            self.transient = Some(opened);
        }
        let opened = self.transient.as_ref();
        Ok(opened.expect("it was opened"))
    }

    /// Moves at most `count` messages. Stops at the first one that the task queue does
    /// not accept, which stays in the due queue, and when the consumer ends.
    async fn move_messages(
        &mut self,
        due_queue: &DueQueue,
        count: usize,
        readers: Readers,
    ) -> Result<(), ServiceError> {
        let mut left = count;
        // The first message shows whether the task queue accepts messages.
        let mut batch_size = 1;
        while left > 0 {
            let moved = self.move_batch(due_queue, left.min(batch_size)).await?;
            let is_ending = readers != Readers::None && self.consumer.is_finish_requested();
            if moved == 0 || is_ending {
                break;
            }
            left -= moved;
            batch_size = BATCH_SIZE;
        }
        Ok(())
    }

    /// Moves at most `max` messages, and returns their number.
    async fn move_batch(
        &mut self,
        due_queue: &DueQueue,
        max: usize,
    ) -> Result<usize, ServiceError> {
        // Before the transient channel, for which declarations wait.
        let context = self.consumer.context("move due messages of");
        let publishing = self.consumer.shared.publishing.connection(context).await?;
        self.transient().await?;
        let batch = self.fetch(due_queue, max).await?;
        if !batch.is_empty() {
            let outcomes = self.publish(&publishing, due_queue, &batch).await?;
            self.settle(&batch, &outcomes).await?;
            outcomes.into_iter().collect::<Result<(), _>>()?;
            self.doubts.remove(&due_queue.queue_index);
        }
        // Declarations that wait come first.
        if let Some(mut transient) = self.transient.take() {
            transient.is_reusable = true;
        }
        Ok(batch.len())
    }

    async fn fetch(
        &mut self,
        due_queue: &DueQueue,
        max: usize,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let mut batch = Vec::new();
        while batch.len() < max {
            // Not another channel: the fetched messages are settled on this one.
            let Some(transient) = &self.transient else {
                break;
            };
            let options = BasicGetOptions::default();
            let fetched = transient.channel.basic_get(due_queue.name.clone(), options);
            match self.request("fetch due messages of", fetched).await? {
                Some(fetched) => batch.push(fetched.delivery),
                None => break,
            }
        }
        Ok(batch)
    }

    /// Publishes due messages to the task queue as they were before they were deferred.
    /// Returns the outcome of each.
    async fn publish(
        &mut self,
        publishing: &Arc<AmqpConnection>,
        due_queue: &DueQueue,
        batch: &[Delivery],
    ) -> Result<Vec<Result<(), ServiceError>>, ServiceError> {
        let consumer = self.consumer;
        let context = consumer.context("move due messages of");
        let routing_key = consumer.short_string(&consumer.queues[due_queue.queue_index].0)?;
        let outgoing = batch.iter().map(|delivery| OutgoingMessage {
            exchange: ShortString::default(),
            routing_key: routing_key.clone(),
            properties: message::deferred(&delivery.properties),
            body: Bytes::copy_from_slice(&delivery.data),
            mandatory: true,
        });
        let outgoing = outgoing.collect();
        let publishing = consumer.shared.publish_messages(publishing, outgoing);
        // Dropping the call cancels the messages that are not written, for example
        // because the server has blocked publishing.
        let outcomes = tokio::time::timeout(CONFIRM_TIMEOUT, publishing).await;
        let outcomes = outcomes.map_err(|_| {
            context.error(
                ServiceErrorKind::TimedOut,
                "RabbitMQ has not confirmed them",
            )
        });
        let is_in_doubt = outcomes.as_ref().map_or(true, |outcomes| {
            let errors = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
            errors.into_iter().any(ServiceError::is_in_doubt)
        });
        if is_in_doubt {
            let doubts = self.doubts.entry(due_queue.queue_index).or_default();
            doubts.add();
        }
        outcomes
    }

    /// Removes the messages that the task queue has from the due queue, and returns the
    /// others to it.
    async fn settle(
        &self,
        batch: &[Delivery],
        outcomes: &[Result<(), ServiceError>],
    ) -> Result<(), ServiceError> {
        let Some(transient) = &self.transient else {
            return Ok(());
        };
        let channel = &transient.channel;
        for (delivery, outcome) in batch.iter().zip(outcomes) {
            let tag = delivery.delivery_tag;
            match outcome {
                Ok(()) => {
                    let acked = channel.basic_ack(tag, BasicAckOptions::default());
                    self.request("acknowledge due messages of", acked).await?;
                }
                Err(_) => {
                    let options = BasicNackOptions {
                        requeue: true,
                        ..BasicNackOptions::default()
                    };
                    let returned = channel.basic_nack(tag, options);
                    self.request("return due messages of", returned).await?;
                }
            }
        }
        Ok(())
    }

    async fn request<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, ServiceError> {
        let connection = &self.consumer.connection;
        connection.await_response(request).await.map_err(|error| {
            connection.note_failure(&error);
            self.consumer.context(operation).wrap(error)
        })
    }
}

/// Reports whether a queue drops messages at its head when it is full.
fn has_limit(queue: &Queue) -> bool {
    let overflow = queue.arguments.get("x-overflow").and_then(Value::as_str);
    let refuses = overflow.is_some_and(|overflow| overflow.starts_with("reject-publish"));
    !refuses
        && ["x-max-length", "x-max-length-bytes"]
            .into_iter()
            .any(|name| queue.arguments.get(name).is_some())
}

/// Returns how many messages a task queue with this number of ready messages accepts
/// without dropping others.
fn room(queue: &Queue, ready: u32) -> usize {
    if !has_limit(queue) {
        return usize::MAX;
    }
    let limit = |name| queue.arguments.get(name).and_then(Value::as_u64);
    let by_count = limit("x-max-length").map_or(u64::MAX, |limit| limit - limit.min(ready.into()));
    let by_count = usize::try_from(by_count).unwrap_or(usize::MAX);
    // The size of its messages is unknown.
    match limit("x-max-length-bytes") {
        Some(_) => by_count.min(usize::from(ready == 0)),
        None => by_count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_after_unconfirmed_batches_are_skipped_ever_longer() {
        let mut doubts = Doubts::default();
        assert!(!doubts.skips());
        for expected in [2, 4, 8, 16] {
            doubts.add();
            let skipped = (0..).take_while(|_| doubts.skips()).count();
            assert_eq!(skipped, expected);
        }
        for _ in 0..40 {
            doubts.add();
        }
        assert_eq!(doubts.skipped, MAX_SKIPPED_CHECKS);
    }

    #[test]
    fn room_of_a_queue_depends_on_its_limits() {
        let queue = || Queue::new("q");
        let limited = || queue().argument("x-max-length", 5);
        let sized = || queue().argument("x-max-length-bytes", 500);
        let refusing = limited().argument("x-overflow", "reject-publish-dlx");
        for (queue, ready, expected) in [
            (queue(), 9, usize::MAX),
            (refusing, 9, usize::MAX),
            (limited(), 0, 5),
            (limited(), 3, 2),
            (limited(), 9, 0),
            (limited().argument("x-overflow", "drop-head"), 5, 0),
            (sized(), 0, 1),
            (sized(), 1, 0),
        ] {
            assert_eq!(room(&queue, ready), expected, "{queue:?} {ready}");
        }
    }
}
