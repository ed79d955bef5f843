//! From bytes on the server to deliveries.

use std::sync::Arc;

use bytes::Bytes;
use celery_protocol::kombu;
use celery_runtime::{Delivery, DeliveryTag};

use crate::entry::UnackedEntry;
use crate::keys::{DeliveryLocation, ParsedTag};

/// A delivery of bytes, whether they are a message or not.
pub(crate) fn delivery(tag: String, raw: Bytes) -> Delivery {
    let queue: Arc<str> = ParsedTag::parse(&tag).queue.into();
    let tag = DeliveryTag::new(tag);
    match kombu::decode(&raw) {
        Ok(message) => Delivery::new(tag, queue, message),
        Err(error) => Delivery::malformed(tag, queue, raw, error),
    }
}

/// A delivery of what a tag stands for on the server.
pub(crate) fn redelivery(tag: String, held: Bytes) -> Option<Delivery> {
    let raw = match ParsedTag::parse(&tag).location {
        DeliveryLocation::Quarantine => held,
        DeliveryLocation::Unacked => UnackedEntry::parse(&held)?.envelope,
    };
    Some(delivery(tag, raw))
}
