//! The queues of an app by name: [`Queues`]. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::boundary::{Exchange, ExchangeKind, Queue};
use crate::config::QueueType;
use crate::config::queues::{ListedQueue, QueueSettings};

/// The queues of an app, made from its settings. Clients and workers share them, so
/// that a broadcast queue has one name in the process.
#[derive(Debug)]
pub(crate) struct Queues {
    /// The configured queues by name; broadcast queues also by the name that tasks are
    /// routed to.
    known: HashMap<String, Arc<Queue>>,
    /// The configured queues in the order of the settings.
    configured: Vec<Arc<Queue>>,
    default_queue: String,
    has_default_only: bool,
    missing: MissingQueuePolicy,
    max_priority: Option<u8>,
}

/// The settings of queues that are not configured (`task_create_missing_queue*`).
#[derive(Debug)]
struct MissingQueuePolicy {
    create: bool,
    queue_type: QueueType,
    exchange_kind: ExchangeKind,
}

/// A queue that is not configured while `task_create_missing_queues` is off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "queue {name:?} is not among task_queues, and task_create_missing_queues is off: add it to \
     task_queues or turn task_create_missing_queues on"
)]
#[non_exhaustive]
pub struct QueueNotFound {
    /// The name of the queue.
    pub name: String,
}

impl Queues {
    pub(crate) fn new(settings: &QueueSettings) -> Self {
        let mut queues = Self {
            known: HashMap::new(),
            configured: Vec::new(),
            default_queue: settings.default_queue.clone(),
            has_default_only: settings.listed.is_empty(),
            missing: MissingQueuePolicy {
                create: settings.create_missing,
                queue_type: settings.missing_type,
                exchange_kind: settings
                    .missing_exchange_kind
                    .unwrap_or(ExchangeKind::Direct),
            },
            max_priority: settings.max_priority,
        };
        match settings.listed.as_slice() {
            // As in Celery, `task_default_queue_type` counts only without `task_queues`.
            [] => queues.add(with_type(settings.default_type, default_queue(settings))),
            listed => {
                for one in listed {
                    queues.add(complete(one, settings));
                }
            }
        }
        queues
    }

    /// Returns the queue with this name: as configured, otherwise as Celery creates
    /// missing queues.
    ///
    /// # Errors
    ///
    /// When it is not configured and `task_create_missing_queues` is off.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Queue>, QueueNotFound> {
        match self.known.get(name) {
            Some(queue) => Ok(Arc::clone(queue)),
            None if self.missing.create => Ok(self.create(name)),
            None => Err(QueueNotFound {
                name: name.to_owned(),
            }),
        }
    }

    /// Returns the queue of tasks without a route. If `task_queues` is set, it is one
    /// of them or counts as missing.
    ///
    /// # Errors
    ///
    /// The errors of [`find`](Self::find).
    pub(crate) fn default_queue(&self) -> Result<Arc<Queue>, QueueNotFound> {
        self.find(&self.default_queue)
    }

    /// Returns a queue that this library needs, such as a dead-letter queue. It is
    /// created even if `task_create_missing_queues` is off.
    pub(crate) fn internal(&self, name: &str) -> Arc<Queue> {
        let known = self.known.get(name).map(Arc::clone);
        known.unwrap_or_else(|| self.create(name))
    }

    /// Returns the queue that only this worker consumes (`worker_direct`).
    pub(crate) fn direct(&self, hostname: &str) -> Arc<Queue> {
        let queue = Queue::new(format!("{hostname}.dq2"));
        self.finish(queue.bound_to(Exchange::direct("C.dq2"), hostname))
    }

    /// Returns the `task_queues`, or the default queue if none are set.
    pub(crate) fn configured(&self) -> &[Arc<Queue>] {
        &self.configured
    }

    /// Returns whether no `task_queues` are set.
    pub(crate) fn has_default_only(&self) -> bool {
        self.has_default_only
    }

    fn add(&mut self, queue: Queue) {
        let queue = self.finish(queue);
        for name in std::iter::once(&queue.name).chain(&queue.alias) {
            self.known.insert(name.clone(), Arc::clone(&queue));
        }
        self.configured.push(queue);
    }

    fn create(&self, name: &str) -> Arc<Queue> {
        let exchange = Exchange::new(name, self.missing.exchange_kind);
        let queue = Queue::new(name).bound_to(exchange, name);
        self.finish(with_type(self.missing.queue_type, queue))
    }

    /// Applies `task_queue_max_priority`, which holds for every queue.
    fn finish(&self, queue: Queue) -> Arc<Queue> {
        let has_own = queue.arguments.contains_key("x-max-priority");
        Arc::new(match self.max_priority {
            Some(highest) if !has_own => queue.max_priority(highest),
            _ => queue,
        })
    }
}

fn default_queue(settings: &QueueSettings) -> Queue {
    let key = default_routing_key(settings);
    Queue::new(settings.default_queue.as_str()).bound_to(default_exchange(settings), key)
}

/// Returns a listed queue, completed with the default exchange and routing key.
fn complete(listed: &ListedQueue, settings: &QueueSettings) -> Queue {
    let mut queue = listed.queue.clone();
    if listed.on_default_exchange {
        queue.exchange = default_exchange(settings);
    }
    // A broadcast queue has none; on Redis the routing key is part of the channel name.
    if queue.routing_key.is_empty() {
        default_routing_key(settings).clone_into(&mut queue.routing_key);
    }
    queue
}

fn default_exchange(settings: &QueueSettings) -> Exchange {
    let name = settings.default_exchange.as_ref();
    let name = name.unwrap_or(&settings.default_queue);
    Exchange::new(name.as_str(), settings.default_exchange_kind)
}

fn default_routing_key(settings: &QueueSettings) -> &str {
    let key = settings.default_routing_key.as_ref();
    key.unwrap_or(&settings.default_queue)
}

fn with_type(queue_type: QueueType, queue: Queue) -> Queue {
    match queue_type {
        QueueType::Classic => queue,
        QueueType::Quorum => queue.quorum(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Config;

    fn queues(settings: &[(&str, Value)]) -> Queues {
        let config = settings
            .iter()
            .fold(Config::new(), |config, (name, value)| {
                config.set(name, value.clone()).unwrap()
            });
        Queues::new(&config.queues)
    }

    #[test]
    fn queues_without_settings_are_plain() {
        let queues = queues(&[]);
        assert_eq!(*queues.default_queue().unwrap(), Queue::new("celery"));
        assert_eq!(*queues.find("images").unwrap(), Queue::new("images"));
        let configured: Vec<_> = queues.configured().iter().map(|one| &one.name).collect();
        assert_eq!(configured, ["celery"]);
    }

    #[test]
    fn default_queue_follows_its_settings() {
        let queues = queues(&[
            ("task_default_queue", json!("tasks")),
            ("task_default_exchange_type", json!("topic")),
            ("task_default_routing_key", json!("task.default")),
            ("task_default_queue_type", json!("quorum")),
        ]);
        let expected = Queue::new("tasks")
            .bound_to(Exchange::topic("tasks"), "task.default")
            .quorum();
        assert_eq!(*queues.default_queue().unwrap(), expected);
        // Missing queues have settings of their own.
        assert_eq!(*queues.find("images").unwrap(), Queue::new("images"));
    }

    #[test]
    fn listed_queue_uses_default_exchange() {
        let queues = queues(&[
            ("task_queues", json!({"feeds": {"routing_key": "feed.#"}})),
            ("task_default_exchange", json!("tasks")),
            ("task_default_exchange_type", json!("topic")),
        ]);
        let expected = Queue::new("feeds").bound_to(Exchange::topic("tasks"), "feed.#");
        assert_eq!(*queues.find("feeds").unwrap(), expected);
        // The default queue is not listed, so it counts as missing.
        assert_eq!(*queues.default_queue().unwrap(), Queue::new("celery"));
    }

    #[test]
    fn missing_queue_is_created_by_settings_or_refused() {
        let made = queues(&[
            ("task_create_missing_queue_type", json!("quorum")),
            ("task_create_missing_queue_exchange_type", json!("topic")),
        ]);
        let expected = Queue::new("new")
            .bound_to(Exchange::topic("new"), "new")
            .quorum();
        assert_eq!(*made.find("new").unwrap(), expected);

        let refused = queues(&[
            ("task_queues", json!(["a"])),
            ("task_create_missing_queues", json!(false)),
        ]);
        assert!(refused.find("a").is_ok());
        assert_eq!(refused.internal("a.dead").name, "a.dead");
        assert!(refused.default_queue().is_err());
        let error = refused.find("b").unwrap_err().to_string();
        for word in ["\"b\"", "task_queues", "task_create_missing_queues"] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn max_priority_applies_to_queues_without_their_own() {
        let queues = queues(&[
            ("task_queues", json!({"own": {"max_priority": 3}, "a": {}})),
            ("task_queue_max_priority", json!(10)),
        ]);
        let highest = |name| {
            let queue = queues.find(name).unwrap();
            queue.arguments.get("x-max-priority").cloned()
        };
        assert_eq!(highest("own"), Some(3.into()));
        assert_eq!(highest("a"), Some(10.into()));
        assert_eq!(highest("missing"), Some(10.into()));
    }

    #[test]
    fn broadcast_queue_is_found_by_exchange_name() {
        let queues = queues(&[("task_queues", json!({"news": {"broadcast": true}}))]);
        let queue = queues.find("news").unwrap();
        assert_eq!(queue.exchange, Exchange::fanout("news"));
        assert_eq!(queue.routing_key, "celery", "as Celery binds it");
        assert!(Arc::ptr_eq(&queue, &queues.find(&queue.name).unwrap()));
    }

    #[test]
    fn configured_queue_is_shared() {
        let queues = queues(&[]);
        let (one, two) = (queues.find("celery").unwrap(), queues.default_queue());
        assert!(Arc::ptr_eq(&one, &two.unwrap()));
    }
}
