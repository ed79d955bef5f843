//! From a queue's name to the queue: [`Queues`]. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::boundary::{Exchange, ExchangeKind, Queue};
use crate::config::QueueType;
use crate::config::queues::{Listed, QueueSettings};

/// The queues of an app, as its settings describe them. Made once, so that
/// clients and workers speak of the same ones.
#[derive(Debug)]
pub(crate) struct Queues {
    /// By name; broadcast queues also by the name that tasks are routed to.
    known: HashMap<String, Arc<Queue>>,
    /// In the order of the settings.
    configured: Vec<Arc<Queue>>,
    default_queue: String,
    has_default_only: bool,
    missing: Missing,
    max_priority: Option<u8>,
}

/// How queues are made that the settings do not know.
#[derive(Debug)]
struct Missing {
    create: bool,
    queue_type: QueueType,
    exchange_kind: ExchangeKind,
}

/// A queue that no setting knows and that must not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "queue {name:?} is not among task_queues, and task_create_missing_queues is off: add it to \
     the one or turn the other on"
)]
#[non_exhaustive]
pub struct QueueNotFound {
    /// Its name.
    pub name: String,
}

impl Queues {
    pub(crate) fn new(settings: &QueueSettings) -> Self {
        let mut queues = Self {
            known: HashMap::new(),
            configured: Vec::new(),
            default_queue: settings.default_queue.clone(),
            has_default_only: settings.listed.is_empty(),
            missing: Missing {
                create: settings.create_missing,
                queue_type: settings.missing_type,
                exchange_kind: settings
                    .missing_exchange_kind
                    .unwrap_or(ExchangeKind::Direct),
            },
            max_priority: settings.max_priority,
        };
        match settings.listed.as_slice() {
            // As in Celery, the type of the default queue counts only here.
            [] => queues.add(of_type(settings.default_type, default_queue(settings))),
            listed => {
                for one in listed {
                    queues.add(complete(one, settings));
                }
            }
        }
        queues
    }

    /// The queue of that name: as configured, else as Celery makes missing ones.
    ///
    /// # Errors
    ///
    /// When it is missing and must not be made.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Queue>, QueueNotFound> {
        match self.known.get(name) {
            Some(queue) => Ok(Arc::clone(queue)),
            None if self.missing.create => Ok(self.create(name)),
            None => Err(QueueNotFound {
                name: name.to_owned(),
            }),
        }
    }

    /// Where tasks go for which nothing else is said. Once there are
    /// `task_queues`, it has to be one of them or counts as missing.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find).
    pub(crate) fn default_queue(&self) -> Result<Arc<Queue>, QueueNotFound> {
        self.find(&self.default_queue)
    }

    /// A queue that this library needs: the settings say how it is made, and
    /// have no say in whether.
    pub(crate) fn our_own(&self, name: &str) -> Arc<Queue> {
        let known = self.known.get(name).map(Arc::clone);
        known.unwrap_or_else(|| self.create(name))
    }

    /// The queue to which one worker alone listens (`worker_direct`).
    pub(crate) fn direct(&self, hostname: &str) -> Arc<Queue> {
        let queue = Queue::new(format!("{hostname}.dq2"));
        self.finish(queue.bound_to(Exchange::direct("C.dq2"), hostname))
    }

    /// The `task_queues`, or the default queue where there are none.
    pub(crate) fn configured(&self) -> &[Arc<Queue>] {
        &self.configured
    }

    /// Whether there are no `task_queues`.
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
        self.finish(of_type(self.missing.queue_type, queue))
    }

    /// What holds for every queue, however it came about.
    fn finish(&self, queue: Queue) -> Arc<Queue> {
        let own = queue.arguments.contains_key("x-max-priority");
        Arc::new(match self.max_priority {
            Some(highest) if !own => queue.max_priority(highest),
            _ => queue,
        })
    }
}

fn default_queue(settings: &QueueSettings) -> Queue {
    let key = default_routing_key(settings);
    Queue::new(settings.default_queue.as_str()).bound_to(default_exchange(settings), key)
}

/// A listed queue with what it takes from the defaults.
fn complete(listed: &Listed, settings: &QueueSettings) -> Queue {
    let mut queue = listed.queue.clone();
    if listed.on_default_exchange {
        queue.exchange = default_exchange(settings);
    }
    // As of a broadcast; on Redis it is a part of the channel's name.
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

fn of_type(queue_type: QueueType, queue: Queue) -> Queue {
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
    fn without_settings_all_queues_are_celerys_plain_ones() {
        let queues = queues(&[]);
        assert_eq!(*queues.default_queue().unwrap(), Queue::new("celery"));
        assert_eq!(*queues.find("images").unwrap(), Queue::new("images"));
        let configured: Vec<_> = queues.configured().iter().map(|one| &one.name).collect();
        assert_eq!(configured, ["celery"]);
    }

    #[test]
    fn the_default_queue_follows_its_settings() {
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
        // The others are made by settings of their own.
        assert_eq!(*queues.find("images").unwrap(), Queue::new("images"));
    }

    #[test]
    fn listed_queues_take_the_default_exchange() {
        let queues = queues(&[
            ("task_queues", json!({"feeds": {"routing_key": "feed.#"}})),
            ("task_default_exchange", json!("tasks")),
            ("task_default_exchange_type", json!("topic")),
        ]);
        let expected = Queue::new("feeds").bound_to(Exchange::topic("tasks"), "feed.#");
        assert_eq!(*queues.find("feeds").unwrap(), expected);
        // Not listed, so a missing one as any other.
        assert_eq!(*queues.default_queue().unwrap(), Queue::new("celery"));
    }

    #[test]
    fn missing_queues_are_made_as_told_or_refused() {
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
        assert_eq!(refused.our_own("a.dead").name, "a.dead");
        assert!(refused.default_queue().is_err());
        let error = refused.find("b").unwrap_err().to_string();
        for word in ["\"b\"", "task_queues", "task_create_missing_queues"] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_highest_priority_is_for_all_that_have_none_of_their_own() {
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
    fn broadcasts_are_found_by_the_name_of_their_exchange() {
        let queues = queues(&[("task_queues", json!({"news": {"broadcast": true}}))]);
        let queue = queues.find("news").unwrap();
        assert_eq!(queue.exchange, Exchange::fanout("news"));
        assert_eq!(queue.routing_key, "celery", "as Celery binds it");
        assert!(Arc::ptr_eq(&queue, &queues.find(&queue.name).unwrap()));
    }

    #[test]
    fn what_is_known_is_shared_and_not_made_anew() {
        let queues = queues(&[]);
        let (one, two) = (queues.find("celery").unwrap(), queues.default_queue());
        assert!(Arc::ptr_eq(&one, &two.unwrap()));
    }
}
