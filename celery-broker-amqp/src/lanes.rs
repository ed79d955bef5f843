//! The lanes of one connection: the channels that messages are published on.

mod lane;
mod outgoing;
mod returns;
mod targets;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::types::ShortString;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::RefusedMessage;
use crate::options::PublisherConfirms;
use crate::sync::lock;
pub(crate) use lane::PublishFailure;
use lane::{Lane, LaneRequest};
pub(crate) use outgoing::OutgoingMessage;
use targets::Place;
pub(crate) use targets::Targets;

/// What the lanes need of their connection.
pub(crate) trait LaneConnection: Send + Sync + 'static {
    /// Opens a channel, and asks for confirms on it.
    fn open_channel(&self, confirms: PublisherConfirms) -> BoxFuture<'_, lapin::Result<Channel>>;

    /// Counts the channel that the server has closed with this error.
    fn note_failure(&self, error: &lapin::Error);

    /// Makes the next use of the connection probe it first.
    fn mark_suspect(&self);

    /// Returns a receiver of the reason why the server has blocked publishing.
    fn watch_blocked(&self) -> watch::Receiver<Option<String>>;

    /// Runs a lane.
    fn spawn(&self, lane: BoxFuture<'static, ()>);
}

/// One lane for all exchanges that are known to exist, and one for each other exchange
/// while messages are sent to it.
///
/// RabbitMQ closes the channel of a message that it refuses, for example because its
/// exchange does not exist, and all other messages of the channel stay unconfirmed.
/// Messages like one to which that has happened do not share the channel again.
#[derive(Debug)]
pub(crate) struct Lanes {
    confirms: PublisherConfirms,
    lanes: Mutex<LaneMap>,
    targets: Arc<Targets>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum LaneKey {
    /// Messages for exchanges that are known to exist.
    Main,
    /// Messages for another exchange.
    Exchange(ShortString),
    /// Large messages for an exchange.
    Large(ShortString),
    /// Messages for an exchange and routing key that confirm nothing. RabbitMQ stops a
    /// channel with its first message for a quorum queue whose leader does not answer.
    Slow(ShortString, ShortString),
    /// Messages for further such targets.
    OtherSlow,
}

type LaneMap = HashMap<LaneKey, mpsc::UnboundedSender<LaneRequest>>;

/// The maximum number of slow targets with a lane of their own.
const MAX_SLOW: usize = 8;

/// The pending outcome of a message.
pub(crate) type Reply = oneshot::Receiver<Result<(), PublishFailure>>;

impl Lanes {
    pub(crate) fn new(confirms: PublisherConfirms, targets: Arc<Targets>) -> Self {
        Self {
            confirms,
            lanes: Mutex::default(),
            targets,
        }
    }

    /// Records that an exchange exists.
    pub(crate) fn add_exchange(&self, exchange: &str) {
        self.targets.add_exchange(exchange);
    }

    /// Records that the server has closed a channel because of a message.
    pub(crate) fn separate(&self, refused: RefusedMessage<'_>) {
        self.targets.separate(refused);
    }

    fn key(&self, message: &OutgoingMessage, place: &Place, lanes: &LaneMap) -> LaneKey {
        let exchange = &message.exchange;
        if place.is_slow {
            let own = LaneKey::Slow(exchange.clone(), message.routing_key.clone());
            let is_slow = |key: &&LaneKey| matches!(key, LaneKey::Slow(..));
            match lanes.contains_key(&own) || lanes.keys().filter(is_slow).count() < MAX_SLOW {
                true => own,
                false => LaneKey::OtherSlow,
            }
        } else if message.body.len() > self.targets.max_size() {
            LaneKey::Large(exchange.clone())
        } else if self.targets.is_trusted(exchange.as_str()) {
            LaneKey::Main
        } else {
            LaneKey::Exchange(exchange.clone())
        }
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
        let targets = &self.targets;
        let place = targets.enter(&message.exchange, &message.routing_key).await;
        let (reply, outcome) = oneshot::channel();
        let mut request = LaneRequest {
            message,
            reply,
            place,
        };
        let mut lanes = lock(&self.lanes);
        if lanes.len() > 1 {
            lanes.retain(|_, lane| !lane.is_closed());
        }
        let key = self.key(&request.message, &request.place, &lanes);
        // A lane that has ended returns the request.
        if let Some(lane) = lanes.get(&key) {
            match lane.send(request) {
                Ok(()) => return outcome,
                Err(mpsc::error::SendError(returned)) => request = returned,
            }
        }
        let (sender, requests) = mpsc::unbounded_channel();
        let _ = sender.send(request);
        let is_main = key == LaneKey::Main;
        lanes.insert(key, sender);
        let weak = Arc::downgrade(connection);
        let mut lane = Lane::new(weak, self.confirms, requests, connection.watch_blocked());
        if is_main {
            lane = lane.main();
        }
        connection.spawn(Box::pin(lane.run()));
        outcome
    }
}
