//! Descriptions of tasks for `inspect` and monitoring events.

use std::time::SystemTime;

use celery_protocol::{Map, Raw, Value, repr};

use crate::env;
use crate::execution::Job;

/// The maximum body size of a message whose arguments are shown as values. Those of
/// larger messages are shown as shortened text.
const MAX_INLINE_BODY: usize = 16 << 10;

/// Returns a task in the form of `inspect active`. `started` is set while it runs.
pub(crate) fn describe(
    job: &Job,
    hostname: &str,
    started: Option<SystemTime>,
    acknowledged: bool,
) -> Value {
    let headers = job.headers().ok();
    let name = headers
        .as_ref()
        .and_then(|headers| headers.shadow.as_deref());
    let (args, kwargs) = arguments(job);
    let pid = started.map(|_| i64::from(job.control.pid()));
    let mut info = Map::new();
    info.insert("id", job.id.as_str());
    info.insert("name", name.unwrap_or(&job.task));
    info.insert("args", args);
    info.insert("kwargs", kwargs);
    info.insert("type", &*job.task);
    info.insert("hostname", hostname);
    info.insert(
        "time_start",
        started.map_or(Value::Null, |time| env::unix_seconds(time).into()),
    );
    info.insert("acknowledged", acknowledged);
    info.insert("delivery_info", Value::Map(delivery_info(job)));
    info.insert("worker_pid", pid.map_or(Value::Null, Value::Int));
    Value::Map(info)
}

fn delivery_info(job: &Job) -> Map {
    let properties = &job.message.properties;
    let delivery_info = &properties.delivery_info;
    let mut info = Map::new();
    info.insert("exchange", delivery_info.exchange.as_str());
    info.insert("routing_key", delivery_info.routing_key.as_str());
    info.insert(
        "priority",
        properties
            .priority
            .map_or(Value::Null, |priority| i64::from(priority).into()),
    );
    info.insert("redelivered", job.redelivered);
    info
}

/// Returns the arguments as values, or as text if they are large or cannot be decoded.
fn arguments(job: &Job) -> (Value, Value) {
    if job.message.body.len() <= MAX_INLINE_BODY
        && let Ok(payload) = job.payload_for_monitoring()
        && let Ok(body) = payload.body()
        && let (Ok(args), Ok(kwargs)) = (body.args.to_value(), body.kwargs.to_value())
    {
        return (args, kwargs);
    }
    let (args, kwargs) = shown_arguments(job);
    (args.into(), kwargs.into())
}

/// Returns the arguments as Python prints them: `argsrepr` and `kwargsrepr` of the
/// message if it has them.
pub(crate) fn shown_arguments(job: &Job) -> (String, String) {
    let headers = job.headers().ok();
    let sent = headers.as_ref().and_then(|headers| {
        let args = headers.argsrepr.as_deref()?.to_owned();
        Some((args, headers.kwargsrepr.as_deref()?.to_owned()))
    });
    sent.unwrap_or_else(|| {
        let shown = || -> Option<(String, String)> {
            let payload = job.payload_for_monitoring().ok()?;
            let body = payload.body().ok()?;
            Some((repr::args(&body.args), repr::kwargs(&body.kwargs)))
        };
        shown().unwrap_or_else(|| ("(...)".to_owned(), "{...}".to_owned()))
    })
}

/// Returns a value as Python prints it.
pub(crate) fn shown(value: &Raw<'_>) -> String {
    if value.is_null() {
        return "None".to_owned();
    }
    repr::args(value)
}
