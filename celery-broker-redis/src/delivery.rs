//! Decoding bytes from the server into deliveries.

use std::sync::Arc;

use bytes::Bytes;
use celery_protocol::kombu;
use celery_runtime::{Delivery, DeliveryTag};

use crate::entry::UnackedEntry;
use crate::keys::{DeliveryLocation, ParsedTag};

/// Returns a delivery of raw bytes. Bytes that are not a message become a
/// malformed delivery.
pub(crate) fn delivery(tag: String, raw: Bytes) -> Delivery {
    let queue: Arc<str> = ParsedTag::parse(&tag).queue.into();
    let tag = DeliveryTag::new(tag);
    match kombu::decode(&raw) {
        Ok(message) => Delivery::new(tag, queue, message),
        Err(error) => Delivery::malformed(tag, queue, raw, error),
    }
}

/// Returns a delivery of the hash value that a tag refers to, or `None` if an
/// entry of `unacked` cannot be parsed.
pub(crate) fn redelivery(tag: String, value: Bytes) -> Option<Delivery> {
    let raw = match ParsedTag::parse(&tag).location {
        DeliveryLocation::Quarantine => value,
        DeliveryLocation::Unacked => UnackedEntry::parse(&value)?.envelope,
    };
    Some(delivery(tag, raw))
}
