//! The lanes of one connection: the channels that messages are published on.

mod lane;
mod outgoing;
mod returns;
mod rooms;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::types::ShortString;
use tokio::sync::{mpsc, oneshot, watch};

use crate::options::PublisherConfirms;
use crate::sync::lock;
pub(crate) use lane::PublishFailure;
use lane::{Lane, LaneRequest};
pub(crate) use outgoing::OutgoingMessage;
pub(crate) use rooms::Rooms;

/// The size of a body in bytes from which a message has a lane of its own, because
/// RabbitMQ closes the channel of a message that is larger than its limit (16 MiB by
/// default since RabbitMQ 4).
const LARGE_BODY: usize = 4 << 20;

/// What the lanes need of their connection.
pub(crate) trait LaneConnection: Send + Sync + 'static {
    /// Opens a channel, and asks for confirms on it.
    fn open_channel(&self, confirms: PublisherConfirms) -> BoxFuture<'_, lapin::Result<Channel>>;

    /// Records that the server has answered.
    fn note_response(&self);

    /// Counts the channel that the server has closed with this error.
    fn note_failure(&self, error: &lapin::Error);

    /// Makes the next use of the connection probe it first.
    fn mark_suspect(&self);

    /// Returns a receiver of the reason why the server has blocked publishing.
    fn watch_blocked(&self) -> watch::Receiver<Option<String>>;

    /// Runs a lane.
    fn spawn(&self, lane: BoxFuture<'static, ()>);
}

/// One lane for all exchanges that have accepted a message, and one for each other
/// exchange while messages are sent to it.
///
/// RabbitMQ closes the channel of a message that it refuses, for example because its
/// exchange does not exist, and all other messages of the channel stay unconfirmed. An
/// exchange to which that happened does not share a channel again.
#[derive(Debug)]
pub(crate) struct Lanes {
    confirms: PublisherConfirms,
    lanes: Mutex<HashMap<LaneKey, mpsc::UnboundedSender<LaneRequest>>>,
    rooms: Arc<Rooms>,
    /// The exchanges that have accepted messages (`true`), or to which the server has
    /// refused one.
    exchanges: Mutex<HashMap<ShortString, bool>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum LaneKey {
    /// Messages for exchanges that have accepted a message.
    Main,
    /// Messages for another exchange.
    Exchange(ShortString),
    /// Large messages for an exchange.
    Large(ShortString),
    /// Messages for an exchange and routing key that confirm nothing. RabbitMQ stops a
    /// channel with its first message for a quorum queue whose leader does not answer.
    Slow(ShortString, ShortString),
}

/// The pending outcome of a message.
pub(crate) type Reply = oneshot::Receiver<Result<(), PublishFailure>>;

impl Lanes {
    pub(crate) fn new(confirms: PublisherConfirms, rooms: Arc<Rooms>) -> Self {
        Self {
            confirms,
            lanes: Mutex::default(),
            rooms,
            exchanges: Mutex::default(),
        }
    }

    fn is_proven(&self, exchange: &ShortString) -> bool {
        exchange.as_str().is_empty() || lock(&self.exchanges).get(exchange) == Some(&true)
    }

    /// Records that an exchange has accepted a message, or was declared for one.
    pub(crate) fn prove(&self, exchange: &ShortString) {
        if !self.is_proven(exchange) {
            lock(&self.exchanges)
                .entry(exchange.clone())
                .or_insert(true);
        }
    }

    /// Records that the server has refused a message to an exchange.
    pub(crate) fn separate(&self, exchange: &ShortString) {
        lock(&self.exchanges).insert(exchange.clone(), false);
    }

    /// Hands a message to its lane once the target has room for it.
    ///
    /// # Cancel safety
    ///
    /// After a dropped future the message is not sent.
    pub(crate) async fn send(
        &self,
        connection: &Arc<impl LaneConnection>,
        message: OutgoingMessage,
    ) -> Reply {
        let rooms = &self.rooms;
        let place = rooms.enter(&message.exchange, &message.routing_key).await;
        let (reply, outcome) = oneshot::channel();
        let key = match &message.exchange {
            exchange if place.is_slow => {
                LaneKey::Slow(exchange.clone(), message.routing_key.clone())
            }
            exchange if message.body.len() >= LARGE_BODY => LaneKey::Large(exchange.clone()),
            exchange if self.is_proven(exchange) => LaneKey::Main,
            exchange => LaneKey::Exchange(exchange.clone()),
        };
        let mut request = LaneRequest {
            message,
            reply,
            place,
        };
        let mut lanes = lock(&self.lanes);
        // A lane that has ended returns the request.
        if let Some(lane) = lanes.get(&key) {
            match lane.send(request) {
                Ok(()) => return outcome,
                Err(mpsc::error::SendError(returned)) => request = returned,
            }
        }
        let (sender, requests) = mpsc::unbounded_channel();
        let _ = sender.send(request);
        lanes.retain(|_, lane| !lane.is_closed());
        lanes.insert(key, sender);
        let weak = Arc::downgrade(connection);
        let lane = Lane::new(weak, self.confirms, requests, connection.watch_blocked());
        connection.spawn(Box::pin(lane.run()));
        outcome
    }
}
