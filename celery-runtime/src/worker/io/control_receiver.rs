//! Receives control commands and the election events of other workers.

use std::sync::Arc;

use celery_protocol::{ControlRequest, Event, Message};
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backoff::Backoff;
use crate::boundary::{Broker, Mailbox, ServiceError};
use crate::env;

/// Most messages that are buffered in the worker; more stay in the broker.
const MAX_BUFFERED: usize = 256;

/// A decoded message of one of the mailboxes.
#[derive(Debug)]
pub(crate) enum Incoming {
    Request(ControlRequest),
    Events(Vec<Event>),
}

/// Decodes the messages of a mailbox.
pub(crate) type MessageReader = fn(&Message) -> Result<Incoming, celery_protocol::DecodeError>;

/// Reads mailboxes until it is dropped, and subscribes again after a lost
/// connection.
#[derive(Debug)]
pub(crate) struct ControlReceiver {
    incoming: mpsc::Receiver<Incoming>,
    /// Aborted when the receiver is dropped.
    _listeners: JoinSet<()>,
}

impl ControlReceiver {
    /// Creates a receiver that subscribes once `begin` resolves or its sender is
    /// dropped.
    pub(crate) fn start(
        broker: &Arc<dyn Broker>,
        mailboxes: Vec<(Mailbox, MessageReader)>,
        begin: oneshot::Receiver<()>,
    ) -> Self {
        let (sender, incoming) = mpsc::channel(MAX_BUFFERED);
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

    /// Waits for the next message; pending forever without mailboxes.
    ///
    /// # Cancel safety
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
                tracing::warn!(
                    "cannot subscribe to control mailbox {}; retrying: {error}",
                    self.mailbox.name
                );
            }
            attempt = attempt.saturating_add(1);
            tokio::time::sleep(delay).await;
        }
    }

    /// Returns `Ok` when the receiver is dropped.
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
                    tracing::warn!(
                        "cannot decode a message of control mailbox {}: {error}",
                        self.mailbox.name
                    );
                }
            }
        }
    }
}
