//! The broker.

use std::fmt;
use std::sync::Arc;

use celery_protocol::Message;
use celery_runtime::{
    BoxFuture, Broker, BrokerCapabilities, ConsumeOptions, Consumer, Exchange, Mailbox,
    PriorityOrder, Publication, Queue, ServiceError, Subscription,
};

use crate::client::{Command, Operation, RedisClient, RedisReply};
use crate::config::RedisOptions;
use crate::consumer::RedisConsumer;
use crate::fanout::FanoutSubscription;
use crate::reply::ReplySubscription;
use crate::shared::Shared;

/// A broker on Redis, with the keys and messages of Celery's Redis transport.
///
/// Clones share connections.
#[derive(Clone)]
pub struct RedisBroker {
    shared: Arc<Shared>,
}

impl RedisBroker {
    /// Returns a broker that connects when it is first used.
    pub fn new(options: RedisOptions) -> Self {
        Self::on(RedisClient::new(options))
    }

    /// Returns a broker that runs its commands on the connections of an
    /// existing pool. Consumers and subscriptions connect with `options`, which
    /// must lead to the same database.
    pub fn from_pool(pool: deadpool_redis::Pool, options: RedisOptions) -> Self {
        Self::on(RedisClient::from_pool(pool, options))
    }

    fn on(client: RedisClient) -> Self {
        Self {
            shared: Arc::new(Shared::new(client)),
        }
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Restores the deliveries of dead workers to their queues and returns
    /// their number. Every consumer does so automatically at regular intervals.
    ///
    /// # Errors
    ///
    /// If the server is unreachable or reports an error.
    pub async fn restore_abandoned(&self) -> Result<usize, ServiceError> {
        self.shared.restore().await
    }
}

impl Broker for RedisBroker {
    fn declare<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.shared.declare(queue))
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
            let consumer = RedisConsumer::start(Arc::clone(&self.shared), options).await?;
            let consumer: Arc<dyn Consumer> = Arc::new(consumer);
            Ok(consumer)
        })
    }

    fn broadcast<'a>(
        &'a self,
        exchange: &'a Exchange,
        routing_key: &'a str,
        message: &'a Message,
    ) -> BoxFuture<'a, Result<Option<u64>, ServiceError>> {
        Box::pin(self.shared.broadcast(exchange, routing_key, message))
    }

    fn subscribe<'a>(
        &'a self,
        mailbox: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>, ServiceError>> {
        Box::pin(async move {
            let subscription: Box<dyn Subscription> = match &mailbox.binding {
                Some(binding) if self.shared.is_channel(&binding.exchange, "subscribe to")? => {
                    Box::new(FanoutSubscription::start(&self.shared, binding).await?)
                }
                _ => Box::new(ReplySubscription::start(&self.shared, mailbox).await?),
            };
            Ok(subscription)
        })
    }

    fn depth<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            let object = format!("queue {}", queue.name);
            let operation = Operation::new("count the messages of", &object);
            let lengths = self.shared.lengths(&queue.name);
            let lengths = self.shared.client.atomic(operation, lengths).await?;
            Ok(sum(&lengths))
        })
    }

    fn purge<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            let object = format!("queue {}", queue.name);
            let operation = Operation::new("purge", &object);
            let mut commands = self.shared.lengths(&queue.name);
            let lists = commands.len();
            let layout = &self.shared.client.options().layout;
            commands.push(Command::new("DEL").args(layout.lists(&queue.name)));
            let answers = self.shared.client.atomic(operation, commands).await?;
            Ok(sum(answers.get(..lists).unwrap_or_default()))
        })
    }

    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities::new()
            .settles_after_reconnect(true)
            .confirms_settlements(true)
            .restores_acknowledged(true)
            .priorities(PriorityOrder::LowestFirst)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.shared.client.close();
        Box::pin(std::future::ready(()))
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.shared.client.options().address();
        f.debug_struct("RedisBroker")
            .field("address", &address)
            .finish_non_exhaustive()
    }
}

fn sum(numbers: &[RedisReply]) -> u64 {
    numbers
        .iter()
        .map(|number| u64::try_from(number.number()).unwrap_or_default())
        .sum()
}
