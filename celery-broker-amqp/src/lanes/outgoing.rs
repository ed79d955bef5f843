//! Messages that are encoded for `basic.publish`.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::BasicReturnMessage;
use lapin::types::ShortString;

use super::returns::Returned;

/// A message, encoded for `basic.publish`.
pub(crate) struct OutgoingMessage {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    /// Whether the server returns the message if no queue receives it.
    pub(crate) mandatory: bool,
}

/// The parts of a sent message that identify it when the server returns it.
#[derive(Debug)]
pub(super) struct MessageIdentity {
    exchange: ShortString,
    routing_key: ShortString,
    correlation_id: Option<ShortString>,
    body: Bytes,
}

impl OutgoingMessage {
    pub(super) fn identity(&self) -> MessageIdentity {
        MessageIdentity {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            correlation_id: self.properties.correlation_id().clone(),
            body: self.body.clone(),
        }
    }
}

impl MessageIdentity {
    pub(super) fn is_for(&self, exchange: &str) -> bool {
        self.exchange.as_str() == exchange
    }
}

impl Returned<MessageIdentity> for BasicReturnMessage {
    fn is_same(&self, sent: &MessageIdentity) -> bool {
        self.exchange == sent.exchange
            && self.routing_key == sent.routing_key
            && *self.properties.correlation_id() == sent.correlation_id
            && self.data == sent.body
    }

    fn reason(&self) -> &str {
        self.reply_text.as_str()
    }
}
