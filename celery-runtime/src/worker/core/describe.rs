//! A task as `inspect` shows it.

use std::time::SystemTime;

use celery_protocol::{Map, Raw, Value, repr};

use crate::env;
use crate::execution::Job;

/// Arguments of larger messages are shown as text, shortened.
const LARGE: usize = 16 << 10;

/// The task as `inspect active` and its likes show it. `started` is set while it
/// runs.
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
    let came_by = &properties.delivery_info;
    let mut info = Map::new();
    info.insert("exchange", came_by.exchange.as_str());
    info.insert("routing_key", came_by.routing_key.as_str());
    info.insert(
        "priority",
        properties
            .priority
            .map_or(Value::Null, |priority| i64::from(priority).into()),
    );
    info.insert("redelivered", job.redelivered);
    info
}

/// The arguments as values, or as text where they are large or unreadable.
fn arguments(job: &Job) -> (Value, Value) {
    if job.message.body.len() <= LARGE
        && let Ok(payload) = job.payload()
        && let Ok(body) = payload.body()
        && let (Ok(args), Ok(kwargs)) = (body.args.to_value(), body.kwargs.to_value())
    {
        return (args, kwargs);
    }
    let (args, kwargs) = shown_arguments(job);
    (args.into(), kwargs.into())
}

/// The arguments as Python prints them: as the sender did, where it did.
pub(crate) fn shown_arguments(job: &Job) -> (String, String) {
    let headers = job.headers().ok();
    let said = headers.as_ref().and_then(|headers| {
        let args = headers.argsrepr.as_deref()?.to_owned();
        Some((args, headers.kwargsrepr.as_deref()?.to_owned()))
    });
    said.unwrap_or_else(|| {
        let shown = || -> Option<(String, String)> {
            let payload = job.payload().ok()?;
            let body = payload.body().ok()?;
            Some((repr::args(&body.args), repr::kwargs(&body.kwargs)))
        };
        shown().unwrap_or_else(|| ("(...)".to_owned(), "{...}".to_owned()))
    })
}

/// A value as Python prints it.
pub(crate) fn shown(value: &Raw<'_>) -> String {
    if value.is_null() {
        return "None".to_owned();
    }
    repr::args(value)
}
