//! Bindings of queues to exchanges, as kombu stores them.

use celery_protocol::kombu;
use celery_runtime::{Exchange, ExchangeKind, Queue};

use crate::topic::matches_stored_pattern;

/// A member of an exchange's binding set.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredBinding {
    pub(crate) routing_key: String,
    pub(crate) pattern: String,
    pub(crate) queue: String,
}

impl StoredBinding {
    /// Returns whether a message with this routing key goes to the queue. Only
    /// bindings of topic exchanges have a pattern.
    pub(crate) fn matches(&self, routing_key: &str) -> bool {
        match self.pattern.as_str() {
            "" => self.routing_key == routing_key,
            pattern => matches_stored_pattern(pattern, routing_key),
        }
    }
}

/// Returns the exchange and routing key of every binding of a queue.
pub(crate) fn routes(queue: &Queue) -> impl Iterator<Item = (&Exchange, &str)> {
    let first = (&queue.exchange, queue.routing_key.as_str());
    let more = queue.bindings.iter();
    let more = more.map(|binding| (&binding.exchange, binding.routing_key.as_str()));
    std::iter::once(first).chain(more)
}

/// Returns the pattern that kombu stores beside a routing key, or `None` for
/// exchange types that Redis does not support.
pub(crate) fn stored_pattern(kind: ExchangeKind, routing_key: &str) -> Option<String> {
    match kind {
        ExchangeKind::Direct | ExchangeKind::Fanout => Some(String::new()),
        ExchangeKind::Topic => Some(kombu::topic_pattern(routing_key)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_matches_by_key_or_by_pattern() {
        let binding = |key: &str, pattern: String| StoredBinding {
            routing_key: key.into(),
            pattern,
            queue: "q".into(),
        };
        let direct = binding("a", String::new());
        assert!(direct.matches("a") && !direct.matches("b"));
        let topic = binding("a.*", kombu::topic_pattern("a.*"));
        assert!(topic.matches("a.b") && !topic.matches("a.*.c"));
    }
}
