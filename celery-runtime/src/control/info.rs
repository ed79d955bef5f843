//! The replies of workers to `inspect` commands. A part that is missing or has an
//! unexpected type is left empty, so that the rest can be used; parts without a
//! field of their own are kept in `fields`.

use std::collections::BTreeMap;

use celery_protocol::{Map, Value};

use crate::control::replies::ok;

/// A task that a worker has received.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RequestInfo {
    /// The task's id.
    pub id: String,
    /// The name for display; usually that of the task.
    pub name: String,
    /// The task's name.
    pub task: String,
    /// The positional arguments.
    pub args: Value,
    /// The keyword arguments.
    pub kwargs: Value,
    /// The worker's name.
    pub hostname: String,
    /// The time of its start, in seconds since the Unix epoch.
    pub time_start: Option<f64>,
    /// Whether its message has been acknowledged.
    pub acknowledged: bool,
    /// The exchange of its message.
    pub exchange: String,
    /// The routing key of its message.
    pub routing_key: String,
    /// The priority of its message.
    pub priority: Option<i64>,
    /// Whether its message was redelivered.
    pub redelivered: bool,
    /// The id of the process that runs it.
    pub worker_pid: Option<u64>,
    /// The remaining fields of the reply.
    pub fields: Map,
}

/// A task that a worker holds until its ETA.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ScheduledTask {
    /// Its ETA in ISO 8601.
    pub eta: Option<String>,
    /// The priority of the timer.
    pub priority: Option<i64>,
    /// The task.
    pub request: RequestInfo,
}

/// A task that was queried by its id.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueriedTask {
    /// Its state in the worker: `active`, `reserved`, `scheduled` or `ready`.
    pub state: String,
    /// The task.
    pub request: RequestInfo,
}

/// A registered task of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisteredTask {
    /// The task's name.
    pub name: String,
    /// The requested attributes as text, such as `rate_limit=10/m max_retries=3`.
    pub info: Option<String>,
}

/// The statistics of a worker.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// The number of tasks it has received, by name.
    pub total: BTreeMap<String, u64>,
    /// Its process id.
    pub pid: Option<u64>,
    /// Its logical clock.
    pub clock: u64,
    /// The time since its start, in seconds.
    pub uptime: Option<f64>,
    /// Its prefetch count; 0 is unlimited.
    pub prefetch_count: Option<u64>,
    /// Its configured concurrency.
    pub max_concurrency: Option<u64>,
    /// The ids of the processes that run tasks.
    pub processes: Vec<u64>,
    /// The broker's transport, such as `redis`.
    pub transport: Option<String>,
    /// The whole reply, including the parts above.
    pub fields: Map,
}

/// A queue that a worker consumes.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueueInfo {
    /// The name.
    pub name: String,
    /// The exchange to which it is bound.
    pub exchange: ExchangeInfo,
    /// The routing key of the binding.
    pub routing_key: String,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it is deleted after its last consumer.
    pub auto_delete: bool,
    /// Whether only one connection may use it.
    pub exclusive: bool,
    /// The arguments of its declaration.
    pub queue_arguments: Map,
    /// The remaining fields of the reply.
    pub fields: Map,
}

/// The exchange of a queue.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ExchangeInfo {
    /// The name.
    pub name: String,
    /// Its type, such as `direct`.
    pub kind: String,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// The remaining fields of the reply.
    pub fields: Map,
}

/// The reply of a worker to `hello`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerState {
    /// The ids of revoked tasks, oldest first.
    pub revoked: Vec<String>,
    /// Its logical clock.
    pub clock: u64,
}

/// A decoded reply, or what is wrong with it.
type Read<T> = Result<T, String>;

pub(super) fn pong(value: &Value) -> Read<()> {
    match ok(value).as_str() {
        Some("pong") => Ok(()),
        _ => Err(expected("pong")),
    }
}

pub(super) fn text(value: &Value) -> Read<String> {
    let text = ok(value).as_str();
    text.map(ToOwned::to_owned)
        .ok_or_else(|| expected("a string"))
}

pub(super) fn optional_text(value: &Value) -> Read<Option<String>> {
    match ok(value) {
        Value::Null => Ok(None),
        value => text(value).map(Some),
    }
}

pub(super) fn texts(value: &Value) -> Read<Vec<String>> {
    list(value, |one| one.as_str().map(ToOwned::to_owned))
}

pub(super) fn map(value: &Value) -> Read<Map> {
    value.as_map().cloned().ok_or_else(|| expected("a map"))
}

pub(super) fn clock(value: &Value) -> Read<u64> {
    let clock = value.get("clock").and_then(whole);
    clock.ok_or_else(|| expected("a map with a clock"))
}

pub(super) fn requests(value: &Value) -> Read<Vec<RequestInfo>> {
    list(value, RequestInfo::read)
}

pub(super) fn scheduled(value: &Value) -> Read<Vec<ScheduledTask>> {
    list(value, |one| {
        let mut fields = Fields::of(one)?;
        Some(ScheduledTask {
            eta: fields.optional_text("eta"),
            priority: fields.take("priority").as_i64(),
            request: RequestInfo::read(&fields.take("request"))?,
        })
    })
}

pub(super) fn queried(value: &Value) -> Read<BTreeMap<String, QueriedTask>> {
    let tasks = value.as_map().ok_or_else(|| expected("a map"))?;
    let task = |(id, entry): (&Value, &Value)| {
        let [state, request] = entry.as_array()? else {
            return None;
        };
        let task = QueriedTask {
            state: state.as_str()?.to_owned(),
            request: RequestInfo::read(request)?,
        };
        Some((id.as_str()?.to_owned(), task))
    };
    Ok(tasks.iter().filter_map(task).collect())
}

pub(super) fn registered(value: &Value) -> Read<Vec<RegisteredTask>> {
    list(value, |one| {
        let text = one.as_str()?;
        let (name, info) = match text.split_once(" [") {
            Some((name, info)) => (name, Some(info.strip_suffix(']').unwrap_or(info))),
            None => (text, None),
        };
        Some(RegisteredTask {
            name: name.to_owned(),
            info: info.map(ToOwned::to_owned),
        })
    })
}

pub(super) fn stats(value: &Value) -> Read<Stats> {
    let fields = map(value)?;
    let inside = |part: &str, name: &str| value.get(part).and_then(|part| part.get(name));
    let count = |(name, count): (&Value, &Value)| Some((name.as_str()?.to_owned(), whole(count)?));
    let total = value.get("total").and_then(Value::as_map);
    let processes = inside("pool", "processes").and_then(Value::as_array);
    Ok(Stats {
        total: total
            .map(|total| total.iter().filter_map(count).collect())
            .unwrap_or_default(),
        pid: value.get("pid").and_then(whole),
        clock: value.get("clock").and_then(whole).unwrap_or_default(),
        uptime: value.get("uptime").and_then(Value::as_f64),
        prefetch_count: value.get("prefetch_count").and_then(whole),
        max_concurrency: inside("pool", "max-concurrency").and_then(whole),
        processes: processes
            .map(|processes| processes.iter().filter_map(whole).collect())
            .unwrap_or_default(),
        transport: inside("broker", "transport")
            .and_then(Value::as_str)
            .map(ToOwned::to_owned),
        fields,
    })
}

pub(super) fn queues(value: &Value) -> Read<Vec<QueueInfo>> {
    list(value, |one| {
        let mut fields = Fields::of(one)?;
        Some(QueueInfo {
            name: fields.text("name"),
            exchange: ExchangeInfo::read(&fields.take("exchange")),
            routing_key: fields.text("routing_key"),
            durable: fields.flag("durable"),
            auto_delete: fields.flag("auto_delete"),
            exclusive: fields.flag("exclusive"),
            queue_arguments: match fields.take("queue_arguments") {
                Value::Map(arguments) => arguments,
                _ => Map::new(),
            },
            fields: fields.0,
        })
    })
}

/// Decodes the reply to `hello`; a worker replies with nothing to itself.
pub(super) fn hello(value: &Value) -> Read<Option<PeerState>> {
    if value.is_null() {
        return Ok(None);
    }
    let revoked = match value.get("revoked") {
        // Older versions send a map from ids to times.
        Some(Value::Map(ids)) => ids
            .keys()
            .filter_map(|id| id.as_str().map(ToOwned::to_owned))
            .collect(),
        Some(ids) => texts(ids)?,
        None => Vec::new(),
    };
    Ok(Some(PeerState {
        revoked,
        clock: clock(value)?,
    }))
}

impl RequestInfo {
    fn read(value: &Value) -> Option<Self> {
        let mut fields = Fields::of(value)?;
        let delivery = fields.take("delivery_info");
        let mut delivery = Fields::of(&delivery).unwrap_or_default();
        Some(Self {
            id: fields.text("id"),
            name: fields.text("name"),
            task: fields.text("type"),
            args: fields.take("args"),
            kwargs: fields.take("kwargs"),
            hostname: fields.text("hostname"),
            time_start: fields.take("time_start").as_f64(),
            acknowledged: fields.flag("acknowledged"),
            exchange: delivery.text("exchange"),
            routing_key: delivery.text("routing_key"),
            priority: delivery.take("priority").as_i64(),
            redelivered: delivery.flag("redelivered"),
            worker_pid: fields.take("worker_pid").as_u64(),
            fields: fields.0,
        })
    }
}

impl ExchangeInfo {
    fn read(value: &Value) -> Self {
        let mut fields = Fields::of(value).unwrap_or_default();
        Self {
            name: fields.text("name"),
            kind: fields.text("type"),
            durable: fields.flag("durable"),
            fields: fields.0,
        }
    }
}

/// A map whose entries are removed by name.
#[derive(Default)]
struct Fields(Map);

impl Fields {
    fn of(value: &Value) -> Option<Self> {
        value.as_map().cloned().map(Self)
    }

    fn take(&mut self, name: &str) -> Value {
        self.0.remove(name).unwrap_or_default()
    }

    fn text(&mut self, name: &str) -> String {
        self.optional_text(name).unwrap_or_default()
    }

    fn optional_text(&mut self, name: &str) -> Option<String> {
        match self.take(name) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    fn flag(&mut self, name: &str) -> bool {
        self.take(name).as_bool().unwrap_or_default()
    }
}

/// Decodes a list and skips elements that cannot be decoded.
///
/// # Errors
///
/// When the value is not a list.
fn list<T>(value: &Value, read: impl FnMut(&Value) -> Option<T>) -> Read<Vec<T>> {
    let elements = ok(value).as_array().ok_or_else(|| expected("a list"))?;
    Ok(elements.iter().filter_map(read).collect())
}

/// Decodes an integer, which Celery sometimes sends as a string.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Str(digits) => digits.parse().ok(),
        value => value.as_u64(),
    }
}

fn expected(what: &str) -> String {
    format!("expected {what}")
}

#[cfg(test)]
mod tests {
    use celery_protocol::Serializer;

    use super::*;

    fn json(text: &str) -> Value {
        Serializer::Json.decode(text.as_bytes()).unwrap()
    }

    #[test]
    fn request_of_celery_is_decoded() {
        let requests = requests(&json(
            r#"[{"id": "1", "name": "shown", "args": [8], "kwargs": {}, "type": "demo.late",
                "hostname": "w1@host", "time_start": 1.5, "acknowledged": false,
                "delivery_info": {"exchange": "", "routing_key": "celery", "priority": 0,
                "redelivered": true}, "worker_pid": 31223, "more": 1}, 5]"#,
        ))
        .unwrap();
        let [request] = &requests[..] else {
            panic!("other elements are skipped: {requests:?}");
        };
        assert_eq!((&*request.task, &*request.name), ("demo.late", "shown"));
        assert_eq!(request.args, Value::from(vec![8]));
        assert_eq!(request.time_start, Some(1.5));
        assert!(request.redelivered && request.priority == Some(0));
        assert_eq!(request.worker_pid, Some(31223));
        assert_eq!(request.fields, Map::from([("more", 1)]));
    }

    #[test]
    fn missing_or_invalid_parts_are_empty() {
        let empty = RequestInfo::read(&json("{}")).unwrap();
        assert_eq!(empty, RequestInfo::default());
        let odd = RequestInfo::read(&json(r#"{"id": 1, "delivery_info": []}"#)).unwrap();
        assert_eq!(odd, RequestInfo::default());
        assert_eq!(stats(&json("{}")).unwrap(), Stats::default());
        stats(&json("[]")).unwrap_err();
    }

    #[test]
    fn stats_keep_all_fields() {
        let value = json(
            r#"{"total": {"a": 14}, "pid": 3, "clock": "169", "uptime": 61, "prefetch_count": 9,
                "pool": {"max-concurrency": 2, "processes": [1, 2]},
                "broker": {"transport": "redis"}, "rusage": {"utime": 0.4}}"#,
        );
        let stats = stats(&value).unwrap();
        assert_eq!((stats.clock, stats.total["a"]), (169, 14));
        assert_eq!(stats.processes, [1, 2]);
        assert_eq!(stats.max_concurrency, Some(2));
        assert_eq!(stats.transport.as_deref(), Some("redis"));
        assert_eq!(Value::Map(stats.fields), value);
    }

    #[test]
    fn scheduled_queried_and_registered_tasks_are_decoded() {
        let scheduled = scheduled(&json(
            r#"[{"eta": "2026-11-21T08:38:16+00:00", "priority": 6, "request": {"id": "1"}}]"#,
        ))
        .unwrap();
        assert_eq!(scheduled[0].request.id, "1");
        assert!(scheduled[0].eta.as_deref().unwrap().starts_with("2026"));
        let queried = queried(&json(r#"{"1": ["scheduled", {"id": "1"}], "2": 0}"#)).unwrap();
        assert_eq!(queried.len(), 1);
        assert_eq!(queried["1"].state, "scheduled");
        let registered = registered(&json(r#"["a", "b [max_retries=3 rate_limit=1/s]"]"#)).unwrap();
        assert_eq!(registered[0].info, None);
        assert_eq!(registered[1].name, "b");
        let info = registered[1].info.as_deref();
        assert_eq!(info, Some("max_retries=3 rate_limit=1/s"));
    }

    #[test]
    fn hello_of_all_versions_is_decoded() {
        let list = hello(&json(r#"{"revoked": ["a", "b"], "clock": 7}"#)).unwrap();
        let map = hello(&json(r#"{"revoked": {"a": 1.5, "b": 2}, "clock": 7}"#)).unwrap();
        assert_eq!(list, map);
        assert_eq!(list.unwrap().revoked, ["a", "b"]);
        assert_eq!(hello(&Value::Null).unwrap(), None);
        assert_eq!(clock(&json(r#"{"clock": 3}"#)).unwrap(), 3);
    }

    #[test]
    fn simple_replies_are_decoded() {
        pong(&json(r#"{"ok": "pong"}"#)).unwrap();
        pong(&Value::Null).unwrap_err();
        assert_eq!(text(&json(r#"{"ok": "report"}"#)).unwrap(), "report");
        assert_eq!(optional_text(&Value::Null).unwrap(), None);
        assert_eq!(texts(&json(r#"["a"]"#)).unwrap(), ["a"]);
        let queues = queues(&json(
            r#"[{"name": "q", "exchange": {"name": "q", "type": "direct", "durable": true},
                "routing_key": "q", "durable": true, "queue_arguments": null, "alias": null}]"#,
        ))
        .unwrap();
        assert!(queues[0].durable && queues[0].exchange.durable);
        assert_eq!(queues[0].exchange.kind, "direct");
        assert_eq!(queues[0].fields, Map::from([("alias", Value::Null)]));
    }
}
