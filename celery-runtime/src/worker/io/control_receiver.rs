//! What the worker hears: control commands, and the elections of its peers.

use std::sync::Arc;

use celery_protocol::{ControlRequest, Event, Message};
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backoff::Backoff;
use crate::boundary::{Broker, Mailbox, ServiceError};
use crate::env;

/// Messages that wait for the worker; the others wait with the broker.
const BACKLOG: usize = 256;

/// Something that was heard.
#[derive(Debug)]
pub(crate) enum Incoming {
    Request(ControlRequest),
    Events(Vec<Event>),
}

/// How a mailbox's messages are read.
pub(crate) type MessageReader = fn(&Message) -> Result<Incoming, celery_protocol::DecodeError>;

/// Listens to mailboxes as long as it lives, whatever their connections do.
#[derive(Debug)]
pub(crate) struct ControlReceiver {
    incoming: mpsc::Receiver<Incoming>,
    /// Ended with this.
    _listeners: JoinSet<()>,
}

impl ControlReceiver {
    /// Listens once `begin` is told, or dropped.
    pub(crate) fn start(
        broker: &Arc<dyn Broker>,
        mailboxes: Vec<(Mailbox, MessageReader)>,
        begin: oneshot::Receiver<()>,
    ) -> Self {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let mailboxes = mailboxes
            .into_iter()
            .map(|(mailbox, read)| MailboxListener {
                broker: Arc::clone(broker),
                mailbox,
                read,
                sender: sender.clone(),
            });
        let runs: Vec<_> = mailboxes.map(MailboxListener::run).collect();
        let mut listeners = JoinSet::new();
        env::spawn_in(&mut listeners, async move {
            let _ = begin.await;
            join_all(runs).await;
        });
        Self {
            incoming,
            _listeners: listeners,
        }
    }

    /// The next message; never where there is nothing to listen to.
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Incoming {
        match self.incoming.recv().await {
            Some(incoming) => incoming,
            None => std::future::pending().await,
        }
    }
}

pub(crate) fn read_request(message: &Message) -> Result<Incoming, celery_protocol::DecodeError> {
    ControlRequest::read(message).map(Incoming::Request)
}

pub(crate) fn read_events(message: &Message) -> Result<Incoming, celery_protocol::DecodeError> {
    Event::read_all(message).map(Incoming::Events)
}

struct MailboxListener {
    broker: Arc<dyn Broker>,
    mailbox: Mailbox,
    read: MessageReader,
    sender: mpsc::Sender<Incoming>,
}

impl MailboxListener {
    async fn run(self) {
        let mut attempt = 0;
        loop {
            let error = match self.listen(&mut attempt).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let delay = Backoff::CONNECTION.delay(attempt, env::random());
            if attempt == 0 {
                tracing::warn!("{} is not listened to: {error}", self.mailbox.name);
            }
            attempt = attempt.saturating_add(1);
            tokio::time::sleep(delay).await;
        }
    }

    /// Returns when nobody wants to hear any more.
    async fn listen(&self, attempt: &mut u32) -> Result<(), ServiceError> {
        let mut messages = self.broker.subscribe(&self.mailbox).await?;
        *attempt = 0;
        loop {
            let message = messages.next().await?;
            match (self.read)(&message) {
                Ok(incoming) => {
                    if self.sender.send(incoming).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => {
                    tracing::warn!("cannot read a message to {}: {error}", self.mailbox.name);
                }
            }
        }
    }
}
