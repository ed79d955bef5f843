//! What the worker tells others: sent by a task of its own, in order, and never
//! waited for.

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::broker::{Broker, Exchange};

/// Messages that wait to be sent; more are dropped, as events may be.
const BACKLOG: usize = 1024;

/// Something to tell.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) exchange: Exchange,
    pub(crate) routing_key: String,
    pub(crate) message: Message,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    sender: mpsc::Sender<Dispatch>,
    task: JoinHandle<()>,
    dropped: u64,
}

impl Outbox {
    pub(crate) fn start(broker: Arc<dyn Broker>, deadline: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        Self {
            sender,
            task: tokio::spawn(post(broker, deadline, receiver)),
            dropped: 0,
        }
    }

    pub(crate) fn send(&mut self, dispatch: Dispatch) {
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

async fn post(broker: Arc<dyn Broker>, deadline: Duration, mut receiver: mpsc::Receiver<Dispatch>) {
    let mut is_down = false;
    while let Some(dispatch) = receiver.recv().await {
        let Dispatch {
            exchange,
            routing_key,
            message,
        } = dispatch;
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
