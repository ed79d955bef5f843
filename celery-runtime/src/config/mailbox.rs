//! The settings of the mailboxes of remote control and events.

use std::time::Duration;

use crate::boundary::{Exchange, Mailbox};
use crate::env;

/// Celery's settings `control_*`.
#[derive(Clone, Debug)]
pub(crate) struct ControlSettings {
    /// `control_exchange`, the prefix of the names of both exchanges.
    pub(crate) exchange: String,
    /// `control_queue_ttl`.
    pub(crate) ttl: Option<Duration>,
    /// `control_queue_expires`.
    pub(crate) expires: Duration,
}

/// Celery's settings `event_*`.
#[derive(Clone, Debug)]
pub(crate) struct EventSettings {
    /// `event_exchange`.
    pub(crate) exchange: String,
    /// `event_queue_prefix`.
    pub(crate) prefix: String,
    /// `event_queue_ttl`.
    pub(crate) ttl: Option<Duration>,
    /// `event_queue_expires`.
    pub(crate) expires: Duration,
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self {
            exchange: "celery".to_owned(),
            ttl: Some(Duration::from_secs(300)),
            expires: Duration::from_secs(10),
        }
    }
}

impl Default for EventSettings {
    fn default() -> Self {
        Self {
            exchange: "celeryev".to_owned(),
            prefix: "celeryev".to_owned(),
            ttl: Some(Duration::from_secs(5)),
            expires: Duration::from_secs(60),
        }
    }
}

impl ControlSettings {
    /// Returns the exchange of requests.
    pub(crate) fn requests(&self) -> Exchange {
        Exchange::fanout(format!("{}.pidbox", self.exchange)).transient()
    }

    /// Returns the exchange of replies.
    pub(crate) fn replies(&self) -> Exchange {
        Exchange::direct(format!("reply.{}.pidbox", self.exchange)).transient()
    }

    /// Returns the mailbox of the worker with this node name.
    pub(crate) fn node_mailbox(&self, node: &str) -> Mailbox {
        let exchange = self.requests();
        let name = format!("{node}.{}", exchange.name);
        self.mailbox(name, exchange, "")
    }

    /// Returns the reply mailbox of the client with this id.
    pub(crate) fn reply_mailbox(&self, id: &str) -> Mailbox {
        let exchange = self.replies();
        let name = format!("{id}.{}", exchange.name);
        self.mailbox(name, exchange, id)
    }

    fn mailbox(&self, name: String, exchange: Exchange, key: &str) -> Mailbox {
        let mut mailbox = Mailbox::control(name, exchange, key);
        mailbox.expires = self.expires;
        mailbox.message_ttl = self.ttl;
        mailbox
    }
}

impl EventSettings {
    /// Returns the exchange of events. On Redis, topic and fanout exchanges are both
    /// channels.
    pub(crate) fn exchange(&self) -> Exchange {
        Exchange::topic(self.exchange.as_str())
    }

    /// Returns a mailbox for the events whose routing key matches this pattern.
    pub(crate) fn mailbox(&self, pattern: &str) -> Mailbox {
        let mut mailbox = Mailbox::of(self.exchange(), pattern);
        mailbox.name = format!("{}.{}", self.prefix, env::uuid());
        mailbox.expires = self.expires;
        mailbox.message_ttl = self.ttl;
        mailbox
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mailbox_names_are_celerys() {
        let control = ControlSettings::default();
        let mailbox = control.reply_mailbox("oid");
        assert_eq!(mailbox.name, "oid.reply.celery.pidbox");
        let binding = mailbox.binding.expect("a binding");
        assert_eq!(binding.exchange.name, "reply.celery.pidbox");
        assert_eq!(binding.routing_key, "oid");
        assert_eq!(control.requests().name, "celery.pidbox");
        let events = EventSettings::default().mailbox("#");
        assert!(events.name.starts_with("celeryev."));
    }
}
