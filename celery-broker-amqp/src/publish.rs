//! Sending, with the broker's word for every message.
//!
//! A batch goes over one channel in confirm mode, many messages in flight, and
//! the call answers when the broker has taken or refused all of them. RabbitMQ
//! confirms several at once and does not say which of them it had returned as
//! unroutable; since a channel carries one batch at a time and all of its
//! confirmations are awaited, the returned ones are found by what they are.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use celery_runtime::{Publication, ServiceError, ServiceErrorKind};
use futures_util::stream::{self, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::broker::Shared;
use crate::delay;
use crate::known::Kind;
use crate::link::{Live, lock};
use crate::message;
use crate::options::Confirms;
use crate::table::short;
use crate::topology::Desk;

/// Batches on their way at the same time.
const LANES: usize = 16;

/// Messages of one batch that are sent and not confirmed.
const IN_FLIGHT: usize = 1024;

/// A message in the form in which it is sent.
pub(crate) struct Letter<'a> {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: &'a [u8],
}

impl Shared {
    /// Sends a batch and answers for each message.
    pub(crate) async fn publish(&self, batch: &[Publication]) -> Vec<Result<(), ServiceError>> {
        let attempt = self.attempt("publish to", "");
        let live = match self.publishing.live(attempt).await {
            Ok(live) => live,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut answers = self.try_publish(&live, batch).await;
        // A queue that was there before may have been deleted since.
        let again: Vec<_> = (0..batch.len())
            .filter(|&number| is_unroutable(&answers[number]))
            .filter(|&number| forget_queue(&live, &batch[number]))
            .collect();
        if !again.is_empty() {
            let rest: Vec<_> = again.iter().map(|&number| batch[number].clone()).collect();
            let second = self.try_publish(&live, &rest).await;
            for (number, answer) in again.into_iter().zip(second) {
                answers[number] = answer;
            }
        }
        answers
    }

    async fn try_publish(
        &self,
        live: &Arc<Live>,
        batch: &[Publication],
    ) -> Vec<Result<(), ServiceError>> {
        let mut answers: Vec<Result<(), ServiceError>> = Vec::with_capacity(batch.len());
        let mut letters = Vec::with_capacity(batch.len());
        let now = SystemTime::now();
        for publication in batch {
            let letter = match self.prepare(live, publication).await {
                Ok(()) => self.letter(publication, now),
                Err(error) => Err(error),
            };
            answers.push(letter.map(|letter| letters.push(letter)));
        }
        let mut sent = self.send(live, letters).await.into_iter();
        for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
            *answer = sent.next().unwrap_or(Ok(()));
        }
        answers
    }

    /// Makes sure that there is something to send to. A channel dies of an
    /// exchange that does not exist, and with it what else is on its way.
    async fn prepare(&self, live: &Live, publication: &Publication) -> Result<(), ServiceError> {
        let Publication {
            exchange, queue, ..
        } = publication;
        match queue.as_deref() {
            Some(queue) if live.known.has(Kind::Queue, &queue.name) => {}
            Some(queue) if exchange.is_empty() => return self.find_or_declare(live, queue).await,
            Some(queue) => self.declare(live, queue).await?,
            None => {}
        }
        if exchange.is_empty() || live.known.has(Kind::Exchange, exchange) {
            return Ok(());
        }
        let object = place(publication);
        let attempt = self.attempt("publish to", &object);
        if !Desk::new(live, attempt).exchange_exists(exchange).await? {
            let cause = "there is no such exchange";
            return Err(attempt.error(ServiceErrorKind::Unroutable, cause));
        }
        live.known.note(Kind::Exchange, exchange);
        Ok(())
    }

    fn letter<'a>(
        &self,
        publication: &'a Publication,
        now: SystemTime,
    ) -> Result<Letter<'a>, ServiceError> {
        let detour = delay::native(publication, now);
        let (exchange, routing_key) = match &detour {
            Some(detour) => (&detour.exchange, &detour.routing_key),
            None => (&publication.exchange, &publication.routing_key),
        };
        let write = || {
            Ok(Letter {
                exchange: short(exchange)?,
                routing_key: short(routing_key)?,
                properties: message::write(&publication.message)?,
                body: &publication.message.body,
            })
        };
        write().map_err(|cause: String| {
            self.attempt("publish to", &place(publication))
                .error(ServiceErrorKind::Invalid, cause)
        })
    }

    /// Sends letters, those to one exchange over one channel: the server closes
    /// the channel of a message whose exchange is gone, and what else is on it
    /// stays unconfirmed.
    pub(crate) async fn send(
        &self,
        live: &Arc<Live>,
        letters: Vec<Letter<'_>>,
    ) -> Vec<Result<(), ServiceError>> {
        let mut answers: Vec<_> = letters.iter().map(|_| Ok(())).collect();
        let mut rest: Vec<_> = letters.into_iter().enumerate().collect();
        while let Some((_, first)) = rest.first() {
            let exchange = first.exchange.clone();
            let same = |(_, letter): &(usize, Letter<'_>)| letter.exchange == exchange;
            let (now, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(same);
            let (numbers, letters): (Vec<_>, Vec<_>) = now.into_iter().unzip();
            let sent = self.send_together(live, letters).await;
            for (number, answer) in numbers.into_iter().zip(sent) {
                answers[number] = answer;
            }
            rest = later;
        }
        answers
    }

    async fn send_together(
        &self,
        live: &Arc<Live>,
        letters: Vec<Letter<'_>>,
    ) -> Vec<Result<(), ServiceError>> {
        live.unblocked().await;
        let confirms = self.options.confirms;
        let lane = match Lane::take(live, confirms).await {
            Ok(lane) => lane,
            Err(error) => {
                let error = self.attempt("publish to", "").failed(error);
                return vec![Err(error); letters.len()];
            }
        };
        let options = BasicPublishOptions {
            mandatory: confirms == Confirms::On,
            ..BasicPublishOptions::default()
        };
        let mut copies = Vec::with_capacity(letters.len());
        let mut posts = Vec::with_capacity(letters.len());
        for letter in letters {
            copies.push(letter.copy());
            posts.push(post(&lane.channel, letter, options));
        }
        let outcomes = stream::iter(posts).buffered(IN_FLIGHT).collect().await;
        lane.give_back();
        self.answer(&copies, outcomes)
    }

    fn answer(
        &self,
        letters: &[Copy<'_>],
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
                    Err(self.unsent(letter, ServiceErrorKind::Refused, cause))
                }
                Err(error) => Err(self.unconfirmed(letter, error)),
            })
            .collect();
        for message in returned {
            let mut sent = letters.iter().zip(&mut answers);
            let found = sent.find(|(letter, answer)| answer.is_ok() && letter.is(&message));
            if let Some((letter, answer)) = found {
                let cause = message.reply_text.as_str();
                *answer = Err(self.unsent(letter, ServiceErrorKind::Unroutable, cause));
            }
        }
        answers
    }

    fn unsent(&self, letter: &Copy<'_>, kind: ServiceErrorKind, cause: &str) -> ServiceError {
        let object = named(letter.exchange.as_str(), letter.routing_key.as_str());
        self.attempt("publish to", &object).error(kind, cause)
    }

    /// The channel broke before the broker gave its word.
    fn unconfirmed(&self, letter: &Copy<'_>, error: lapin::Error) -> ServiceError {
        let object = named(letter.exchange.as_str(), letter.routing_key.as_str());
        let failed = self.attempt("publish to", &object).failed(error);
        match failed.to_string().contains("no exchange '") {
            true => self.unsent(letter, ServiceErrorKind::Unroutable, "the exchange is gone"),
            false => failed,
        }
    }
}

/// Sends one letter and waits for the broker's word.
async fn post(
    channel: &Channel,
    letter: Letter<'_>,
    options: BasicPublishOptions,
) -> lapin::Result<Confirmation> {
    let Letter {
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
struct Copy<'a> {
    exchange: ShortString,
    routing_key: ShortString,
    correlation_id: Option<ShortString>,
    body: &'a [u8],
}

impl<'a> Letter<'a> {
    fn copy(&self) -> Copy<'a> {
        Copy {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            correlation_id: self.properties.correlation_id().clone(),
            body: self.body,
        }
    }
}

impl Copy<'_> {
    fn is(&self, returned: &BasicReturnMessage) -> bool {
        returned.exchange == self.exchange
            && returned.routing_key == self.routing_key
            && *returned.properties.correlation_id() == self.correlation_id
            && returned.data == self.body
    }
}

fn place(publication: &Publication) -> String {
    named(&publication.exchange, &publication.routing_key)
}

fn named(exchange: &str, routing_key: &str) -> String {
    match exchange {
        "" => format!("queue {routing_key}"),
        exchange => format!("exchange {exchange:?} with routing key {routing_key:?}"),
    }
}

fn is_unroutable(answer: &Result<(), ServiceError>) -> bool {
    matches!(answer, Err(error) if error.kind() == ServiceErrorKind::Unroutable)
}

/// Whether the message's queue was taken for known, which it is no more.
fn forget_queue(live: &Live, publication: &Publication) -> bool {
    let Some(queue) = publication.queue.as_deref() else {
        return false;
    };
    live.known.forget(Kind::Queue, &queue.name);
    live.known.forget(Kind::Exchange, &publication.exchange);
    true
}

/// The channels of a connection that messages are sent on.
#[derive(Debug)]
pub(crate) struct Lanes {
    idle: Mutex<Vec<Channel>>,
    free: Arc<Semaphore>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
            free: Arc::new(Semaphore::new(LANES)),
        }
    }
}

/// A channel for one batch.
struct Lane<'a> {
    channel: Channel,
    live: &'a Live,
    confirms: Confirms,
    /// Taken when the lane ends.
    permit: Option<OwnedSemaphorePermit>,
    finished: bool,
}

impl<'a> Lane<'a> {
    async fn take(live: &'a Arc<Live>, confirms: Confirms) -> lapin::Result<Self> {
        let permit = Arc::clone(&live.lanes.free).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let idle = lock(&live.lanes.idle).pop();
        let channel = match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => live.open_for_publishing(confirms).await?,
        };
        Ok(Self {
            channel,
            live,
            confirms,
            permit: Some(permit),
            finished: false,
        })
    }

    fn give_back(mut self) {
        self.finished = true;
        self.leave_open();
    }

    fn leave_open(&self) {
        if self.channel.status().connected() {
            lock(&self.live.lanes.idle).push(self.channel.clone());
        }
    }
}

/// Dropped before its end, as when the caller's time is up, the channel stays
/// open while anything is on its way: messages that RabbitMQ has not read yet
/// would arrive on a channel that is closed, which ends the connection. With
/// confirmations their end is known; without them the next batch takes the
/// channel over, since there is nothing that it could mistake for its own.
impl Drop for Lane<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.live.suspect();
        if self.confirms == Confirms::Off {
            return self.leave_open();
        }
        let (channel, permit) = (self.channel.clone(), self.permit.take());
        // Ends with the connection at the latest.
        self.live.runtime.spawn(async move {
            let _ = channel.wait_for_confirms().await;
            drop(permit);
        });
    }
}

impl Live {
    async fn open_for_publishing(&self, confirms: Confirms) -> lapin::Result<Channel> {
        let channel = self.open().await?;
        if confirms == Confirms::On {
            let confirm = channel.confirm_select(ConfirmSelectOptions::default());
            self.answer(confirm).await?;
        }
        Ok(channel)
    }
}
