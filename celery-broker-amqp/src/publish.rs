//! Publishing, with the server's confirm for every message.
//!
//! The messages of all calls are in flight together, on the lanes of the publishing
//! connection. A call returns once the server has confirmed or refused each of its
//! messages.
//!
//! A message for a queue that is known by its name only is published as mandatory, and
//! the queue is declared if the server returns the message. One sender at a time does
//! that for each queue, with its first message, and the others wait for the outcome.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use celery_protocol::Message;
use celery_runtime::{Exchange, Publication, Queue, ServiceError, ServiceErrorKind};
use futures_util::future::join_all;
use lapin::types::ShortString;

use crate::connection::AmqpConnection;
use crate::declaration_cache::EntityKind;
use crate::declarer::Declarer;
use crate::delay;
use crate::error::{is_missing_exchange, refused_message, reply_code};
use crate::lanes::{LaneConnection, OutgoingMessage, PublishFailure};
use crate::message;
use crate::options::PublisherConfirms;
use crate::shared::Shared;
use crate::table::short_string;

type Outcome = Result<(), ServiceError>;

impl Shared {
    /// Publishes a batch and returns the outcome of each message.
    pub(crate) async fn publish(&self, batch: &[Publication]) -> Vec<Outcome> {
        let context = self.context("publish to", "");
        let connection = match self.publishing.connection(context).await {
            Ok(connection) => connection,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let all: Vec<usize> = (0..batch.len()).collect();
        let mut outcomes = vec![None; batch.len()];
        let first = Attempt::First;
        self.attempt(&connection, batch, &all, first, &mut outcomes)
            .await;
        // A queue that was known may have been deleted on the server.
        let retried: Vec<usize> = all
            .into_iter()
            .filter(|&index| outcomes[index].as_ref().is_some_and(is_unroutable))
            .filter(|&index| forget_declarations(&connection, &batch[index]))
            .collect();
        for &index in &retried {
            outcomes[index] = None;
        }
        let second = Attempt::Second;
        self.attempt(&connection, batch, &retried, second, &mut outcomes)
            .await;
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or(Ok(())))
            .collect()
    }

    /// Publishes a message to every queue that is bound to the exchange.
    pub(crate) async fn broadcast(
        &self,
        exchange: &Exchange,
        routing_key: &str,
        message: &Message,
    ) -> Result<(), ServiceError> {
        let object = format!("exchange {}", exchange.name);
        let context = self.context("broadcast to", &object);
        let connection = self.publishing.connection(context).await?;
        for attempt in [Attempt::First, Attempt::Second] {
            let declarations = &connection.declarations;
            if !declarations.contains(EntityKind::Exchange, &exchange.name) {
                let mut declarer = Declarer::new(&connection, context);
                declarer.declare_exchange(exchange).await?;
                declarations.insert(EntityKind::Exchange, &exchange.name);
                connection.lanes.add_exchange(&exchange.name);
            }
            let invalid = |cause| context.error(ServiceErrorKind::Invalid, cause);
            let outgoing = OutgoingMessage {
                exchange: short_string(&exchange.name).map_err(invalid)?,
                routing_key: short_string(routing_key).map_err(invalid)?,
                properties: message::encode(message).map_err(invalid)?,
                body: message.body.clone(),
                mandatory: false,
            };
            let mut outcomes = self.publish_messages(&connection, vec![outgoing]).await;
            let outcome = outcomes.pop().unwrap_or(Ok(()));
            if attempt == Attempt::First && is_unroutable(&outcome) {
                // The exchange was deleted on the server.
                declarations.remove(EntityKind::Exchange, &exchange.name);
                continue;
            }
            return outcome;
        }
        Ok(())
    }

    /// Publishes the messages with these indexes, after their queues are known to exist.
    async fn attempt(
        &self,
        connection: &Arc<AmqpConnection>,
        batch: &[Publication],
        indexes: &[usize],
        attempt: Attempt,
        outcomes: &mut [Option<Outcome>],
    ) {
        for &index in indexes {
            if let Err(error) = batch[index].check_address() {
                outcomes[index] = Some(Err(error));
            }
        }
        self.find_queues(connection, batch, indexes, attempt, outcomes)
            .await;
        let (mut sent, mut messages) = (Vec::new(), Vec::new());
        let now = SystemTime::now();
        for &index in indexes {
            if outcomes[index].is_some() {
                continue;
            }
            match self.outgoing_message(&batch[index], now) {
                Ok(message) => {
                    sent.push(index);
                    messages.push(message);
                }
                Err(error) => outcomes[index] = Some(Err(error)),
            }
        }
        let published = self.publish_messages(connection, messages).await;
        for (index, outcome) in sent.into_iter().zip(published) {
            outcomes[index] = Some(outcome);
        }
    }

    /// Finds or declares the queues of the messages that are not known to exist. The
    /// first message of a queue may be published by that.
    async fn find_queues(
        &self,
        connection: &Arc<AmqpConnection>,
        batch: &[Publication],
        indexes: &[usize],
        attempt: Attempt,
        outcomes: &mut [Option<Outcome>],
    ) {
        let mut names = HashSet::new();
        let first_of_queue = indexes.iter().filter_map(|&index| {
            let queue = batch[index].queue.as_deref()?;
            let is_wanted = outcomes[index].is_none()
                && !is_known(connection, queue)
                && names.insert(queue.name.as_str());
            is_wanted.then_some((index, queue))
        });
        let first_of_queue: Vec<_> = first_of_queue.collect();
        let lookups = first_of_queue.iter().map(|&(index, queue)| {
            let look_up = self.look_up(connection, queue, &batch[index], attempt);
            connection.lookups.run(&queue.name, look_up)
        });
        for (found, (index, queue)) in join_all(lookups).await.into_iter().zip(first_of_queue) {
            match found {
                Ok(published) => outcomes[index] = published,
                Err(error) => {
                    for &index in indexes {
                        let its_queue = batch[index].queue.as_deref();
                        if its_queue.is_some_and(|its_queue| its_queue.name == queue.name) {
                            outcomes[index].get_or_insert(Err(error.clone()));
                        }
                    }
                }
            }
        }
    }

    /// Ensures that a queue exists. Returns the outcome of the message if it was
    /// published for that.
    async fn look_up(
        &self,
        connection: &Arc<AmqpConnection>,
        queue: &Queue,
        publication: &Publication,
        attempt: Attempt,
    ) -> Result<Option<Outcome>, ServiceError> {
        if is_known(connection, queue) {
            return Ok(None);
        }
        let is_named_only = publication.exchange.is_empty();
        let is_probed = is_named_only
            && attempt == Attempt::First
            && publication.mandatory
            && self.options.confirms == PublisherConfirms::On;
        if is_probed {
            let published = self.publish_one(connection, publication).await;
            match &published {
                Err(error) if error.kind() == ServiceErrorKind::Unroutable => {}
                // A queue that refuses a message exists.
                Err(error) if error.kind() != ServiceErrorKind::Refused => {
                    return Ok(Some(published));
                }
                _ => {
                    let declarations = &connection.declarations;
                    declarations.insert(EntityKind::Queue, &queue.name);
                    return Ok(Some(published));
                }
            }
        }
        if is_named_only {
            self.declare_by_name(connection, queue).await?;
        } else {
            self.declare(connection, queue).await?;
        }
        Ok(None)
    }

    async fn publish_one(
        &self,
        connection: &Arc<AmqpConnection>,
        publication: &Publication,
    ) -> Outcome {
        let message = self.outgoing_message(publication, SystemTime::now())?;
        let mut published = self.publish_messages(connection, vec![message]).await;
        published.pop().unwrap_or(Ok(()))
    }

    fn outgoing_message(
        &self,
        publication: &Publication,
        now: SystemTime,
    ) -> Result<OutgoingMessage, ServiceError> {
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
                body: publication.message.body.clone(),
                mandatory: publication.mandatory,
            })
        };
        encode().map_err(|cause: String| {
            let target = describe_target(&publication.exchange, &publication.routing_key);
            self.context("publish to", &target)
                .error(ServiceErrorKind::Invalid, cause)
        })
    }

    /// Publishes messages and returns the outcome of each.
    ///
    /// # Cancel safety
    ///
    /// After a dropped future the messages that were written stay in flight.
    pub(crate) async fn publish_messages(
        &self,
        connection: &Arc<AmqpConnection>,
        messages: Vec<OutgoingMessage>,
    ) -> Vec<Outcome> {
        if messages.is_empty() {
            return Vec::new();
        }
        let lanes = &connection.lanes;
        let mut replies = Vec::with_capacity(messages.len());
        for mut message in messages {
            message.mandatory &= self.options.confirms == PublisherConfirms::On;
            let address = Address::of(&message);
            replies.push((address, lanes.send(connection, message).await));
        }
        let mut outcomes = Vec::with_capacity(replies.len());
        for (address, reply) in replies {
            let failure = match reply.await {
                Ok(Ok(())) => {
                    if !address.exchange.as_str().is_empty() {
                        lanes.add_exchange(address.exchange.as_str());
                    }
                    outcomes.push(Ok(()));
                    continue;
                }
                Ok(Err(failure)) => failure,
                // The runtime of the lane was shut down.
                Err(_) => {
                    connection.mark_suspect();
                    PublishFailure::Unconfirmed {
                        error: std::io::Error::from(std::io::ErrorKind::NotConnected).into(),
                        is_culprit: false,
                    }
                }
            };
            if let PublishFailure::Unconfirmed { error, .. } = &failure
                && let Some(refused) = refused_message(error)
            {
                lanes.separate(refused);
            }
            outcomes.push(Err(self.publish_error(&address, failure)));
        }
        outcomes
    }

    fn publish_error(&self, address: &Address, failure: PublishFailure) -> ServiceError {
        let exchange = address.exchange.as_str();
        let target = describe_target(exchange, address.routing_key.as_str());
        let context = self.context("publish to", &target);
        match failure {
            PublishFailure::NoChannel(error) => context.wrap(error).not_sent(),
            PublishFailure::Returned(reason) => context.error(ServiceErrorKind::Unroutable, reason),
            PublishFailure::Refused => {
                let cause = "RabbitMQ rejected the message, for example because the queue is full";
                context.error(ServiceErrorKind::Refused, cause)
            }
            PublishFailure::Unconfirmed { error, is_culprit } => match refused_message(&error) {
                Some(refused) if !refused.includes(exchange, address.size) => {
                    let cause =
                        format!("RabbitMQ closed the channel because of another message: {error}");
                    context.error(ServiceErrorKind::Disconnected, cause)
                }
                // It may have been accepted before the refused one.
                _ if !is_culprit && reply_code(&error).is_some() => {
                    let cause = format!(
                        "RabbitMQ closed the channel because of this message or another one: \
                         {error}"
                    );
                    context.error(ServiceErrorKind::Disconnected, cause)
                }
                _ if is_missing_exchange(&error) => {
                    let cause = "the exchange does not exist";
                    context.error(ServiceErrorKind::Unroutable, cause)
                }
                _ => context.wrap(error),
            },
        }
    }
}

/// What errors need of a message.
struct Address {
    exchange: ShortString,
    routing_key: ShortString,
    /// The size of the body in bytes.
    size: usize,
}

impl Address {
    fn of(message: &OutgoingMessage) -> Self {
        Self {
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
            size: message.body.len(),
        }
    }
}

/// The attempts to publish a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    First,
    /// After the server has returned the message.
    Second,
}

fn describe_target(exchange: &str, routing_key: &str) -> String {
    match exchange {
        "" => format!("queue {routing_key}"),
        exchange => format!("exchange {exchange:?} with routing key {routing_key:?}"),
    }
}

fn is_unroutable(outcome: &Outcome) -> bool {
    matches!(outcome, Err(error) if error.kind() == ServiceErrorKind::Unroutable)
}

fn is_known(connection: &AmqpConnection, queue: &Queue) -> bool {
    let declarations = &connection.declarations;
    declarations.contains(EntityKind::Queue, &queue.name)
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
