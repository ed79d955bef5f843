//! A lane: one channel and the tokio task that publishes on it.
//!
//! Calls hand their messages to the lane. It writes each at once and reports the
//! outcome when the server has confirmed the message, so that the messages of all
//! calls are in flight together. A call that is dropped changes nothing for a message
//! that is written; one that is not written yet is not sent.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::LaneConnection;
use super::outgoing::{MessageIdentity, OutgoingMessage};
use super::returns::{Outcome, UnconfirmedMessages};
use super::targets::Place;
use crate::error::{RefusedMessage, refused_message};
use crate::options::PublisherConfirms;

/// The time after which an unused lane closes its channel.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// The time without a confirm after which a target is slow, and the connection suspect.
const SLOW_TIME: Duration = Duration::from_secs(1);

/// How often a lane with unconfirmed messages looks for slow targets.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The number of messages that are written before the lane reads confirms again.
const MAX_WRITES: usize = 256;

/// A message for a lane.
pub(super) struct LaneRequest {
    pub(super) message: OutgoingMessage,
    pub(super) reply: oneshot::Sender<Result<(), PublishFailure>>,
    /// The place of the message until the server has confirmed it.
    pub(super) place: Place,
}

/// The reason why a message is not in a queue, or not known to be in one.
#[derive(Clone, Debug)]
pub(crate) enum PublishFailure {
    /// No channel could be opened; nothing was written.
    NoChannel(lapin::Error),
    /// The channel failed before the confirm.
    Unconfirmed {
        error: lapin::Error,
        /// If the server has refused a message, then it is this one.
        is_culprit: bool,
    },
    /// No queue receives the message, for this reason.
    Returned(String),
    /// The server refused the message.
    Refused,
}

/// Reports whether the refusal by which a channel has failed is known to be about each
/// message that it [includes](RefusedMessage::includes): others may have been accepted
/// before it. A message for an exchange that is not known to exist was not.
fn suspects(unconfirmed: &LaneMessages, error: &lapin::Error, is_main: bool) -> bool {
    match refused_message(error) {
        Some(RefusedMessage::LargerThan(_)) => true,
        Some(RefusedMessage::OfExchange(_)) if !is_main => true,
        Some(RefusedMessage::OfExchange(exchange)) => {
            let identities = unconfirmed.identities();
            identities.filter(|one| one.is_for(exchange)).count() <= 1
        }
        None => unconfirmed.identities().count() <= 1,
    }
}

/// The sender of a message that is written.
struct Caller {
    reply: oneshot::Sender<Result<(), PublishFailure>>,
    place: Place,
    written_at: Instant,
}

impl Caller {
    fn reply(self, outcome: Result<(), PublishFailure>) {
        // A dropped call has no receiver.
        let _ = self.reply.send(outcome);
    }
}

type LaneMessages = UnconfirmedMessages<MessageIdentity, BasicReturnMessage, Caller>;

/// The state of a lane.
pub(super) struct Lane {
    connection: Weak<dyn LaneConnection>,
    confirms: PublisherConfirms,
    requests: mpsc::UnboundedReceiver<LaneRequest>,
    /// A request that was taken while the server began to block publishing.
    next_request: Option<LaneRequest>,
    /// The reason why the server has blocked publishing, while it does.
    blocked: watch::Receiver<Option<String>>,
    channel: Option<Channel>,
    confirming: FuturesUnordered<Confirming>,
    unconfirmed: LaneMessages,
    /// The time of the last confirm, or when the server has ended a block.
    progress_at: Instant,
    /// Whether it is the lane of all exchanges that are known to exist, whose channel
    /// stays open.
    is_main: bool,
    /// While the failures of a channel are read: whether the refusal identifies a message.
    has_one_suspect: Option<bool>,
}

impl Lane {
    pub(super) fn new(
        connection: Weak<dyn LaneConnection>,
        confirms: PublisherConfirms,
        requests: mpsc::UnboundedReceiver<LaneRequest>,
        blocked: watch::Receiver<Option<String>>,
    ) -> Self {
        Self {
            connection,
            confirms,
            requests,
            next_request: None,
            blocked,
            channel: None,
            confirming: FuturesUnordered::new(),
            unconfirmed: UnconfirmedMessages::default(),
            progress_at: Instant::now(),
            is_main: false,
            has_one_suspect: None,
        }
    }

    /// Makes it the lane of all exchanges that are known to exist.
    pub(super) fn main(self) -> Self {
        Self {
            is_main: true,
            ..self
        }
    }

    /// Publishes until the lane is unused for [`IDLE_TIME`], or its connection is
    /// dropped.
    pub(super) async fn run(mut self) {
        let mut is_open = true;
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while is_open || !self.confirming.is_empty() {
            // A message that is written while the server blocks publishing would be
            // accepted later, when its sender may have given up or sent it again.
            let is_blocked = self.is_blocked();
            let ends_idle = is_open && !self.is_main;
            tokio::select! {
                biased;
                _ = checks.tick(), if !is_blocked && !self.confirming.is_empty() => {
                    self.check_progress();
                }
                Some((number, confirmation)) = self.confirming.next() => {
                    self.handle_confirmation(number, confirmation);
                    self.read_confirmations();
                }
                Ok(()) = self.blocked.changed() => self.progress_at = Instant::now(),
                request = next(&mut self.next_request, &mut self.requests),
                    if is_open && !is_blocked => match request {
                        Some(request) => self.publish_ready(request).await,
                        None => is_open = false,
                    },
                () = tokio::time::sleep(IDLE_TIME), if ends_idle && self.confirming.is_empty() => {
                    // The requests that were queued before are published; later calls
                    // start another lane.
                    self.requests.close();
                }
                // The connection was dropped while the server blocked it.
                else => {}
            }
        }
    }

    /// Reports whether the server has blocked publishing. A connection that is dropped
    /// is not blocked.
    fn is_blocked(&self) -> bool {
        self.blocked.has_changed().is_ok() && self.blocked.borrow().is_some()
    }

    /// Writes this message and some of those that wait.
    async fn publish_ready(&mut self, first: LaneRequest) {
        self.publish(first).await;
        for _ in 1..MAX_WRITES {
            match self.requests.try_recv() {
                Ok(request) if !self.is_blocked() => self.publish(request).await,
                Ok(request) => {
                    self.next_request = Some(request);
                    break;
                }
                Err(_) => break,
            }
        }
    }

    /// Writes a message.
    async fn publish(&mut self, request: LaneRequest) {
        let LaneRequest {
            message,
            reply,
            place,
        } = request;
        if reply.is_closed() {
            return;
        }
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(error) => {
                let failure = PublishFailure::NoChannel(error);
                // Those that wait for the channel would fail one after the other.
                while let Ok(waiting) = self.requests.try_recv() {
                    let _ = waiting.reply.send(Err(failure.clone()));
                }
                let _ = reply.send(Err(failure));
                return;
            }
        };
        // Opening a channel takes time, in which the caller may have given up.
        if reply.is_closed() {
            return;
        }
        let caller = Caller {
            reply,
            place,
            written_at: Instant::now(),
        };
        let number = self.unconfirmed.insert(message.identity(), caller);
        let mut confirming = Confirming {
            number,
            confirmation: publish_and_confirm(channel, message).boxed(),
        };
        // lapin queues the frames when the future is polled first.
        match (&mut confirming).now_or_never() {
            None => self.confirming.push(confirming),
            Some((number, confirmation)) => {
                self.handle_confirmation(number, confirmation);
                self.read_confirmations();
            }
        }
    }

    /// Returns the open channel, or opens one.
    async fn channel(&mut self) -> lapin::Result<Channel> {
        if let Some(channel) = &self.channel
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let closed = || lapin::Error::from(io::Error::from(io::ErrorKind::NotConnected));
        let connection = self.connection.upgrade().ok_or_else(closed)?;
        let channel = connection.open_channel(self.confirms).await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// Reads the confirms that are resolved, then reports what is known by them.
    fn read_confirmations(&mut self) {
        // lapin resolves confirms one after the other. Two empty reads in a row mean
        // that none which was resolved before the last one read is unread.
        let mut empty_reads = 0;
        while empty_reads < 2 {
            match self.confirming.next().now_or_never().flatten() {
                Some((number, confirmation)) => {
                    empty_reads = 0;
                    self.handle_confirmation(number, confirmation);
                }
                None => empty_reads += 1,
            }
        }
        // The failures of a channel are resolved at the same time.
        self.has_one_suspect = None;
        self.progress_at = Instant::now();
        for (caller, outcome) in self.unconfirmed.decide() {
            caller.place.mark_confirmed();
            caller.reply(match outcome {
                Outcome::Accepted => Ok(()),
                Outcome::Returned(reason) => Err(PublishFailure::Returned(reason)),
                Outcome::Refused => Err(PublishFailure::Refused),
            });
        }
    }

    /// Leaves few places for the targets that confirm nothing. If no target does, then the
    /// first unconfirmed message is the reason, and the next call probes the connection:
    /// RabbitMQ may have stopped reading from it because of one queue.
    fn check_progress(&self) {
        let now = Instant::now();
        let is_late = |time: Instant| now.duration_since(time) >= SLOW_TIME;
        let mut late = self.unconfirmed.iter();
        let late = late
            .by_ref()
            .take_while(|caller| is_late(caller.written_at));
        if !is_late(self.progress_at) {
            late.for_each(|caller| caller.place.mark_slow());
            return;
        }
        for caller in late.take(1) {
            caller.place.mark_slow();
            if let Some(connection) = self.connection.upgrade() {
                connection.mark_suspect();
            }
        }
    }

    /// Forgets a channel that the server has closed. The next message opens another one.
    fn drop_failed_channel(&mut self, error: &lapin::Error) {
        let is_failed = |channel: &mut Channel| !channel.status().connected();
        if self.channel.take_if(is_failed).is_some()
            && let Some(connection) = self.connection.upgrade()
        {
            connection.note_failure(error);
        }
    }

    fn handle_confirmation(&mut self, number: u64, confirmation: lapin::Result<Confirmation>) {
        match confirmation {
            Ok(Confirmation::Ack(returned)) => self.unconfirmed.confirm(number, true, returned),
            Ok(Confirmation::Nack(returned)) => self.unconfirmed.confirm(number, false, returned),
            Ok(Confirmation::NotRequested) => self.unconfirmed.confirm(number, true, None),
            Err(error) => {
                self.drop_failed_channel(&error);
                let is_culprit = *self
                    .has_one_suspect
                    .get_or_insert_with(|| suspects(&self.unconfirmed, &error, self.is_main));
                if let Some(caller) = self.unconfirmed.remove(number) {
                    caller.reply(Err(PublishFailure::Unconfirmed { error, is_culprit }));
                }
            }
        }
    }
}

/// Returns the request that was put back, or the next one.
async fn next(
    first: &mut Option<LaneRequest>,
    requests: &mut mpsc::UnboundedReceiver<LaneRequest>,
) -> Option<LaneRequest> {
    match first.take() {
        Some(request) => Some(request),
        None => requests.recv().await,
    }
}

/// Publishes one message and waits for its confirm.
async fn publish_and_confirm(
    channel: Channel,
    message: OutgoingMessage,
) -> lapin::Result<Confirmation> {
    let OutgoingMessage {
        exchange,
        routing_key,
        properties,
        body,
        mandatory,
    } = message;
    let options = BasicPublishOptions {
        mandatory,
        ..BasicPublishOptions::default()
    };
    let confirm = channel
        .basic_publish(exchange, routing_key, options, &body, properties)
        .await?;
    confirm.await
}

/// The confirm of the message with this number.
struct Confirming {
    number: u64,
    confirmation: BoxFuture<'static, lapin::Result<Confirmation>>,
}

impl Future for Confirming {
    type Output = (u64, lapin::Result<Confirmation>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let number = self.number;
        self.confirmation
            .poll_unpin(cx)
            .map(|confirmation| (number, confirmation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that was dropped.
    struct Dropped;

    impl LaneConnection for Dropped {
        fn open_channel(&self, _: PublisherConfirms) -> BoxFuture<'_, lapin::Result<Channel>> {
            unreachable!("it was dropped")
        }

        fn note_failure(&self, _: &lapin::Error) {}

        fn mark_suspect(&self) {}

        fn watch_blocked(&self) -> watch::Receiver<Option<String>> {
            unreachable!("it was dropped")
        }

        fn spawn(&self, _: BoxFuture<'static, ()>) {}
    }

    #[tokio::test(start_paused = true)]
    async fn lane_ends_when_its_connection_is_dropped_while_blocked() {
        let (sender, blocked) = watch::channel(Some("memory".to_owned()));
        let (requests, receiver) = mpsc::unbounded_channel();
        let connection = Weak::<Dropped>::new();
        let lane = Lane::new(connection, PublisherConfirms::On, receiver, blocked);
        let lane = tokio::spawn(lane.main().run());
        tokio::task::yield_now().await;
        drop(sender);
        tokio::task::yield_now().await;
        drop(requests);
        lane.await.unwrap();
    }
}
