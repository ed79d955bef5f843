//! Queues, exchanges and mailboxes, as AMQP and Celery's settings describe them.

use std::time::Duration;

use celery_protocol::{Map, Value};

use crate::env;

/// A queue and its bindings: an entry of Celery's `task_queues`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Queue {
    /// The name.
    pub name: String,
    /// The exchange of the first binding; by default a direct exchange with the
    /// name of the queue.
    pub exchange: Exchange,
    /// The routing key of the first binding; by default the queue's name.
    pub routing_key: String,
    /// The arguments of the first binding, which exchanges of kind
    /// [`Headers`](ExchangeKind::Headers) compare.
    pub binding_arguments: Map,
    /// The other bindings; none by default.
    pub bindings: Vec<Binding>,
    /// Whether the queue survives a restart of the broker; `true` by default.
    pub durable: bool,
    /// Whether the broker deletes the queue with its last consumer; `false` by
    /// default.
    pub auto_delete: bool,
    /// The arguments of the declaration (`x-max-priority`, `x-queue-type`, …).
    pub arguments: Map,
    /// The name for routing to a broadcast queue, whose own name is random.
    pub(crate) alias: Option<String>,
}

impl Queue {
    /// A durable queue, bound to the direct exchange with its name, as Celery
    /// declares a queue of which only the name is set.
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

    /// A queue with one consumer, which receives a copy of every message sent to the
    /// fanout exchange `name`: Celery's `Broadcast`. The queue has a random name;
    /// tasks are routed to it by `name`. As one of the
    /// [`task_queues`](crate::Config::task_queues) it means one such queue in each
    /// worker.
    pub fn broadcast(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            auto_delete: true,
            alias: Some(name.clone()),
            ..Self::new(random_name()).bound_to(Exchange::fanout(name), "")
        }
    }

    /// Returns whether this is a [broadcast](Self::broadcast) queue. Only its
    /// consumer declares it.
    pub fn is_broadcast(&self) -> bool {
        self.alias.is_some()
    }

    /// Returns the queue for another consumer: a broadcast queue with a new random
    /// name, any other queue unchanged.
    pub(crate) fn for_consumer(&self) -> Self {
        let mut queue = self.clone();
        if queue.is_broadcast() {
            queue.name = random_name();
        }
        queue
    }

    /// Sets the exchange and the routing key of the first binding.
    #[must_use]
    pub fn bound_to(self, exchange: Exchange, routing_key: impl Into<String>) -> Self {
        Self {
            exchange,
            routing_key: routing_key.into(),
            ..self
        }
    }

    /// Adds a binding.
    #[must_use]
    pub fn also_bound_to(mut self, binding: Binding) -> Self {
        self.bindings.push(binding);
        self
    }

    /// Sets an argument of the declaration.
    #[must_use]
    pub fn argument(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.arguments.insert(name.into(), value);
        self
    }

    /// Sets the highest priority of messages (`x-max-priority`); the lowest is 0.
    #[must_use]
    pub fn max_priority(self, highest: u8) -> Self {
        self.argument("x-max-priority", i64::from(highest))
    }

    /// Makes it a quorum queue of RabbitMQ (`x-queue-type`).
    #[must_use]
    pub fn quorum(self) -> Self {
        self.argument("x-queue-type", "quorum")
    }

    /// Keeps what RabbitMQ would drop: messages that were rejected, have expired or have
    /// exceeded the delivery limit of a quorum queue (`x-delivery-limit`; 20 by default
    /// since RabbitMQ 4) move to the queue `<queue>.dead`, which is declared before this
    /// one. Sets `x-dead-letter-exchange` to the default exchange and
    /// `x-dead-letter-routing-key`. Off by default, and without an effect on other
    /// brokers.
    ///
    /// RabbitMQ refuses every declaration with other arguments (`PRECONDITION_FAILED`),
    /// so an existing queue has to be deleted first, and Python workers have to declare
    /// the same arguments. A policy has the same effect for all programs and leaves the
    /// arguments as they are; the queue `celery.dead` must exist:
    ///
    /// ```text
    /// rabbitmqctl set_policy celery-dead '^celery$' \
    ///   '{"dead-letter-exchange": "", "dead-letter-routing-key": "celery.dead"}' \
    ///   --apply-to queues
    /// ```
    ///
    /// ```
    /// use celery_runtime::Queue;
    ///
    /// let queue = Queue::new("celery").quorum().dead_letter();
    /// assert_eq!(queue.dead_letter_queue().as_deref(), Some("celery.dead"));
    /// ```
    #[must_use]
    pub fn dead_letter(self) -> Self {
        let target = self.dead_name();
        self.argument(DEAD_LETTER_EXCHANGE, "")
            .argument(DEAD_LETTER_ROUTING_KEY, target)
    }

    /// Returns the name of the queue `<queue>.dead` if the arguments of the declaration
    /// [route](Self::dead_letter) messages to it.
    pub fn dead_letter_queue(&self) -> Option<String> {
        let argument = |name| self.arguments.get(name).and_then(Value::as_str);
        let is_default = argument(DEAD_LETTER_EXCHANGE) == Some("");
        let target = argument(DEAD_LETTER_ROUTING_KEY)?;
        (is_default && target == self.dead_name()).then(|| target.to_owned())
    }

    fn dead_name(&self) -> String {
        format!("{}{DEAD_SUFFIX}", self.name)
    }

    /// Returns whether it is declared as a quorum queue.
    pub fn is_quorum(&self) -> bool {
        self.arguments.get("x-queue-type").and_then(Value::as_str) == Some("quorum")
    }
}

/// The suffix of the dead-letter queue of a queue.
///
/// The dead letter of a worker is the received message with the same body and five more
/// headers. Published again unchanged, it runs like the original message.
pub(crate) const DEAD_SUFFIX: &str = ".dead";

const DEAD_LETTER_EXCHANGE: &str = "x-dead-letter-exchange";

const DEAD_LETTER_ROUTING_KEY: &str = "x-dead-letter-routing-key";

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

/// Returns a random name in the form of kombu's broadcast queues.
fn random_name() -> String {
    format!("bcast.{}", env::uuid())
}

/// A binding of a queue or mailbox to an exchange.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Binding {
    /// The exchange.
    pub exchange: Exchange,
    /// The routing key; a pattern for topic exchanges.
    pub routing_key: String,
    /// The arguments, which exchanges of kind [`Headers`](ExchangeKind::Headers)
    /// compare; none by default.
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

/// An exchange, which routes messages to queues.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// The name; empty for the default exchange, to which every queue is bound with
    /// its name as routing key.
    pub name: String,
    /// The rule by which it chooses queues.
    pub kind: ExchangeKind,
    /// Whether it survives a restart of the broker; `true` by default.
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

    /// Makes the exchange transient: it does not survive a restart of the broker.
    #[must_use]
    pub fn transient(self) -> Self {
        Self {
            durable: false,
            ..self
        }
    }
}

/// The rule by which an exchange chooses queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExchangeKind {
    /// Queues whose binding has an equal routing key.
    Direct,
    /// Queues whose binding pattern matches the routing key; see
    /// [`topic_matches`](crate::topic_matches).
    Topic,
    /// Every bound queue.
    Fanout,
    /// Queues whose binding arguments match the message's headers.
    Headers,
}

impl ExchangeKind {
    /// Returns the kind with this name, as [`name`](Self::name) returns it.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Direct, Self::Topic, Self::Fanout, Self::Headers]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// Returns the name in AMQP and in settings, such as `topic`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
        }
    }
}

/// A private queue with one reader, for broadcasts, events and replies.
///
/// The properties are those of Celery's declarations; a broker ignores
/// properties that it does not support.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mailbox {
    /// The name.
    pub name: String,
    /// The binding to an exchange. Without one, messages are sent to the mailbox by
    /// its name through the default exchange.
    pub binding: Option<Binding>,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether only the declaring connection may read it.
    pub exclusive: bool,
    /// The time after which the broker deletes the mailbox without a reader.
    pub expires: Duration,
    /// The time after which the broker drops an unread message; the lifetime of the
    /// mailbox if `None`.
    pub message_ttl: Option<Duration>,
}

impl Mailbox {
    /// A mailbox for messages to `exchange` with routing keys that match `pattern`
    /// (see [`topic_matches`](crate::topic_matches)), as Celery's event receivers
    /// declare it: with a random name, transient and exclusive. It expires after
    /// 60 s without a reader, and an unread message after 5 s.
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

    /// A mailbox that is addressed by its name, as Celery declares the reply queue
    /// of `rpc://` results: durable, not exclusive, and deleted when `expires` has
    /// passed since its last use.
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

    /// A mailbox of remote control, for requests to a worker or replies to a client,
    /// bound to `exchange` with `routing_key`. It expires after 10 s without a
    /// reader, and an unread message after 300 s.
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
