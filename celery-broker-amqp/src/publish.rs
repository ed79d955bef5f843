//! Sending, with the broker's word for every message.
//!
//! A batch goes over one channel in confirm mode, many messages in flight, and
//! the call answers when the broker has taken or refused all of them. RabbitMQ
//! confirms several at once and does not say which of them it had returned as
//! unroutable; since a channel carries one batch at a time and all of its
//! confirmations are awaited, the returned ones are found by what they are.

use std::sync::Arc;
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

/// Messages of one batch that are sent and not confirmed.
const MAX_UNCONFIRMED: usize = 1024;

/// A message in the form in which it is sent.
pub(crate) struct OutgoingMessage<'a> {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: &'a [u8],
}

impl Shared {
    /// Sends a batch and answers for each message.
    pub(crate) async fn publish(&self, batch: &[Publication]) -> Vec<Result<(), ServiceError>> {
        let context = self.context("publish to", "");
        let connection = match self.publishing.connection(context).await {
            Ok(connection) => connection,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut answers = self.publish_once(&connection, batch).await;
        // A queue that was there before may have been deleted since.
        let again: Vec<_> = (0..batch.len())
            .filter(|&number| is_unroutable(&answers[number]))
            .filter(|&number| forget_declarations(&connection, &batch[number]))
            .collect();
        if !again.is_empty() {
            let rest: Vec<_> = again.iter().map(|&number| batch[number].clone()).collect();
            let second = self.publish_once(&connection, &rest).await;
            for (number, answer) in again.into_iter().zip(second) {
                answers[number] = answer;
            }
        }
        answers
    }

    pub(crate) async fn broadcast(
        &self,
        exchange: &Exchange,
        routing_key: &str,
        message: &Message,
    ) -> Result<Option<u64>, ServiceError> {
        let object = format!("exchange {}", exchange.name);
        let context = self.context("broadcast to", &object);
        let connection = self.publishing.connection(context).await?;
        if !connection
            .declarations
            .contains(EntityKind::Exchange, &exchange.name)
        {
            Declarer::new(&connection, context)
                .declare_exchange(exchange)
                .await?;
            connection
                .declarations
                .insert(EntityKind::Exchange, &exchange.name);
        }
        let invalid = |cause| context.error(ServiceErrorKind::Invalid, cause);
        let letter = OutgoingMessage {
            exchange: short_string(&exchange.name).map_err(invalid)?,
            routing_key: short_string(routing_key).map_err(invalid)?,
            properties: message::encode(message).map_err(invalid)?,
            body: &message.body,
        };
        let sent = self.publish_messages(&connection, vec![letter]).await.pop();
        match sent {
            // Nobody listens: that is what a broadcast is like.
            Some(Err(error)) if error.kind() == ServiceErrorKind::Unroutable => Ok(Some(0)),
            sent => sent.unwrap_or(Ok(())).map(|()| None),
        }
    }

    async fn publish_once(
        &self,
        connection: &Arc<AmqpConnection>,
        batch: &[Publication],
    ) -> Vec<Result<(), ServiceError>> {
        let mut answers: Vec<Result<(), ServiceError>> = Vec::with_capacity(batch.len());
        let mut letters = Vec::with_capacity(batch.len());
        let now = SystemTime::now();
        for publication in batch {
            let letter = match self.ensure_target(connection, publication).await {
                Ok(()) => self.outgoing_message(publication, now),
                Err(error) => Err(error),
            };
            answers.push(letter.map(|letter| letters.push(letter)));
        }
        let mut sent = self.publish_messages(connection, letters).await.into_iter();
        for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
            *answer = sent.next().unwrap_or(Ok(()));
        }
        answers
    }

    /// Makes sure that there is something to send to. A channel dies of an
    /// exchange that does not exist, and with it what else is on its way.
    async fn ensure_target(
        &self,
        connection: &AmqpConnection,
        publication: &Publication,
    ) -> Result<(), ServiceError> {
        let Publication {
            exchange, queue, ..
        } = publication;
        match queue.as_deref() {
            Some(queue)
                if connection
                    .declarations
                    .contains(EntityKind::Queue, &queue.name) => {}
            Some(queue) if exchange.is_empty() => {
                return self.find_or_declare(connection, queue).await;
            }
            Some(queue) => self.declare(connection, queue).await?,
            None => {}
        }
        if exchange.is_empty()
            || connection
                .declarations
                .contains(EntityKind::Exchange, exchange)
        {
            return Ok(());
        }
        let object = target_of(publication);
        let context = self.context("publish to", &object);
        if !Declarer::new(connection, context)
            .exchange_exists(exchange)
            .await?
        {
            let cause = "there is no such exchange";
            return Err(context.error(ServiceErrorKind::Unroutable, cause));
        }
        connection
            .declarations
            .insert(EntityKind::Exchange, exchange);
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
        let write = || {
            Ok(OutgoingMessage {
                exchange: short_string(exchange)?,
                routing_key: short_string(routing_key)?,
                properties: message::encode(&publication.message)?,
                body: &publication.message.body,
            })
        };
        write().map_err(|cause: String| {
            self.context("publish to", &target_of(publication))
                .error(ServiceErrorKind::Invalid, cause)
        })
    }

    /// Sends letters, those to one exchange over one channel: the server closes
    /// the channel of a message whose exchange is gone, and what else is on it
    /// stays unconfirmed.
    pub(crate) async fn publish_messages(
        &self,
        connection: &Arc<AmqpConnection>,
        letters: Vec<OutgoingMessage<'_>>,
    ) -> Vec<Result<(), ServiceError>> {
        let mut answers: Vec<_> = letters.iter().map(|_| Ok(())).collect();
        let mut rest: Vec<_> = letters.into_iter().enumerate().collect();
        while let Some((_, first)) = rest.first() {
            let exchange = first.exchange.clone();
            let same = |(_, letter): &(usize, OutgoingMessage<'_>)| letter.exchange == exchange;
            let (now, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(same);
            let (numbers, letters): (Vec<_>, Vec<_>) = now.into_iter().unzip();
            let sent = self.publish_to_exchange(connection, letters).await;
            for (number, answer) in numbers.into_iter().zip(sent) {
                answers[number] = answer;
            }
            rest = later;
        }
        answers
    }

    async fn publish_to_exchange(
        &self,
        connection: &Arc<AmqpConnection>,
        letters: Vec<OutgoingMessage<'_>>,
    ) -> Vec<Result<(), ServiceError>> {
        connection.wait_until_unblocked().await;
        let confirms = self.options.confirms;
        let lane = match ConfirmChannel::acquire(connection, confirms).await {
            Ok(lane) => lane,
            Err(error) => {
                let error = self.context("publish to", "").wrap(error);
                return vec![Err(error); letters.len()];
            }
        };
        let options = BasicPublishOptions {
            mandatory: confirms == PublisherConfirms::On,
            ..BasicPublishOptions::default()
        };
        let mut copies = Vec::with_capacity(letters.len());
        let mut posts = Vec::with_capacity(letters.len());
        for letter in letters {
            copies.push(letter.sent());
            posts.push(publish_and_confirm(&lane.channel, letter, options));
        }
        let outcomes = stream::iter(posts)
            .buffered(MAX_UNCONFIRMED)
            .collect()
            .await;
        lane.release();
        self.results(&copies, outcomes)
    }

    fn results(
        &self,
        letters: &[SentMessage<'_>],
        outcomes: Vec<lapin::Result<Confirmation>>,
    ) -> Vec<Result<(), ServiceError>> {
        let mut returned = Vec::new();
        let mut answers: Vec<_> = letters
            .iter()
            .zip(outcomes)
            .map(|(letter, outcome)| match outcome {
                Ok(Confirmation::NotRequested) => Ok(()),
                Ok(Confirmation::Ack(message)) => {
                    returned.extend(message);
                    Ok(())
                }
                Ok(Confirmation::Nack(message)) => {
                    returned.extend(message);
                    let cause = "RabbitMQ did not take the message, as when a queue is full";
                    Err(self.publish_error(letter, ServiceErrorKind::Refused, cause))
                }
                Err(error) => Err(self.unconfirmed_error(letter, error)),
            })
            .collect();
        for message in returned {
            let mut sent = letters.iter().zip(&mut answers);
            let found = sent.find(|(letter, answer)| answer.is_ok() && letter.matches(&message));
            if let Some((letter, answer)) = found {
                let cause = message.reply_text.as_str();
                *answer = Err(self.publish_error(letter, ServiceErrorKind::Unroutable, cause));
            }
        }
        answers
    }

    fn publish_error(
        &self,
        letter: &SentMessage<'_>,
        kind: ServiceErrorKind,
        cause: &str,
    ) -> ServiceError {
        let object = describe_target(letter.exchange.as_str(), letter.routing_key.as_str());
        self.context("publish to", &object).error(kind, cause)
    }

    /// The channel broke before the broker gave its word.
    fn unconfirmed_error(&self, letter: &SentMessage<'_>, error: lapin::Error) -> ServiceError {
        let object = describe_target(letter.exchange.as_str(), letter.routing_key.as_str());
        let failed = self.context("publish to", &object).wrap(error);
        match failed.to_string().contains("no exchange '") {
            true => {
                self.publish_error(letter, ServiceErrorKind::Unroutable, "the exchange is gone")
            }
            false => failed,
        }
    }
}

/// Sends one letter and waits for the broker's word.
async fn publish_and_confirm(
    channel: &Channel,
    letter: OutgoingMessage<'_>,
    options: BasicPublishOptions,
) -> lapin::Result<Confirmation> {
    let OutgoingMessage {
        exchange,
        routing_key,
        properties,
        body,
    } = letter;
    let confirm = channel
        .basic_publish(exchange, routing_key, options, body, properties)
        .await?;
    confirm.await
}

/// What a letter is known by once it is sent.
struct SentMessage<'a> {
    exchange: ShortString,
    routing_key: ShortString,
    correlation_id: Option<ShortString>,
    body: &'a [u8],
}

impl<'a> OutgoingMessage<'a> {
    fn sent(&self) -> SentMessage<'a> {
        SentMessage {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            correlation_id: self.properties.correlation_id().clone(),
            body: self.body,
        }
    }
}

impl SentMessage<'_> {
    fn matches(&self, returned: &BasicReturnMessage) -> bool {
        returned.exchange == self.exchange
            && returned.routing_key == self.routing_key
            && *returned.properties.correlation_id() == self.correlation_id
            && returned.data == self.body
    }
}

fn target_of(publication: &Publication) -> String {
    describe_target(&publication.exchange, &publication.routing_key)
}

fn describe_target(exchange: &str, routing_key: &str) -> String {
    match exchange {
        "" => format!("queue {routing_key}"),
        exchange => format!("exchange {exchange:?} with routing key {routing_key:?}"),
    }
}

fn is_unroutable(answer: &Result<(), ServiceError>) -> bool {
    matches!(answer, Err(error) if error.kind() == ServiceErrorKind::Unroutable)
}

/// Whether the message's queue was taken for known, which it is no more.
fn forget_declarations(connection: &AmqpConnection, publication: &Publication) -> bool {
    let Some(queue) = publication.queue.as_deref() else {
        return false;
    };
    connection
        .declarations
        .remove(EntityKind::Queue, &queue.name);
    connection
        .declarations
        .remove(EntityKind::Exchange, &publication.exchange);
    true
}
