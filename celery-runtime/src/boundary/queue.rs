//! Queues, exchanges and mailboxes, as AMQP and Celery's settings describe them.

use std::time::Duration;

use celery_protocol::{Map, Value};

use crate::env;

/// A queue and its bindings, as Celery's `task_queues` describes one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Queue {
    /// The name.
    pub name: String,
    /// The exchange that it is bound to; by default a direct one, named like
    /// the queue.
    pub exchange: Exchange,
    /// The routing key of the binding; by default the queue's name.
    pub routing_key: String,
    /// Arguments of the binding, which exchanges of kind
    /// [`Headers`](ExchangeKind::Headers) compare.
    pub binding_arguments: Map,
    /// More bindings, beside the one above.
    pub bindings: Vec<Binding>,
    /// Whether the queue outlives a restart of the broker; it does by default.
    pub durable: bool,
    /// Whether the queue disappears with its last consumer.
    pub auto_delete: bool,
    /// Arguments of the declaration (`x-max-priority`, `x-queue-type`, …).
    pub arguments: Map,
    /// The name by which a broadcast queue is routed to, since its own is random.
    pub(crate) alias: Option<String>,
}

impl Queue {
    /// A durable queue, bound to the direct exchange of the same name, as
    /// Celery declares a queue that only has a name.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            exchange: Exchange::direct(name.as_str()),
            routing_key: name.clone(),
            binding_arguments: Map::new(),
            bindings: Vec::new(),
            durable: true,
            auto_delete: false,
            arguments: Map::new(),
            alias: None,
            name,
        }
    }

    /// A queue of one consumer alone that gets a copy of every message sent
    /// to the fanout exchange called `name`, as Celery's `Broadcast`. Its own
    /// name is random; tasks are routed to it by `name`. Among the
    /// [`task_queues`](crate::Config::task_queues) it stands for one such queue
    /// in each worker.
    pub fn broadcast(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            auto_delete: true,
            alias: Some(name.clone()),
            ..Self::new(random_name()).bound_to(Exchange::fanout(name), "")
        }
    }

    /// Whether it was made by [`broadcast`](Self::broadcast). Only who consumes
    /// such a queue declares it.
    pub fn is_broadcast(&self) -> bool {
        self.alias.is_some()
    }

    /// The same for one more consumer: a broadcast queue gets another name.
    pub(crate) fn for_consumer(&self) -> Self {
        let mut queue = self.clone();
        if queue.is_broadcast() {
            queue.name = random_name();
        }
        queue
    }

    /// The same queue bound to `exchange` by `routing_key`.
    #[must_use]
    pub fn bound_to(self, exchange: Exchange, routing_key: impl Into<String>) -> Self {
        Self {
            exchange,
            routing_key: routing_key.into(),
            ..self
        }
    }

    /// The same queue with one more binding.
    #[must_use]
    pub fn also_bound_to(mut self, binding: Binding) -> Self {
        self.bindings.push(binding);
        self
    }

    /// The same queue with an argument of its declaration.
    #[must_use]
    pub fn argument(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.arguments.insert(name.into(), value);
        self
    }

    /// The same queue with priorities from 0 to `highest` (`x-max-priority`).
    #[must_use]
    pub fn max_priority(self, highest: u8) -> Self {
        self.argument("x-max-priority", i64::from(highest))
    }

    /// The same as a quorum queue of RabbitMQ (`x-queue-type`).
    #[must_use]
    pub fn quorum(self) -> Self {
        self.argument("x-queue-type", "quorum")
    }

    /// Whether it is declared as a quorum queue.
    pub fn is_quorum(&self) -> bool {
        self.arguments.get("x-queue-type").and_then(Value::as_str) == Some("quorum")
    }
}

impl From<&str> for Queue {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for Queue {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

/// kombu's form of it.
fn random_name() -> String {
    format!("bcast.{}", env::uuid())
}

/// One more way to a queue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Binding {
    /// The exchange.
    pub exchange: Exchange,
    /// The routing key, or the pattern where the exchange has patterns.
    pub routing_key: String,
    /// Arguments, which exchanges of kind [`Headers`](ExchangeKind::Headers)
    /// compare.
    pub arguments: Map,
}

impl Binding {
    /// A binding to `exchange` by `routing_key`.
    pub fn new(exchange: Exchange, routing_key: impl Into<String>) -> Self {
        Self {
            exchange,
            routing_key: routing_key.into(),
            arguments: Map::new(),
        }
    }
}

/// What messages are sent to, and which passes them on to queues.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// The name; empty for the anonymous one, to which every queue is bound by
    /// its name.
    pub name: String,
    /// How it chooses queues.
    pub kind: ExchangeKind,
    /// Whether it outlives a restart of the broker; it does by default.
    pub durable: bool,
}

impl Exchange {
    /// A durable exchange.
    pub fn new(name: impl Into<String>, kind: ExchangeKind) -> Self {
        Self {
            name: name.into(),
            kind,
            durable: true,
        }
    }

    /// A durable direct exchange.
    pub fn direct(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Direct)
    }

    /// A durable topic exchange.
    pub fn topic(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Topic)
    }

    /// A durable fanout exchange.
    pub fn fanout(name: impl Into<String>) -> Self {
        Self::new(name, ExchangeKind::Fanout)
    }

    /// The same, gone when the broker restarts.
    #[must_use]
    pub fn transient(self) -> Self {
        Self {
            durable: false,
            ..self
        }
    }
}

/// How an exchange chooses queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExchangeKind {
    /// Queues whose routing key is equal.
    Direct,
    /// Queues whose pattern matches.
    Topic,
    /// Every queue.
    Fanout,
    /// Queues whose arguments match the message's headers.
    Headers,
}

impl ExchangeKind {
    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Direct, Self::Topic, Self::Fanout, Self::Headers]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// The name that brokers and settings use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
        }
    }
}

/// A queue of one reader alone: for broadcasts, events and replies.
///
/// The properties are those by which Celery declares such queues; brokers that
/// have no such thing leave out what they cannot do.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mailbox {
    /// The name.
    pub name: String,
    /// What brings messages here; without it the mailbox is reached by its name
    /// through the anonymous exchange.
    pub binding: Option<Binding>,
    /// Whether it outlives a restart of the broker.
    pub durable: bool,
    /// Whether the broker keeps other connections from reading it.
    pub exclusive: bool,
    /// How long it stays when nobody reads it.
    pub expires: Duration,
    /// How long a message waits to be read; as long as the mailbox where `None`.
    pub message_ttl: Option<Duration>,
}

impl Mailbox {
    /// What is sent to `exchange` under routing keys that match `pattern` (`*`
    /// one word, `#` any number; `""` or `#` everything), as Celery's event
    /// receivers listen: under a random name, unread messages kept for 5 s.
    pub fn of(exchange: Exchange, pattern: impl Into<String>) -> Self {
        Self {
            name: format!("{}.{}", exchange.name, env::uuid()),
            binding: Some(Binding::new(exchange, pattern)),
            durable: false,
            exclusive: true,
            expires: Duration::from_secs(60),
            message_ttl: Some(Duration::from_secs(5)),
        }
    }

    /// What is sent to the mailbox by its name, kept for `expires` after its
    /// last use, as Celery's `rpc://` results are.
    pub fn named(name: impl Into<String>, expires: Duration) -> Self {
        Self {
            name: name.into(),
            binding: None,
            durable: true,
            exclusive: false,
            expires,
            message_ttl: None,
        }
    }

    /// What remote control sends to a worker, or answers to a client: bound to
    /// `exchange` by `routing_key`.
    pub fn control(
        name: impl Into<String>,
        exchange: Exchange,
        routing_key: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            expires: Duration::from_secs(10),
            message_ttl: Some(Duration::from_secs(300)),
            ..Self::of(exchange, routing_key)
        }
    }
}
