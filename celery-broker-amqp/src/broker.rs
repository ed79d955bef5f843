//! The broker, an implementation of the runtime's `Broker` trait.

use std::fmt;
use std::sync::Arc;

use celery_protocol::Message;
use celery_runtime::{
    BoxFuture, Broker, BrokerCapabilities, ConsumeOptions, Consumer, Exchange, Mailbox,
    PriorityOrder, Publication, Queue, ServiceError, Subscription,
};

use crate::consumer::AmqpConsumer;
use crate::declarer::Declarer;
use crate::options::AmqpOptions;
use crate::shared::Shared;
use crate::subscription::AmqpSubscription;

/// A broker for clients and workers on RabbitMQ.
///
/// It uses at most two connections, both opened on demand: one for publishing and
/// one for everything else, because RabbitMQ stops reading from connections that
/// publish when it is short of memory or disk.
///
/// Cloning is cheap; clones share the connections.
#[derive(Clone)]
pub struct AmqpBroker {
    shared: Arc<Shared>,
}

impl AmqpBroker {
    /// Creates a broker from its options. It connects on the first call.
    pub fn new(options: AmqpOptions) -> Self {
        Self {
            shared: Arc::new(Shared::new(options)),
        }
    }
}

impl Broker for AmqpBroker {
    fn declare<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            let object = format!("queue {}", queue.name);
            let connection = self.shared.connection("declare", &object).await?;
            self.shared.declare(&connection, queue).await
        })
    }

    fn publish<'a>(
        &'a self,
        batch: &'a [Publication],
    ) -> BoxFuture<'a, Vec<Result<(), ServiceError>>> {
        Box::pin(self.shared.publish(batch))
    }

    fn consume<'a>(
        &'a self,
        options: &'a ConsumeOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Consumer>, ServiceError>> {
        Box::pin(async move {
            let consumer = AmqpConsumer::start(&self.shared, options).await?;
            Ok(Arc::new(consumer) as Arc<dyn Consumer>)
        })
    }

    fn broadcast<'a>(
        &'a self,
        exchange: &'a Exchange,
        routing_key: &'a str,
        message: &'a Message,
    ) -> BoxFuture<'a, Result<Option<u64>, ServiceError>> {
        Box::pin(async move {
            let sent = self.shared.broadcast(exchange, routing_key, message);
            // RabbitMQ does not report the number of receivers.
            sent.await.map(|()| None)
        })
    }

    fn subscribe<'a>(
        &'a self,
        mailbox: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>, ServiceError>> {
        Box::pin(async move {
            let subscription = AmqpSubscription::open(&self.shared, mailbox).await?;
            Ok(Box::new(subscription) as Box<dyn Subscription>)
        })
    }

    fn depth<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            let object = format!("queue {}", queue.name);
            let connection = self
                .shared
                .connection("count the messages of", &object)
                .await?;
            let context = self.shared.context("count the messages of", &object);
            let count = Declarer::new(&connection, context)
                .message_count(&queue.name)
                .await?;
            Ok(count.unwrap_or(0).into())
        })
    }

    fn purge<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            let object = format!("queue {}", queue.name);
            let connection = self.shared.connection("purge", &object).await?;
            let context = self.shared.context("purge", &object);
            let purged = Declarer::new(&connection, context)
                .purge(&queue.name)
                .await?;
            Ok(purged.unwrap_or(0).into())
        })
    }

    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities::new()
            .counts_deliveries(true)
            .priorities(PriorityOrder::HighestFirst)
    }

    fn blocked_reason(&self) -> Option<String> {
        self.shared.publishing.blocked_reason()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.publishing.close().await;
            self.shared.consuming.close().await;
        })
    }
}

impl fmt::Debug for AmqpBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AmqpBroker")
            .field(&self.shared.options.address())
            .finish()
    }
}
