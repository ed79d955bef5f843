//! The envelope of kombu's virtual transports, and the names of their keys.
//!
//! A virtual transport, such as Redis, has no place for headers and properties
//! of its own. kombu wraps the whole message into one JSON document:
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

pub use envelope::{Route, decode, encode};
pub use keys::{
    PRIORITY_STEPS, SEPARATOR, binding_key, binding_member, fanout_topic, priority_key,
    priority_step, split_binding_member, topic_pattern,
};
