//! State that a broker, its consumers and its subscriptions share.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use celery_runtime::{ExchangeKind, Queue};

use crate::binding::routes;
use crate::delayed::DelayedDeliveries;
use crate::link::{Command, Link};
use crate::unconfirmed::UnconfirmedFetches;

/// What a broker, its consumers and its subscriptions share.
pub(crate) struct Shared {
    pub(crate) link: Link,
    pub(crate) parked: DelayedDeliveries,
    pub(crate) unconfirmed: UnconfirmedFetches,
    /// The types of exchanges that were declared here. Redis does not know
    /// them: as in kombu, an exchange nobody declared in this process counts as
    /// direct.
    exchanges: Mutex<HashMap<String, ExchangeKind>>,
    /// The queues that were declared here, by name.
    declared: Mutex<HashMap<String, Queue>>,
}

impl Shared {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            link,
            parked: DelayedDeliveries::default(),
            unconfirmed: UnconfirmedFetches::default(),
            exchanges: Mutex::default(),
            declared: Mutex::default(),
        }
    }

    /// Notes a queue that was declared and the types of its exchanges.
    pub(crate) fn remember(&self, queue: &Queue) {
        let mut exchanges = lock(&self.exchanges);
        for (exchange, _) in routes(queue) {
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

    pub(crate) fn lengths(&self, queue: &str) -> Vec<Command> {
        let lists = self.link.options().layout.lists(queue);
        lists.map(|list| Command::new("LLEN").arg(list)).collect()
    }
}

/// No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
