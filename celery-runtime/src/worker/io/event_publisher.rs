//! Publishes events and replies in order, in a background task that the worker
//! never waits for: [`EventPublisher`].

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Event, Message};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::boundary::{Broker, Exchange};
use crate::env;

/// Most events and replies that wait to be sent. More are dropped: both are
/// transient in Celery, too.
const MAX_PENDING: usize = 16_384;

/// Most events about tasks in one message, as in Celery (`buffer_limit` of the
/// worker's event dispatcher).
pub(crate) const BATCH_SIZE: usize = 24;

/// The routing key of a message with several events.
const BATCH_ROUTING_KEY: &str = "task.multi";

/// A message to publish.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Message {
        exchange: Exchange,
        routing_key: String,
        message: Box<Message>,
    },
    /// Events about tasks. Neighbours in the queue are merged into one message,
    /// so that a slow broker receives fewer and larger messages.
    Tasks {
        exchange: Exchange,
        events: Vec<Event>,
    },
}

/// A bounded queue in front of the task that publishes; it drops messages when
/// it is full.
#[derive(Debug)]
pub(crate) struct EventPublisher {
    sender: mpsc::Sender<Outgoing>,
    task: JoinHandle<()>,
    dropped: u64,
}

impl EventPublisher {
    pub(crate) fn start(broker: Arc<dyn Broker>, deadline: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_PENDING);
        Self {
            sender,
            task: env::spawn(publish_all(broker, deadline, receiver)),
            dropped: 0,
        }
    }

    /// Queues a message, or drops it if the queue is full.
    pub(crate) fn send(&mut self, outgoing: Outgoing) {
        if self.sender.try_send(outgoing).is_err() {
            self.dropped += 1;
            if self.dropped.is_power_of_two() {
                tracing::warn!(
                    "dropped {} events or replies: the broker is slower than the worker \
                     produces them",
                    self.dropped
                );
            }
        }
    }

    /// Waits until everything is published, at most `deadline`.
    pub(crate) async fn close(self, deadline: Duration) {
        let Self {
            sender, mut task, ..
        } = self;
        drop(sender);
        if tokio::time::timeout(deadline, &mut task).await.is_err() {
            task.abort();
        }
    }
}

async fn publish_all(
    broker: Arc<dyn Broker>,
    deadline: Duration,
    mut receiver: mpsc::Receiver<Outgoing>,
) {
    let mut is_down = false;
    let mut pending = Vec::with_capacity(BATCH_SIZE);
    while receiver.recv_many(&mut pending, BATCH_SIZE).await > 0 {
        for outgoing in merge(pending.drain(..)) {
            let Some((exchange, routing_key, message)) = outgoing.encode() else {
                continue;
            };
            let sending = broker.broadcast(&exchange, &routing_key, &message);
            let sent = tokio::time::timeout(deadline, sending).await;
            let failure = match sent {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("exchange {} did not answer", exchange.name)),
            };
            // Logged once for each outage.
            match failure {
                Some(cause) if !is_down => {
                    tracing::warn!("cannot publish events and replies: {cause}");
                    is_down = true;
                }
                Some(_) => {}
                None => is_down = false,
            }
        }
    }
}

impl Outgoing {
    fn encode(self) -> Option<(Exchange, String, Message)> {
        match self {
            Self::Message {
                exchange,
                routing_key,
                message,
            } => Some((exchange, routing_key, *message)),
            Self::Tasks { exchange, events } => match Event::write_batch(&events) {
                Ok(message) => Some((exchange, BATCH_ROUTING_KEY.to_owned(), message)),
                Err(error) => {
                    tracing::error!("cannot encode events: {error}");
                    None
                }
            },
        }
    }
}

/// Merges neighbouring task events into messages of at most [`BATCH_SIZE`], in
/// the same order.
fn merge(pending: impl Iterator<Item = Outgoing>) -> Vec<Outgoing> {
    let mut merged: Vec<Outgoing> = Vec::new();
    for next in pending {
        match (merged.last_mut(), next) {
            (Some(Outgoing::Tasks { events, .. }), Outgoing::Tasks { events: more, .. })
                if events.len() + more.len() <= BATCH_SIZE =>
            {
                events.extend(more);
            }
            (_, next) => merged.push(next),
        }
    }
    merged
}
