//! State that a broker, its consumers and its subscriptions share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use celery_runtime::{ExchangeKind, Queue};

use crate::answer_budget::AnswerBudget;
use crate::binding::routes;
use crate::client::{Command, RedisClient};
use crate::delayed::DelayedDeliveries;
use crate::lease::LeaseRegistry;
use crate::unconfirmed::UnconfirmedFetches;

/// The connections and in-process state of one broker.
pub(crate) struct Shared {
    pub(crate) client: RedisClient,
    pub(crate) delayed: DelayedDeliveries,
    pub(crate) unconfirmed: UnconfirmedFetches,
    pub(crate) leases: LeaseRegistry,
    /// Outlives the consumer that an unanswered fetch ends.
    pub(crate) answer_budget: Arc<AnswerBudget>,
    /// The types of exchanges that this process has declared. Redis does not
    /// store them: as in kombu, an undeclared exchange counts as direct.
    exchanges: Mutex<HashMap<String, ExchangeKind>>,
    /// The queues that this process has declared, by name.
    declared: Mutex<HashMap<String, Queue>>,
}

impl Shared {
    pub(crate) fn new(client: RedisClient) -> Self {
        let answer_budget = Arc::new(AnswerBudget::new(client.options().limits.response));
        Self {
            client,
            answer_budget,
            delayed: DelayedDeliveries::default(),
            unconfirmed: UnconfirmedFetches::default(),
            leases: LeaseRegistry::default(),
            exchanges: Mutex::default(),
            declared: Mutex::default(),
        }
    }

    /// Records that a queue was declared, and the types of its exchanges.
    pub(crate) fn record_declaration(&self, queue: &Queue) {
        let mut exchanges = lock(&self.exchanges);
        for (exchange, _) in routes(queue) {
            exchanges.insert(exchange.name.clone(), exchange.kind);
        }
        drop(exchanges);
        lock(&self.declared).insert(queue.name.clone(), queue.clone());
    }

    /// Returns whether this process has declared the queue with the same
    /// options.
    pub(crate) fn has_declared(&self, queue: &Queue) -> bool {
        lock(&self.declared).get(&queue.name) == Some(queue)
    }

    /// Returns the type of an exchange that this process has declared.
    pub(crate) fn kind(&self, exchange: &str) -> Option<ExchangeKind> {
        lock(&self.exchanges).get(exchange).copied()
    }

    /// Returns the commands that read the lengths of a queue's lists.
    pub(crate) fn lengths(&self, queue: &str) -> Vec<Command> {
        let lists = self.client.options().layout.lists(queue);
        lists.map(|list| Command::new("LLEN").arg(list)).collect()
    }
}

/// Locks a mutex. No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
