//! Moves due messages to their task queues, for workers that do not read due queues.

use std::time::Duration;

use bytes::Bytes;
use celery_runtime::{ServiceError, ServiceErrorKind};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use uuid::Uuid;

use super::inner::{ConsumerInner, Source};
use crate::message;
use crate::options::PublisherConfirms;
use crate::publish::OutgoingMessage;
use crate::table::short_string;

/// The number of messages that are moved together.
const BATCH_SIZE: usize = 100;

/// The time for moving messages when a consumer stops. RabbitMQ may block publishing.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Whose due messages are moved.
#[derive(Clone, Copy)]
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

impl ConsumerInner {
    /// Checks periodically whether due messages wait while the task queue has consumers
    /// that do not read them, such as Python's workers, and moves them. Does not return.
    pub(super) async fn move_to_other_workers(&self) {
        let interval = self.shared.options.due_check_interval;
        loop {
            // The workers of a fleet check at different times.
            let random = f64::from(Uuid::new_v4().as_u128() as u16) / f64::from(u16::MAX);
            tokio::time::sleep(interval.mul_f64(0.75 + random / 2.0)).await;
            let moved = self.move_due(Readers::FewerThanTaskQueue).await;
            if let Err(error) = moved {
                tracing::debug!("consumer/takeover: {error}");
            }
        }
    }

    /// Stops consuming, requeues the deliveries that were not handed out, and moves the
    /// due messages that nobody reads any more.
    pub(super) async fn stop(&self) {
        let stopped = match self.requeue_unreceived().await {
            Ok(()) => {
                let moving = self.move_due(Readers::None);
                let moved = tokio::time::timeout(STOP_LIMIT, moving).await;
                moved.unwrap_or(Ok(()))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            // RabbitMQ requeues the deliveries when the channel closes.
            tracing::debug!("consumer/stop: {error}");
        }
    }

    /// Moves due messages to their task queues.
    async fn move_due(&self, readers: Readers) -> Result<(), ServiceError> {
        let has_due_queues = self.sources.iter().any(|source| source.is_due);
        if !has_due_queues || self.shared.options.confirms == PublisherConfirms::Off {
            return Ok(());
        }
        let _guard = self.moving.lock().await;
        let context = self.context("move due messages of");
        let channel = self.connection.open_channel().await;
        // A channel of its own: the server closes it if a queue does not exist.
        let channel = channel.map_err(|error| context.wrap(error))?;
        for source in self.sources.iter().filter(|source| source.is_due) {
            let due = self.count(&channel, &source.name).await?;
            if due.messages == 0 {
                continue;
            }
            let is_read = match readers {
                Readers::None => due.consumers > 0,
                Readers::FewerThanTaskQueue => {
                    let name = &self.queues[source.queue_index].0;
                    self.count(&channel, name).await?.consumers <= due.consumers
                }
            };
            if !is_read {
                self.move_messages(&channel, source, due.messages as usize)
                    .await?;
            }
        }
        let closed = channel.close(200, "".into());
        let closed = self.connection.await_response(closed).await;
        closed.map_err(|error| context.wrap(error))
    }

    async fn count(&self, channel: &Channel, queue: &str) -> Result<QueueCounts, ServiceError> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let name = self.short_string(queue)?;
        let counted = channel.queue_declare(name, options, FieldTable::default());
        let counted = self.connection.await_response(counted).await;
        let context = self.context("count the messages of");
        let counted = counted.map_err(|error| context.wrap(error))?;
        Ok(QueueCounts {
            messages: counted.message_count(),
            consumers: counted.consumer_count(),
        })
    }

    /// Moves at most `count` messages. Stops at the first one that the task queue does
    /// not accept, which stays in the due queue.
    async fn move_messages(
        &self,
        channel: &Channel,
        source: &Source,
        count: usize,
    ) -> Result<(), ServiceError> {
        let context = self.context("move due messages of");
        let mut left = count;
        while left > 0 {
            let mut batch = Vec::new();
            while batch.len() < left.min(BATCH_SIZE) {
                let name = self.short_string(&source.name)?;
                let fetched = channel.basic_get(name, BasicGetOptions::default());
                let fetched = self.connection.await_response(fetched).await;
                match fetched.map_err(|error| context.wrap(error))? {
                    Some(message) => batch.push(message.delivery),
                    None => break,
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            left -= batch.len();
            let published = self.publish_to_task_queue(source, &batch).await?;
            for (delivery, published) in batch.iter().zip(&published) {
                let tag = delivery.delivery_tag;
                let settled = match published {
                    Ok(()) => {
                        let options = BasicAckOptions::default();
                        let acked = channel.basic_ack(tag, options);
                        self.connection.await_response(acked).await
                    }
                    Err(_) => {
                        let options = BasicNackOptions {
                            requeue: true,
                            ..BasicNackOptions::default()
                        };
                        let returned = channel.basic_nack(tag, options);
                        self.connection.await_response(returned).await
                    }
                };
                settled.map_err(|error| context.wrap(error))?;
            }
            published.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    /// Publishes due messages as they were before they were deferred. Returns the
    /// outcome of each.
    async fn publish_to_task_queue(
        &self,
        source: &Source,
        batch: &[Delivery],
    ) -> Result<Vec<Result<(), ServiceError>>, ServiceError> {
        let context = self.context("move due messages of");
        let connection = self.shared.publishing.connection(context).await?;
        let name = short_string(&self.queues[source.queue_index].0)
            .map_err(|cause| context.error(ServiceErrorKind::Invalid, cause))?;
        let outgoing = batch.iter().map(|delivery| OutgoingMessage {
            exchange: ShortString::default(),
            routing_key: name.clone(),
            properties: message::deferred(&delivery.properties),
            body: &delivery.data,
        });
        Ok(self
            .shared
            .publish_messages(&connection, outgoing.collect())
            .await)
    }
}
