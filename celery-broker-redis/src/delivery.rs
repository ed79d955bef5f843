//! From bytes on the server to deliveries.

use std::sync::Arc;

use bytes::Bytes;
use celery_protocol::kombu;
use celery_runtime::{Delivery, DeliveryTag};

use crate::entry::Entry;
use crate::keys::{Held, Tag};

/// A delivery of bytes, whether they are a message or not.
pub(crate) fn delivery(tag: String, raw: Bytes) -> Delivery {
    let queue: Arc<str> = Tag::parse(&tag).queue.into();
    let tag = DeliveryTag::new(tag);
    match kombu::decode(&raw) {
        Ok(message) => Delivery::new(tag, queue, message),
        Err(error) => Delivery::malformed(tag, queue, raw, error),
    }
}

/// A delivery of what a tag stands for on the server.
pub(crate) fn redelivery(tag: String, held: Bytes) -> Option<Delivery> {
    let raw = match Tag::parse(&tag).place {
        Held::Raw => held,
        Held::Unacked => Entry::parse(&held)?.envelope,
    };
    Some(delivery(tag, raw))
}
