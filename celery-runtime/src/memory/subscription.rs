//! The subscriptions of the in-memory broker.

use std::fmt;
use std::sync::Arc;

use celery_protocol::Message;
use tokio::sync::broadcast;

use crate::boundary::{
    Binding, BoxFuture, Content, ExchangeKind, ServiceError, Settlement, Subscription,
    topic_matches,
};
use crate::memory::broker::BrokerInner;
use crate::memory::faults::Faults;
use crate::memory::lock;

/// Receives the broadcasts of an exchange whose routing key matches.
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
                    Ok((key, message)) if self.matches(&key) => return Ok(message),
                    // The key does not match, or old messages were dropped.
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

    fn matches(&self, routing_key: &str) -> bool {
        match self.kind {
            ExchangeKind::Direct => self.pattern == routing_key,
            _ => topic_matches(&self.pattern, routing_key),
        }
    }
}

/// Receives the messages of a named mailbox, and purges it when dropped.
pub(super) struct ReplyQueue {
    name: Arc<str>,
    inner: Arc<BrokerInner>,
}

impl Subscription for ReplyQueue {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            loop {
                let changed = self.inner.changed.notified();
                self.inner.faults.check("subscribe").await?;
                if let Some(message) = self.take() {
                    return Ok(message);
                }
                tokio::select! {
                    biased;
                    () = changed => {}
                    error = self.inner.faults.broken("subscribe") => return Err(error),
                }
            }
        })
    }
}

impl ReplyQueue {
    pub(super) fn new(name: &str, inner: Arc<BrokerInner>) -> Self {
        Self {
            name: name.into(),
            inner,
        }
    }

    fn take(&self) -> Option<Message> {
        let now = self.inner.clock.now();
        let mut queues = lock(&self.inner.queues);
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
        lock(&self.inner.queues).purge(&self.name);
    }
}

impl fmt::Debug for ReplyQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReplyQueue").field(&self.name).finish()
    }
}
