//! Names of keys, channels and delivery tags.

use crate::config::{Layout, RedisOptions};

impl Layout {
    /// A key as the server knows it.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn unacked(&self) -> String {
        self.key(&self.unacked)
    }

    pub(crate) fn unacked_index(&self) -> String {
        self.key(&self.unacked_index)
    }

    pub(crate) fn unacked_mutex(&self) -> String {
        self.key(&self.unacked_mutex)
    }

    /// The list of one priority step of a queue.
    pub(crate) fn list(&self, queue: &str, step: u8) -> String {
        match step {
            0 => self.key(queue),
            step => format!("{}{queue}{}{step}", self.prefix, self.separator),
        }
    }

    /// The list for messages of this priority.
    pub(crate) fn list_for(&self, queue: &str, priority: Option<u8>) -> String {
        self.list(queue, self.step(priority.unwrap_or_default()))
    }

    /// All lists of a queue, in the order in which they are served.
    pub(crate) fn lists<'a>(&'a self, queue: &'a str) -> impl Iterator<Item = String> + 'a {
        self.steps.iter().map(move |step| self.list(queue, *step))
    }

    /// The step of a priority: the largest that is not above it. Where there is
    /// none, kombu's arithmetic ends at the last step, and so do we: both must
    /// look at the same list.
    fn step(&self, priority: u8) -> u8 {
        let priority = priority.min(9);
        let below = self.steps.iter().rev().find(|step| **step <= priority);
        below.or(self.steps.last()).copied().unwrap_or_default()
    }

    /// The set with the bindings of an exchange.
    pub(crate) fn bindings(&self, exchange: &str) -> String {
        self.key(&celery_protocol::kombu::binding_key(exchange))
    }

    /// The set that keeps kombu from sweeping the bindings away.
    pub(crate) fn permanent_bindings(&self, exchange: &str) -> String {
        self.key(&format!("_kombu.binding_permanent.{exchange}"))
    }

    /// When kombu restore_schedule the bindings of which exchange away.
    pub(crate) fn binding_deadlines(&self) -> String {
        self.key("_kombu.binding_deadlines")
    }

    pub(crate) fn binding_member(&self, routing_key: &str, pattern: &str, queue: &str) -> String {
        [routing_key, pattern, queue].join(&self.separator)
    }

    /// Takes a member apart: routing key, pattern, queue.
    pub(crate) fn split_binding<'a>(&self, member: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
        let mut parts = member.split(&self.separator);
        let found = (parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then_some(found)
    }

    /// The hash in which bytes wait that are no message.
    pub(crate) fn quarantine(&self, queue: &str) -> String {
        format!("{}{queue}.dead.raw", self.prefix)
    }
}

impl RedisOptions {
    /// What stands before the exchange's name in a channel, prefix included.
    pub(crate) fn channel_prefix(&self) -> String {
        let db = self.db().to_string();
        let before = self.layout.fanout_prefix.replace("{db}", &db);
        format!("{}{before}", self.layout.prefix)
    }
}

/// A delivery tag of ours: `[raw:]<unique>-<number>:<queue>`. It says all that
/// settling needs, so that any consumer can settle what another one took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ParsedTag<'a> {
    /// Where the delivery is noted.
    pub(crate) location: DeliveryLocation,
    /// The queue that it was taken from.
    pub(crate) queue: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryLocation {
    /// In `unacked`, as kombu does it.
    Unacked,
    /// In the queue's quarantine hash, because it is no message.
    Quarantine,
}

const QUARANTINE_PREFIX: &str = "raw:";

impl<'a> ParsedTag<'a> {
    pub(crate) fn parse(tag: &'a str) -> Self {
        let (location, rest) = match tag.strip_prefix(QUARANTINE_PREFIX) {
            Some(rest) => (DeliveryLocation::Quarantine, rest),
            None => (DeliveryLocation::Unacked, tag),
        };
        let queue = rest.split_once(':').map_or("", |(_, queue)| queue);
        Self { location, queue }
    }
}

/// A tag for bytes in the quarantine hash of `queue`.
pub(crate) fn quarantine_tag(unique: &str, queue: &str) -> String {
    format!("{QUARANTINE_PREFIX}{unique}:{queue}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_follow_prefix_and_priority() {
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
    fn below_the_first_step_is_the_last_one_as_in_kombu() {
        let layout = Layout {
            steps: vec![3, 6],
            ..Layout::default()
        };
        assert_eq!(layout.list_for("q", Some(0)), "q\x06\x166");
    }

    #[test]
    fn tags_say_where_a_delivery_is() {
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
        assert_eq!(ParsedTag::parse("of-somebody-else").queue, "");
    }
}
