//! The event `task-sent`, which a client emits for each task. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use celery_protocol::{Event, Map, Message, Value};

use crate::boundary::Publication;
use crate::logical_clock::LogicalClock;

/// Creates the event for a message of protocol 2; `None` for one of protocol 1, which has no
/// headers.
pub(crate) fn event(
    sent: &Publication,
    origin: &str,
    clock: &LogicalClock,
    now: SystemTime,
) -> Option<Message> {
    let headers = sent.message.headers.task().ok()??;
    let text = |text: Option<&str>| text.map_or(Value::Null, Value::from);
    let queue = sent.queue.as_deref().map(|queue| queue.name.as_str());
    let mut fields = Map::new();
    fields.insert("uuid", &*headers.id);
    fields.insert("root_id", text(headers.root_id.as_deref()));
    fields.insert("parent_id", text(headers.parent_id.as_deref()));
    fields.insert("name", &*headers.task);
    fields.insert("args", text(headers.argsrepr.as_deref()));
    fields.insert("kwargs", text(headers.kwargsrepr.as_deref()));
    fields.insert("retries", i64::from(headers.retries));
    fields.insert("eta", text(headers.eta.as_deref()));
    fields.insert("expires", text(headers.expires.as_deref()));
    fields.insert("queue", queue.unwrap_or(&sent.routing_key));
    fields.insert("exchange", sent.exchange.as_str());
    fields.insert("routing_key", sent.routing_key.as_str());
    let mut event = Event::new("task-sent", origin);
    event.pid = std::process::id();
    event.clock = clock.forward();
    event.timestamp = now
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    event.fields = fields;
    Event::write_all(&[event]).ok()
}
