//! What the in-memory broker's subscribers hold.

use std::fmt;
use std::sync::Arc;

use celery_protocol::Message;
use tokio::sync::broadcast;

use crate::boundary::{
    Binding, BoxFuture, Content, ExchangeKind, ServiceError, Settlement, Subscription,
    topic_matches,
};
use crate::memory::broker::Shared;
use crate::memory::faults::Faults;
use crate::memory::lock;

/// Receives what is broadcast to an exchange.
#[derive(Debug)]
pub(super) struct FanoutSubscription {
    kind: ExchangeKind,
    pattern: String,
    receiver: broadcast::Receiver<(String, Message)>,
    faults: Faults,
}

impl Subscription for FanoutSubscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            loop {
                let received = tokio::select! {
                    biased;
                    error = self.faults.broken("subscribe") => return Err(error),
                    received = self.receiver.recv() => received,
                };
                match received {
                    Ok((key, message)) if self.wants(&key) => return Ok(message),
                    // Others' messages, or some missed by not reading.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        })
    }
}

impl FanoutSubscription {
    pub(super) fn new(
        binding: &Binding,
        receiver: broadcast::Receiver<(String, Message)>,
        faults: Faults,
    ) -> Self {
        Self {
            kind: binding.exchange.kind,
            pattern: binding.routing_key.clone(),
            receiver,
            faults,
        }
    }

    fn wants(&self, routing_key: &str) -> bool {
        match self.kind {
            ExchangeKind::Direct => self.pattern == routing_key,
            _ => topic_matches(&self.pattern, routing_key),
        }
    }
}

/// A queue for replies; it and what is left in it go with the reader.
pub(super) struct ReplyQueue {
    name: Arc<str>,
    shared: Arc<Shared>,
}

impl Subscription for ReplyQueue {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            loop {
                let changed = self.shared.changed.notified();
                self.shared.faults.check("subscribe").await?;
                if let Some(message) = self.take() {
                    return Ok(message);
                }
                tokio::select! {
                    biased;
                    () = changed => {}
                    error = self.shared.faults.broken("subscribe") => return Err(error),
                }
            }
        })
    }
}

impl ReplyQueue {
    pub(super) fn new(name: &str, shared: Arc<Shared>) -> Self {
        Self {
            name: name.into(),
            shared,
        }
    }

    fn take(&self) -> Option<Message> {
        let now = self.shared.clock.now();
        let mut queues = lock(&self.shared.queues);
        let names = [Arc::clone(&self.name)];
        let delivery = queues.take(u64::MAX, &names, 1, now).pop()?;
        queues.settle(&Settlement::Ack(delivery.tag));
        match delivery.content {
            Content::Message(message) => Some(message),
            Content::Malformed { .. } => None,
        }
    }
}

impl Drop for ReplyQueue {
    fn drop(&mut self) {
        lock(&self.shared.queues).purge(&self.name);
    }
}

impl fmt::Debug for ReplyQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReplyQueue").field(&self.name).finish()
    }
}
