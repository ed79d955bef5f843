//! The broker.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use celery_protocol::Message;
use celery_runtime::{
    BoxFuture, Broker, BrokerCapabilities, ConsumeOptions, Consumer, Exchange, ExchangeKind,
    Mailbox, PriorityOrder, Publication, Queue, ServiceError, Subscription,
};

use crate::config::RedisOptions;
use crate::consumer::RedisConsumer;
use crate::doubt::Doubts;
use crate::fanout::FanoutSubscription;
use crate::link::{Attempt, Command, Link, Reply};
use crate::parked::Parked;
use crate::reply::ReplySubscription;
use crate::route::ways;

/// A broker on Redis, with the keys and messages of Celery's Redis transport.
///
/// Clones share connections.
#[derive(Clone)]
pub struct RedisBroker {
    shared: Arc<Shared>,
}

/// What a broker, its consumers and its subscriptions share.
pub(crate) struct Shared {
    pub(crate) link: Link,
    pub(crate) parked: Parked,
    pub(crate) doubts: Doubts,
    /// The types of exchanges that were declared here. Redis does not know
    /// them: as in kombu, an exchange nobody declared in this process counts as
    /// direct.
    exchanges: Mutex<HashMap<String, ExchangeKind>>,
    /// The queues that were declared here, by name.
    declared: Mutex<HashMap<String, Queue>>,
}

impl RedisBroker {
    /// A broker that connects when it is first used.
    pub fn new(options: RedisOptions) -> Self {
        Self::on(Link::new(options))
    }

    /// The same with a pool of your own for commands. Consumers and
    /// subscriptions make connections of theirs from `options`, which must
    /// lead to the same database.
    pub fn from_pool(pool: deadpool_redis::Pool, options: RedisOptions) -> Self {
        Self::on(Link::from_pool(pool, options))
    }

    fn on(link: Link) -> Self {
        let shared = Shared {
            link,
            parked: Parked::default(),
            doubts: Doubts::default(),
            exchanges: Mutex::default(),
            declared: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Gives what dead workers held back to its queues, as every consumer does
    /// by itself from time to time, and says how many messages that were.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or refuses.
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
            let attempt = Attempt::new("count the messages of", &object);
            let lengths = self.shared.lengths(&queue.name);
            let lengths = self.shared.link.atomic(attempt, lengths).await?;
            Ok(sum(&lengths))
        })
    }

    fn purge<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<u64, ServiceError>> {
        Box::pin(async move {
            let object = format!("queue {}", queue.name);
            let attempt = Attempt::new("purge", &object);
            let mut commands = self.shared.lengths(&queue.name);
            let lists = commands.len();
            let layout = &self.shared.link.options().layout;
            commands.push(Command::new("DEL").args(layout.lists(&queue.name)));
            let answers = self.shared.link.atomic(attempt, commands).await?;
            Ok(sum(answers.get(..lists).unwrap_or_default()))
        })
    }

    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities::new()
            .settles_after_reconnect(true)
            .confirms_settlements(true)
            .priorities(PriorityOrder::LowestFirst)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.shared.link.close();
        Box::pin(std::future::ready(()))
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.shared.link.options().address();
        f.debug_struct("RedisBroker")
            .field("address", &address)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Notes a queue that was declared and the types of its exchanges.
    pub(crate) fn remember(&self, queue: &Queue) {
        let mut exchanges = lock(&self.exchanges);
        for (exchange, _) in ways(queue) {
            exchanges.insert(exchange.name.clone(), exchange.kind);
        }
        drop(exchanges);
        lock(&self.declared).insert(queue.name.clone(), queue.clone());
    }

    /// Whether the queue was declared here, as it is.
    pub(crate) fn has_declared(&self, queue: &Queue) -> bool {
        lock(&self.declared).get(&queue.name) == Some(queue)
    }

    /// The type of an exchange, if it was declared here.
    pub(crate) fn kind(&self, exchange: &str) -> Option<ExchangeKind> {
        lock(&self.exchanges).get(exchange).copied()
    }

    fn lengths(&self, queue: &str) -> Vec<Command> {
        let lists = self.link.options().layout.lists(queue);
        lists.map(|list| Command::new("LLEN").arg(list)).collect()
    }
}

/// No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sum(numbers: &[Reply]) -> u64 {
    numbers
        .iter()
        .map(|number| u64::try_from(number.number()).unwrap_or_default())
        .sum()
}
