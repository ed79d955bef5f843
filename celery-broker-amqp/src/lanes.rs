//! The lanes of one connection: the channels that messages are published on.

mod lane;
mod outgoing;
mod returns;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::types::ShortString;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::options::PublisherConfirms;
use crate::sync::lock;
pub(crate) use lane::PublishFailure;
use lane::{Lane, LaneRequest};
pub(crate) use outgoing::OutgoingMessage;

/// The maximum number of messages for one target that are not confirmed. A queue that
/// confirms nothing holds up no messages for other queues.
const MAX_UNCONFIRMED: usize = 2048;

/// The size of a body in bytes from which a message has a lane of its own, because
/// RabbitMQ closes the channel of a message that is larger than its limit (16 MiB by
/// default since RabbitMQ 4).
const LARGE_BODY: usize = 4 << 20;

/// The number of known targets from which the unused ones are forgotten.
const MANY_TARGETS: usize = 1024;

/// What the lanes need of their connection.
pub(crate) trait LaneConnection: Send + Sync + 'static {
    /// Opens a channel, and asks for confirms on it.
    fn open_channel(&self, confirms: PublisherConfirms) -> BoxFuture<'_, lapin::Result<Channel>>;

    /// Records that the server has answered.
    fn note_response(&self);

    /// Counts the channel that the server has closed with this error.
    fn note_failure(&self, error: &lapin::Error);

    /// Returns a receiver of the reason why the server has blocked publishing.
    fn watch_blocked(&self) -> watch::Receiver<Option<String>>;

    /// Runs a lane.
    fn spawn(&self, lane: BoxFuture<'static, ()>);
}

/// One lane for all exchanges that are proven to exist, and one for each other exchange
/// while messages are sent to it.
///
/// RabbitMQ closes the channel of a message that it refuses, for example because its
/// exchange does not exist, and all other messages of the channel stay unconfirmed.
#[derive(Debug)]
pub(crate) struct Lanes {
    confirms: PublisherConfirms,
    lanes: Mutex<HashMap<LaneKey, mpsc::UnboundedSender<LaneRequest>>>,
    targets: Mutex<HashMap<Target, Arc<Semaphore>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LaneKey {
    /// The exchange that is not proven to exist.
    unproven: Option<ShortString>,
    is_large: bool,
}

/// The exchange and routing key of a message.
type Target = (ShortString, ShortString);

/// The pending outcome of a message.
pub(crate) type Reply = oneshot::Receiver<Result<(), PublishFailure>>;

impl Lanes {
    pub(crate) fn new(confirms: PublisherConfirms) -> Self {
        Self {
            confirms,
            lanes: Mutex::default(),
            targets: Mutex::default(),
        }
    }

    /// Hands a message to its lane once the target has room for it. `is_proven` tells
    /// whether its exchange is known to exist.
    ///
    /// # Cancel safety
    ///
    /// After a dropped future the message is not sent.
    pub(crate) async fn send(
        &self,
        connection: &Arc<impl LaneConnection>,
        message: OutgoingMessage,
        is_proven: bool,
    ) -> Reply {
        let room = self.room(&message);
        let permit = room.acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let (reply, outcome) = oneshot::channel();
        let key = LaneKey {
            unproven: (!is_proven).then(|| message.exchange.clone()),
            is_large: message.body.len() >= LARGE_BODY,
        };
        let mut request = LaneRequest {
            message,
            reply,
            permit,
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

    /// Returns the semaphore of the message's target.
    fn room(&self, message: &OutgoingMessage) -> Arc<Semaphore> {
        let target = (message.exchange.clone(), message.routing_key.clone());
        let mut targets = lock(&self.targets);
        if targets.len() >= MANY_TARGETS && !targets.contains_key(&target) {
            targets.retain(|_, room| {
                Arc::strong_count(room) > 1 || room.available_permits() < MAX_UNCONFIRMED
            });
        }
        let room = targets
            .entry(target)
            .or_insert_with(|| Arc::new(Semaphore::new(MAX_UNCONFIRMED)));
        Arc::clone(room)
    }
}
