//! The settings of queues, from which [`Queues`](crate::queues::Queues) makes them.

use celery_protocol::{Map, Value};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::boundary::{Binding, Exchange, ExchangeKind, Queue};

/// The settings of queues, with Celery's defaults.
#[derive(Clone, Debug)]
pub(crate) struct QueueSettings {
    /// `task_queues`.
    pub(crate) listed: Vec<ListedQueue>,
    /// `task_default_queue`.
    pub(crate) default_queue: String,
    /// `task_default_exchange`; the name of the default queue if `None`.
    pub(crate) default_exchange: Option<String>,
    /// `task_default_exchange_type`.
    pub(crate) default_exchange_kind: ExchangeKind,
    /// `task_default_routing_key`; the name of the default queue if `None`.
    pub(crate) default_routing_key: Option<String>,
    /// `task_default_queue_type`.
    pub(crate) default_type: QueueType,
    /// `task_create_missing_queues`.
    pub(crate) create_missing: bool,
    /// `task_create_missing_queue_type`.
    pub(crate) missing_type: QueueType,
    /// `task_create_missing_queue_exchange_type`; direct if `None`.
    pub(crate) missing_exchange_kind: Option<ExchangeKind>,
    /// `task_queue_max_priority`.
    pub(crate) max_priority: Option<u8>,
}

/// The type of a queue on RabbitMQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "Celery has two")]
pub enum QueueType {
    /// A queue on one node, with priorities.
    Classic,
    /// A queue that is replicated on several nodes.
    Quorum,
}

/// An entry of `task_queues`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListedQueue {
    pub(crate) queue: Queue,
    /// Whether the entry names no exchange, so that its queue is bound to
    /// `task_default_exchange`.
    pub(crate) on_default_exchange: bool,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            listed: Vec::new(),
            default_queue: "celery".to_owned(),
            default_exchange: None,
            default_exchange_kind: ExchangeKind::Direct,
            default_routing_key: None,
            default_type: QueueType::Classic,
            create_missing: true,
            missing_type: QueueType::Classic,
            missing_exchange_kind: None,
            max_priority: None,
        }
    }
}

impl ListedQueue {
    /// An entry with a complete queue.
    pub(crate) fn new(queue: impl Into<Queue>) -> Self {
        Self {
            queue: queue.into(),
            on_default_exchange: false,
        }
    }
}

/// Reads `task_queues` in the forms that
/// [`Config::task_queues`](crate::Config::task_queues) describes.
pub(super) fn read_queues(value: &Json) -> Result<Vec<ListedQueue>, String> {
    match value {
        Json::Array(items) => items.iter().map(|item| read_queue(None, item)).collect(),
        Json::Object(map) => map
            .iter()
            .map(|(name, item)| read_queue(Some(name), item))
            .collect(),
        other => Err(format!("expected a list or a map of queues, found {other}")),
    }
}

/// Returns the exchange kind with this name.
pub(super) fn exchange_kind(name: &str) -> Result<ExchangeKind, String> {
    ExchangeKind::named(name).ok_or_else(|| {
        format!("there is no exchange type {name:?}, only direct, topic, fanout and headers")
    })
}

fn read_queue(name: Option<&str>, value: &Json) -> Result<ListedQueue, String> {
    let entry = match value {
        Json::String(_) | Json::Null => QueueEntry::default(),
        entry => QueueEntry::deserialize(entry).map_err(|error| in_queue(name, value, &error))?,
    };
    let name = name
        .or(value.as_str())
        .or(entry.name.as_deref())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| format!("queue {value} has no name"))?
        .to_owned();
    entry
        .into_listed(&name)
        .map_err(|cause| format!("queue {name:?}: {cause}"))
}

/// Returns an error text that names the queue, or shows the entry without a name.
fn in_queue(name: Option<&str>, value: &Json, cause: &serde_json::Error) -> String {
    let name = name.or_else(|| value.get("name").and_then(Json::as_str));
    match name {
        Some(name) => format!("queue {name:?}: {cause}"),
        None => format!("queue {value}: {cause}"),
    }
}

/// The keys of an entry of `task_queues`, named as in Celery and kombu.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QueueEntry {
    name: Option<String>,
    exchange: Option<String>,
    exchange_type: Option<String>,
    #[serde(alias = "binding_key")]
    routing_key: Option<String>,
    bindings: Vec<BindingEntry>,
    binding_arguments: Option<Map>,
    queue_arguments: Option<Map>,
    durable: Option<bool>,
    auto_delete: Option<bool>,
    expires: Option<f64>,
    message_ttl: Option<f64>,
    max_length: Option<u32>,
    max_length_bytes: Option<u64>,
    max_priority: Option<u8>,
    broadcast: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BindingEntry {
    exchange: String,
    exchange_type: Option<String>,
    routing_key: String,
    arguments: Option<Map>,
}

impl QueueEntry {
    fn into_listed(self, name: &str) -> Result<ListedQueue, String> {
        let exchange = self.exchange()?;
        let on_default_exchange = exchange.is_none() && !self.broadcast;
        let mut queue = if self.broadcast {
            Queue::broadcast(name)
        } else {
            Queue::new(name)
        };
        // As in kombu, the exchange of an entry is as durable as its queue.
        let durable = self.durable.unwrap_or(true);
        queue.exchange = exchange.unwrap_or(queue.exchange);
        queue.exchange.durable = durable;
        queue.durable = durable;
        queue.auto_delete = self.auto_delete.unwrap_or(queue.auto_delete);
        queue.routing_key = self.routing_key.clone().unwrap_or(queue.routing_key);
        queue.arguments = self.arguments()?;
        queue.binding_arguments = self.binding_arguments.unwrap_or_default();
        queue.bindings = self
            .bindings
            .into_iter()
            .map(BindingEntry::into_binding)
            .collect::<Result<_, _>>()?;
        Ok(ListedQueue {
            queue,
            on_default_exchange,
        })
    }

    /// Returns the exchange that the entry names; an empty name is none, as in Celery.
    fn exchange(&self) -> Result<Option<Exchange>, String> {
        let kind = self.exchange_type.as_deref().map(exchange_kind);
        let kind = kind.transpose()?;
        match self.exchange.as_deref().filter(|name| !name.is_empty()) {
            Some(name) if self.broadcast => Ok(Some(Exchange::fanout(name))),
            Some(name) => Ok(Some(Exchange::new(
                name,
                kind.unwrap_or(ExchangeKind::Direct),
            ))),
            None if kind.is_some() => {
                Err("exchange_type is set without exchange; set exchange, too".to_owned())
            }
            None => Ok(None),
        }
    }

    /// Returns the arguments of the declaration. The named keys of kombu take precedence
    /// over `queue_arguments`.
    fn arguments(&self) -> Result<Map, String> {
        let named = [
            ("x-expires", milliseconds("expires", self.expires)?),
            (
                "x-message-ttl",
                milliseconds("message_ttl", self.message_ttl)?,
            ),
            ("x-max-length", self.max_length.map(Value::from)),
            ("x-max-length-bytes", self.max_length_bytes.map(Value::from)),
            ("x-max-priority", self.max_priority.map(Value::from)),
        ];
        let mut arguments = self.queue_arguments.clone().unwrap_or_default();
        for (name, value) in named {
            if let Some(value) = value {
                arguments.insert(name, value);
            }
        }
        Ok(arguments)
    }
}

impl BindingEntry {
    fn into_binding(self) -> Result<Binding, String> {
        let kind = self.exchange_type.as_deref().map(exchange_kind);
        let kind = kind.transpose()?.unwrap_or(ExchangeKind::Direct);
        if self.exchange.is_empty() {
            return Err("one of its bindings has no exchange".to_owned());
        }
        Ok(Binding {
            arguments: self.arguments.unwrap_or_default(),
            ..Binding::new(Exchange::new(self.exchange, kind), self.routing_key)
        })
    }
}

fn milliseconds(name: &str, seconds: Option<f64>) -> Result<Option<Value>, String> {
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    if !(0.0..1e12).contains(&seconds) {
        return Err(format!("{name} is not a number of seconds: {seconds}"));
    }
    Ok(Some(Value::Int((seconds * 1000.0) as i64)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Json) -> Vec<ListedQueue> {
        read_queues(value).unwrap()
    }

    #[test]
    fn queue_list_is_read_from_names_maps_and_lists() {
        let plain = ListedQueue {
            queue: Queue::new("a"),
            on_default_exchange: true,
        };
        for value in [
            json!(["a"]),
            json!([{"name": "a"}]),
            json!({"a": {}}),
            json!({"a": null}),
            json!([{"name": "a", "exchange": "", "durable": true}]),
        ] {
            assert_eq!(read(&value), std::slice::from_ref(&plain), "{value}");
        }
    }

    #[test]
    fn queue_entry_sets_all_properties() {
        let listed = read(&json!([{
            "name": "q", "exchange": "e", "exchange_type": "topic", "routing_key": "a.#",
            "durable": false, "auto_delete": true,
            "queue_arguments": {"x-queue-mode": "lazy", "x-max-priority": 1},
            "binding_arguments": {"x-match": "all"},
            "bindings": [{"exchange": "more", "exchange_type": "headers", "routing_key": "k",
                          "arguments": {"n": 1}}],
            "expires": 1.5, "message_ttl": 60, "max_length": 10, "max_length_bytes": 1000,
            "max_priority": 9,
        }]))
        .remove(0);
        assert!(!listed.on_default_exchange);
        let queue = listed.queue;
        assert_eq!(queue.exchange, Exchange::topic("e").transient());
        assert_eq!(queue.routing_key, "a.#");
        assert!(!queue.durable && queue.auto_delete);
        let expected = Map::from([
            ("x-max-priority", Value::from(9)),
            ("x-queue-mode", "lazy".into()),
            ("x-expires", 1500.into()),
            ("x-message-ttl", 60_000.into()),
            ("x-max-length", 10.into()),
            ("x-max-length-bytes", 1000.into()),
        ]);
        assert_eq!(queue.arguments, expected);
        assert_eq!(queue.binding_arguments, Map::from([("x-match", "all")]));
        let more = Exchange::new("more", ExchangeKind::Headers);
        assert_eq!(queue.bindings[0].exchange, more);
        assert_eq!(queue.bindings[0].arguments, Map::from([("n", 1)]));
    }

    #[test]
    fn broadcast_entry_is_random_queue_on_fanout_exchange() {
        let listed = read(&json!({"news": {"broadcast": true}})).remove(0);
        assert!(listed.queue.is_broadcast() && listed.queue.auto_delete);
        assert!(listed.queue.name.starts_with("bcast."));
        assert_eq!(listed.queue.exchange, Exchange::fanout("news"));
        assert!(!listed.on_default_exchange);
    }

    #[test]
    fn wrong_queue_entry_names_queue_and_key() {
        for (value, expected) in [
            (json!([{"name": "q", "max_prio": 9}]), ["\"q\"", "max_prio"]),
            (json!({"q": {"durable": 5}}), ["\"q\"", "boolean"]),
            (
                json!({"q": {"exchange_type": "topic"}}),
                ["\"q\"", "exchange"],
            ),
            (
                json!({"q": {"exchange": "e", "exchange_type": "x"}}),
                ["\"q\"", "\"x\""],
            ),
            (json!({"q": {"expires": -1}}), ["\"q\"", "expires"]),
            (
                json!({"q": {"bindings": [{"routing_key": "k"}]}}),
                ["\"q\"", "bindings"],
            ),
            (
                json!({"q": {"bindings": [{"exchange": "e", "key": "k"}]}}),
                ["\"q\"", "key"],
            ),
            (json!([{}]), ["queue", "no name"]),
            (json!(5), ["list", "map"]),
        ] {
            let error = read_queues(&value).unwrap_err();
            assert!(
                expected.iter().all(|word| error.contains(word)),
                "{value}: {error}"
            );
        }
    }
}
