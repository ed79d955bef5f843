//! Names of keys, channels and delivery tags.

use crate::config::{Layout, RedisOptions};

impl Layout {
    /// Returns a key with the global prefix.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Returns the hash of unacked deliveries.
    pub(crate) fn unacked(&self) -> String {
        self.key(&self.unacked)
    }

    /// Returns the sorted set of unacked deliveries by time of delivery.
    pub(crate) fn unacked_index(&self) -> String {
        self.key(&self.unacked_index)
    }

    /// Returns the sorted set of the owners of deliveries by their last renewal.
    pub(crate) fn owners(&self) -> String {
        format!("{}.owners", self.unacked())
    }

    /// Returns the lock of the restore.
    pub(crate) fn unacked_mutex(&self) -> String {
        self.key(&self.unacked_mutex)
    }

    /// Returns the list of one priority step of a queue.
    pub(crate) fn list(&self, queue: &str, step: u8) -> String {
        match step {
            0 => self.key(queue),
            step => format!("{}{queue}{}{step}", self.prefix, self.separator),
        }
    }

    /// Returns the list for messages of this priority.
    pub(crate) fn list_for(&self, queue: &str, priority: Option<u8>) -> String {
        self.list(queue, self.step(priority.unwrap_or_default()))
    }

    /// Returns all lists of a queue, in the order in which they are served.
    pub(crate) fn lists<'a>(&'a self, queue: &'a str) -> impl Iterator<Item = String> + 'a {
        self.steps.iter().map(move |step| self.list(queue, *step))
    }

    /// Returns the step of a priority: the largest step that is not above it.
    /// If there is none, kombu's arithmetic selects the last step. This must
    /// match, since both sides have to use the same list.
    fn step(&self, priority: u8) -> u8 {
        let priority = priority.min(9);
        let below = self.steps.iter().rev().find(|step| **step <= priority);
        below.or(self.steps.last()).copied().unwrap_or_default()
    }

    /// Returns the set of an exchange's bindings.
    pub(crate) fn bindings(&self, exchange: &str) -> String {
        self.key(&celery_protocol::kombu::binding_key(exchange))
    }

    /// Returns the set that keeps kombu from removing the bindings.
    pub(crate) fn permanent_bindings(&self, exchange: &str) -> String {
        self.key(&format!("_kombu.binding_permanent.{exchange}"))
    }

    /// Returns the sorted set of exchanges by the time at which kombu may
    /// remove their bindings.
    pub(crate) fn binding_deadlines(&self) -> String {
        self.key("_kombu.binding_deadlines")
    }

    /// Formats a member of a binding set.
    pub(crate) fn binding_member(&self, routing_key: &str, pattern: &str, queue: &str) -> String {
        [routing_key, pattern, queue].join(&self.separator)
    }

    /// Splits a member of a binding set into routing key, pattern and queue.
    pub(crate) fn split_binding<'a>(&self, member: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
        let mut parts = member.split(&self.separator);
        let found = (parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then_some(found)
    }

    /// Returns the quarantine hash of a queue: bytes that are not a message.
    pub(crate) fn quarantine(&self, queue: &str) -> String {
        format!("{}{queue}.dead.raw", self.prefix)
    }
}

impl RedisOptions {
    /// Returns the text before the exchange's name in a channel, global prefix
    /// included.
    pub(crate) fn channel_prefix(&self) -> String {
        let db = self.db().to_string();
        let before = self.layout.fanout_prefix.replace("{db}", &db);
        format!("{}{before}", self.layout.prefix)
    }
}

/// A delivery tag of this crate: `[raw:]<unique>-<number>:<queue>`. It contains
/// all that settling needs, so any consumer can settle the delivery of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ParsedTag<'a> {
    /// Where the delivery is stored.
    pub(crate) location: DeliveryLocation,
    /// The queue that the message came from.
    pub(crate) queue: &'a str,
}

/// The hash that stores an unsettled delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryLocation {
    /// `unacked`, as in kombu.
    Unacked,
    /// The queue's quarantine hash, because the bytes are not a message.
    Quarantine,
}

const QUARANTINE_PREFIX: &str = "raw:";

impl<'a> ParsedTag<'a> {
    /// Parses a tag. The queue is empty in tags of other clients.
    pub(crate) fn parse(tag: &'a str) -> Self {
        let (location, rest) = match tag.strip_prefix(QUARANTINE_PREFIX) {
            Some(rest) => (DeliveryLocation::Quarantine, rest),
            None => (DeliveryLocation::Unacked, tag),
        };
        let queue = rest.split_once(':').map_or("", |(_, queue)| queue);
        Self { location, queue }
    }
}

/// Formats a tag for bytes in the quarantine hash of `queue`.
pub(crate) fn quarantine_tag(unique: &str, queue: &str) -> String {
    format!("{QUARANTINE_PREFIX}{unique}:{queue}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_name_has_prefix_and_priority_step() {
        let layout = Layout {
            prefix: "shop:".into(),
            ..Layout::default()
        };
        assert_eq!(layout.list_for("celery", None), "shop:celery");
        assert_eq!(layout.list_for("celery", Some(5)), "shop:celery\x06\x163");
        assert_eq!(layout.list_for("celery", Some(255)), "shop:celery\x06\x169");
        assert_eq!(layout.lists("q").count(), 4);
        assert_eq!(layout.bindings("q"), "shop:_kombu.binding.q");
    }

    #[test]
    fn priority_below_the_first_step_selects_the_last_step() {
        let layout = Layout {
            steps: vec![3, 6],
            ..Layout::default()
        };
        assert_eq!(layout.list_for("q", Some(0)), "q\x06\x166");
    }

    #[test]
    fn tag_contains_location_and_queue() {
        let tag = ParsedTag::parse("0f-12:a:b");
        assert_eq!(
            (tag.location, tag.queue),
            (DeliveryLocation::Unacked, "a:b")
        );
        let text = quarantine_tag("0f-13", "a:b");
        let tag = ParsedTag::parse(&text);
        assert_eq!(
            (tag.location, tag.queue),
            (DeliveryLocation::Quarantine, "a:b")
        );
        assert_eq!(ParsedTag::parse("of-another-client").queue, "");
    }
}
