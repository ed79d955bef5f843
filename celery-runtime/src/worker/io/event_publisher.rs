//! What the worker tells others: sent by a task of its own, in order, and never
//! waited for.

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Event, Message};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::boundary::{Broker, Exchange};
use crate::env;

/// What waits to be sent; more is dropped, as events may be.
const BACKLOG: usize = 16_384;

/// Events about tasks that go into one message, as in Celery.
pub(crate) const BATCH: usize = 24;

/// The routing key of such a message.
const BATCH_KEY: &str = "task.multi";

/// Something to tell.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Message {
        exchange: Exchange,
        routing_key: String,
        message: Box<Message>,
    },
    /// What happened to tasks. Those that wait together are sent together, so
    /// that a broker that is slow takes more at a time.
    Tasks {
        exchange: Exchange,
        events: Vec<Event>,
    },
}

#[derive(Debug)]
pub(crate) struct EventPublisher {
    sender: mpsc::Sender<Outgoing>,
    task: JoinHandle<()>,
    dropped: u64,
}

impl EventPublisher {
    pub(crate) fn start(broker: Arc<dyn Broker>, deadline: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        Self {
            sender,
            task: env::spawn(post(broker, deadline, receiver)),
            dropped: 0,
        }
    }

    pub(crate) fn send(&mut self, dispatch: Outgoing) {
        if self.sender.try_send(dispatch).is_err() {
            self.dropped += 1;
            if self.dropped.is_power_of_two() {
                tracing::warn!(
                    "{} events or replies were dropped: the broker does not take them as fast \
                     as they are made",
                    self.dropped
                );
            }
        }
    }

    /// Ends when everything is sent, within the deadline.
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

async fn post(broker: Arc<dyn Broker>, deadline: Duration, mut receiver: mpsc::Receiver<Outgoing>) {
    let mut is_down = false;
    let mut waiting = Vec::with_capacity(BATCH);
    while receiver.recv_many(&mut waiting, BATCH).await > 0 {
        for dispatch in together(waiting.drain(..)) {
            let Some((exchange, routing_key, message)) = dispatch.write() else {
                continue;
            };
            let sending = broker.broadcast(&exchange, &routing_key, &message);
            let sent = tokio::time::timeout(deadline, sending).await;
            let failure = match sent {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("exchange {} did not answer", exchange.name)),
            };
            // Told once for each outage.
            match failure {
                Some(cause) if !is_down => {
                    tracing::warn!("events and replies cannot be sent: {cause}");
                    is_down = true;
                }
                Some(_) => {}
                None => is_down = false,
            }
        }
    }
}

impl Outgoing {
    fn write(self) -> Option<(Exchange, String, Message)> {
        match self {
            Self::Message {
                exchange,
                routing_key,
                message,
            } => Some((exchange, routing_key, *message)),
            Self::Tasks { exchange, events } => match Event::write_batch(&events) {
                Ok(message) => Some((exchange, BATCH_KEY.to_owned(), message)),
                Err(error) => {
                    tracing::error!("cannot write an event: {error}");
                    None
                }
            },
        }
    }
}

/// The same in the same order, in fewer messages.
fn together(waiting: impl Iterator<Item = Outgoing>) -> Vec<Outgoing> {
    let mut all: Vec<Outgoing> = Vec::new();
    for next in waiting {
        match (all.last_mut(), next) {
            (Some(Outgoing::Tasks { events, .. }), Outgoing::Tasks { events: more, .. })
                if events.len() + more.len() <= BATCH =>
            {
                events.extend(more);
            }
            (_, next) => all.push(next),
        }
    }
    all
}
