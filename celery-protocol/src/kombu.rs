//! The envelope and the Redis keys of kombu's virtual transports.
//!
//! A virtual transport, such as Redis, has no separate headers and properties.
//! kombu encodes the whole message as one JSON document:
//!
//! ```json
//! {"body": "<base64>", "content-encoding": "utf-8", "content-type": "application/json",
//!  "headers": {}, "properties": {"delivery_info": {"exchange": "", "routing_key": "celery"},
//!  "priority": 0, "body_encoding": "base64", "delivery_tag": "<unique>"}}
//! ```

mod base64;
mod envelope;
mod keys;
mod properties;

pub use envelope::{EnvelopeRoute, decode, encode};
pub use keys::{
    PRIORITY_STEPS, SEPARATOR, binding_key, binding_member, fanout_topic, priority_key,
    priority_step, split_binding_member, topic_pattern,
};
