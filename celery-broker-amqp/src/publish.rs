//! Publishing, with the broker's confirm for every message.
//!
//! A batch is published on one channel in confirm mode, with many messages in
//! flight, and the call returns once the broker has confirmed or rejected all of
//! them. RabbitMQ may confirm several messages at once without saying which of
//! them it has returned as unroutable. A channel carries one batch at a time and
//! all of its confirms are awaited, so a returned message is found by comparing it
//! with the messages of the batch.

use std::time::SystemTime;

use celery_protocol::Message;
use celery_runtime::{Exchange, Publication, ServiceError, ServiceErrorKind};
use futures_util::stream::{self, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};

use crate::confirm_channel::ConfirmChannel;
use crate::connection::AmqpConnection;
use crate::declaration_cache::EntityKind;
use crate::declarer::Declarer;
use crate::delay;
use crate::message;
use crate::options::PublisherConfirms;
use crate::shared::Shared;
use crate::table::short_string;

/// The maximum number of unconfirmed messages of one batch.
const MAX_UNCONFIRMED: usize = 1024;

/// A message, encoded for `basic.publish`.
pub(crate) struct OutgoingMessage<'a> {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: &'a [u8],
}

impl Shared {
    /// Publishes a batch and returns the outcome of each message.
    pub(crate) async fn publish(&self, batch: &[Publication]) -> Vec<Result<(), ServiceError>> {
        let context = self.context("publish to", "");
        let connection = match self.publishing.connection(context).await {
            Ok(connection) => connection,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut results = self.publish_once(&connection, batch).await;
        // A queue of the declaration cache may have been deleted on the server.
        let retried: Vec<_> = (0..batch.len())
            .filter(|&index| is_unroutable(&results[index]))
            .filter(|&index| forget_declarations(&connection, &batch[index]))
            .collect();
        if !retried.is_empty() {
            let retry: Vec<_> = retried.iter().map(|&index| batch[index].clone()).collect();
            let second_results = self.publish_once(&connection, &retry).await;
            for (index, result) in retried.into_iter().zip(second_results) {
                results[index] = result;
            }
        }
        results
    }

    /// Publishes a message to every queue that is bound to the exchange. Returns
    /// `Some(0)` if there is none, and otherwise `None`, because RabbitMQ does not
    /// report their number.
    pub(crate) async fn broadcast(
        &self,
        exchange: &Exchange,
        routing_key: &str,
        message: &Message,
    ) -> Result<Option<u64>, ServiceError> {
        let object = format!("exchange {}", exchange.name);
        let context = self.context("broadcast to", &object);
        let connection = self.publishing.connection(context).await?;
        let declarations = &connection.declarations;
        if !declarations.contains(EntityKind::Exchange, &exchange.name) {
            let mut declarer = Declarer::new(&connection, context);
            declarer.declare_exchange(exchange).await?;
            declarations.insert(EntityKind::Exchange, &exchange.name);
        }
        let invalid = |cause| context.error(ServiceErrorKind::Invalid, cause);
        let outgoing = OutgoingMessage {
            exchange: short_string(&exchange.name).map_err(invalid)?,
            routing_key: short_string(routing_key).map_err(invalid)?,
            properties: message::encode(message).map_err(invalid)?,
            body: &message.body,
        };
        let mut results = self.publish_messages(&connection, vec![outgoing]).await;
        match results.pop() {
            // A broadcast without subscribers is not an error.
            Some(Err(error)) if error.kind() == ServiceErrorKind::Unroutable => Ok(Some(0)),
            result => result.unwrap_or(Ok(())).map(|()| None),
        }
    }

    async fn publish_once(
        &self,
        connection: &AmqpConnection,
        batch: &[Publication],
    ) -> Vec<Result<(), ServiceError>> {
        let mut results: Vec<Result<(), ServiceError>> = Vec::with_capacity(batch.len());
        let mut messages = Vec::with_capacity(batch.len());
        let now = SystemTime::now();
        for publication in batch {
            let checked = match publication.check_address() {
                Ok(()) => self.ensure_target(connection, publication).await,
                Err(error) => Err(error),
            };
            let message = checked.and_then(|()| self.outgoing_message(publication, now));
            results.push(message.map(|message| messages.push(message)));
        }
        let published = self.publish_messages(connection, messages).await;
        let mut published = published.into_iter();
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            *result = published.next().unwrap_or(Ok(()));
        }
        results
    }

    /// Ensures that the exchange and the queue of a message exist. RabbitMQ closes
    /// the channel of a message whose exchange does not exist, and the other
    /// messages on the channel stay unconfirmed.
    async fn ensure_target(
        &self,
        connection: &AmqpConnection,
        publication: &Publication,
    ) -> Result<(), ServiceError> {
        let Publication {
            exchange, queue, ..
        } = publication;
        let declarations = &connection.declarations;
        match queue.as_deref() {
            Some(queue) if declarations.contains(EntityKind::Queue, &queue.name) => {}
            Some(queue) if exchange.is_empty() => {
                return self.find_or_declare(connection, queue).await;
            }
            Some(queue) => self.declare(connection, queue).await?,
            None => {}
        }
        if exchange.is_empty() || declarations.contains(EntityKind::Exchange, exchange) {
            return Ok(());
        }
        let object = target_of(publication);
        let context = self.context("publish to", &object);
        let mut declarer = Declarer::new(connection, context);
        if !declarer.exchange_exists(exchange).await? {
            let cause = "the exchange does not exist";
            return Err(context.error(ServiceErrorKind::Unroutable, cause));
        }
        declarations.insert(EntityKind::Exchange, exchange);
        Ok(())
    }

    fn outgoing_message<'a>(
        &self,
        publication: &'a Publication,
        now: SystemTime,
    ) -> Result<OutgoingMessage<'a>, ServiceError> {
        let route = delay::native_route(publication, now);
        let (exchange, routing_key) = match &route {
            Some(route) => (&route.exchange, &route.routing_key),
            None => (&publication.exchange, &publication.routing_key),
        };
        let encode = || {
            Ok(OutgoingMessage {
                exchange: short_string(exchange)?,
                routing_key: short_string(routing_key)?,
                properties: message::encode(&publication.message)?,
                body: &publication.message.body,
            })
        };
        encode().map_err(|cause: String| {
            self.context("publish to", &target_of(publication))
                .error(ServiceErrorKind::Invalid, cause)
        })
    }

    /// Publishes messages, those to the same exchange together on one channel.
    /// RabbitMQ closes the channel of a message whose exchange was deleted, and the
    /// other messages on the channel stay unconfirmed.
    pub(crate) async fn publish_messages(
        &self,
        connection: &AmqpConnection,
        messages: Vec<OutgoingMessage<'_>>,
    ) -> Vec<Result<(), ServiceError>> {
        let mut results: Vec<_> = messages.iter().map(|_| Ok(())).collect();
        let mut rest: Vec<_> = messages.into_iter().enumerate().collect();
        while let Some((_, first)) = rest.first() {
            let exchange = first.exchange.clone();
            let is_same =
                |(_, message): &(usize, OutgoingMessage<'_>)| message.exchange == exchange;
            let (current, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_same);
            let (indexes, messages): (Vec<_>, Vec<_>) = current.into_iter().unzip();
            let published = self.publish_to_exchange(connection, messages).await;
            for (index, result) in indexes.into_iter().zip(published) {
                results[index] = result;
            }
            rest = later;
        }
        results
    }

    async fn publish_to_exchange(
        &self,
        connection: &AmqpConnection,
        messages: Vec<OutgoingMessage<'_>>,
    ) -> Vec<Result<(), ServiceError>> {
        connection.wait_until_unblocked().await;
        let confirms = self.options.confirms;
        let channel = match ConfirmChannel::acquire(connection, confirms).await {
            Ok(channel) => channel,
            Err(error) => {
                let error = self.context("publish to", "").wrap(error);
                return vec![Err(error); messages.len()];
            }
        };
        let options = BasicPublishOptions {
            mandatory: confirms == PublisherConfirms::On,
            ..BasicPublishOptions::default()
        };
        let mut sent = Vec::with_capacity(messages.len());
        let mut publishing = Vec::with_capacity(messages.len());
        for message in messages {
            sent.push(message.to_sent());
            publishing.push(publish_and_confirm(&channel.channel, message, options));
        }
        let confirmations = stream::iter(publishing).buffered(MAX_UNCONFIRMED);
        let confirmations = confirmations.collect().await;
        channel.release();
        self.confirmed_results(&sent, confirmations)
    }

    /// Returns the outcome of each message, after assigning the returned messages.
    fn confirmed_results(
        &self,
        sent: &[SentMessage<'_>],
        confirmations: Vec<lapin::Result<Confirmation>>,
    ) -> Vec<Result<(), ServiceError>> {
        let mut returned_messages = Vec::new();
        let mut results: Vec<_> = sent
            .iter()
            .zip(confirmations)
            .map(|(message, confirmation)| match confirmation {
                Ok(Confirmation::NotRequested) => Ok(()),
                Ok(Confirmation::Ack(returned)) => {
                    returned_messages.extend(returned);
                    Ok(())
                }
                Ok(Confirmation::Nack(returned)) => {
                    returned_messages.extend(returned);
                    let cause =
                        "RabbitMQ rejected the message, for example because the queue is full";
                    Err(self.publish_error(message, ServiceErrorKind::Refused, cause))
                }
                Err(error) => Err(self.unconfirmed_error(message, error)),
            })
            .collect();
        for returned in returned_messages {
            let mut candidates = sent.iter().zip(&mut results);
            let found =
                candidates.find(|(message, result)| result.is_ok() && message.matches(&returned));
            if let Some((message, result)) = found {
                let cause = returned.reply_text.as_str();
                *result = Err(self.publish_error(message, ServiceErrorKind::Unroutable, cause));
            }
        }
        results
    }

    fn publish_error(
        &self,
        message: &SentMessage<'_>,
        kind: ServiceErrorKind,
        cause: &str,
    ) -> ServiceError {
        let object = describe_target(message.exchange.as_str(), message.routing_key.as_str());
        self.context("publish to", &object).error(kind, cause)
    }

    /// Returns the error of a message whose channel closed before its confirm.
    fn unconfirmed_error(&self, message: &SentMessage<'_>, error: lapin::Error) -> ServiceError {
        let object = describe_target(message.exchange.as_str(), message.routing_key.as_str());
        let error = self.context("publish to", &object).wrap(error);
        if error.to_string().contains("no exchange '") {
            let cause = "the exchange does not exist";
            self.publish_error(message, ServiceErrorKind::Unroutable, cause)
        } else {
            error
        }
    }
}

/// Publishes one message and waits for its confirm.
async fn publish_and_confirm(
    channel: &Channel,
    message: OutgoingMessage<'_>,
    options: BasicPublishOptions,
) -> lapin::Result<Confirmation> {
    let OutgoingMessage {
        exchange,
        routing_key,
        properties,
        body,
    } = message;
    let confirm = channel
        .basic_publish(exchange, routing_key, options, body, properties)
        .await?;
    confirm.await
}

/// The parts of a sent message that identify it when the broker returns it.
struct SentMessage<'a> {
    exchange: ShortString,
    routing_key: ShortString,
    correlation_id: Option<ShortString>,
    body: &'a [u8],
}

impl<'a> OutgoingMessage<'a> {
    fn to_sent(&self) -> SentMessage<'a> {
        SentMessage {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            correlation_id: self.properties.correlation_id().clone(),
            body: self.body,
        }
    }
}

impl SentMessage<'_> {
    /// Reports whether the broker has returned this message.
    fn matches(&self, returned: &BasicReturnMessage) -> bool {
        returned.exchange == self.exchange
            && returned.routing_key == self.routing_key
            && *returned.properties.correlation_id() == self.correlation_id
            && returned.data == self.body
    }
}

/// Names the target of a publication, for errors.
fn target_of(publication: &Publication) -> String {
    describe_target(&publication.exchange, &publication.routing_key)
}

fn describe_target(exchange: &str, routing_key: &str) -> String {
    match exchange {
        "" => format!("queue {routing_key}"),
        exchange => format!("exchange {exchange:?} with routing key {routing_key:?}"),
    }
}

fn is_unroutable(result: &Result<(), ServiceError>) -> bool {
    matches!(result, Err(error) if error.kind() == ServiceErrorKind::Unroutable)
}

/// Removes the queue and the exchange of a message from the declaration cache.
/// Returns `false` if the message has no queue to declare.
fn forget_declarations(connection: &AmqpConnection, publication: &Publication) -> bool {
    let Some(queue) = publication.queue.as_deref() else {
        return false;
    };
    let declarations = &connection.declarations;
    declarations.remove(EntityKind::Queue, &queue.name);
    declarations.remove(EntityKind::Exchange, &publication.exchange);
    true
}
