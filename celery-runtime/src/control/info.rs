//! What workers tell about themselves. A part that is missing or of another
//! form is empty, so that one of them does not hide the rest; what is not
//! named here stays in `fields`.

use std::collections::BTreeMap;

use celery_protocol::{Map, Value};

use crate::control::replies::ok;

/// A task in the hands of a worker.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RequestInfo {
    /// The task's id.
    pub id: String,
    /// The name that it is shown by; usually the task's.
    pub name: String,
    /// The task's name.
    pub task: String,
    /// The positional arguments.
    pub args: Value,
    /// The keyword arguments.
    pub kwargs: Value,
    /// The worker's name.
    pub hostname: String,
    /// When it was started, as Unix time.
    pub time_start: Option<f64>,
    /// Whether its message was acknowledged.
    pub acknowledged: bool,
    /// The exchange that its message was sent to.
    pub exchange: String,
    /// The routing key of its message.
    pub routing_key: String,
    /// The priority of its message.
    pub priority: Option<i64>,
    /// Whether its message was delivered before.
    pub redelivered: bool,
    /// The process that runs it.
    pub worker_pid: Option<u64>,
    /// What else the worker tells.
    pub fields: Map,
}

/// A task that waits for its time in a worker.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ScheduledTask {
    /// When it is due, ISO 8601.
    pub eta: Option<String>,
    /// The priority of the timer.
    pub priority: Option<i64>,
    /// The task.
    pub request: RequestInfo,
}

/// A task that a worker was asked for by its id.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueriedTask {
    /// Where it is: `active`, `reserved`, `scheduled` or `ready`.
    pub state: String,
    /// The task.
    pub request: RequestInfo,
}

/// A task that a worker can run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisteredTask {
    /// The task's name.
    pub name: String,
    /// The attributes that were asked for, as the worker writes them:
    /// `rate_limit=10/m max_retries=3`.
    pub info: Option<String>,
}

/// What a worker counts.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// How many tasks it took, by name.
    pub total: BTreeMap<String, u64>,
    /// Its process.
    pub pid: Option<u64>,
    /// Its logical clock.
    pub clock: u64,
    /// For how many seconds it has been running.
    pub uptime: Option<f64>,
    /// How many messages it takes ahead; 0 for any number.
    pub prefetch_count: Option<u64>,
    /// How many tasks run at once, by its settings.
    pub max_concurrency: Option<u64>,
    /// The processes that run tasks.
    pub processes: Vec<u64>,
    /// The broker's transport, such as `redis`.
    pub transport: Option<String>,
    /// All that the worker tells, these included.
    pub fields: Map,
}

/// A queue that a worker consumes.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueueInfo {
    /// The name.
    pub name: String,
    /// The exchange that it is bound to.
    pub exchange: ExchangeInfo,
    /// The routing key of the binding.
    pub routing_key: String,
    /// Whether it outlives a restart of the broker.
    pub durable: bool,
    /// Whether it goes with its last consumer.
    pub auto_delete: bool,
    /// Whether one connection alone may use it.
    pub exclusive: bool,
    /// Arguments of its declaration.
    pub queue_arguments: Map,
    /// What else the worker tells.
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
    /// Whether it outlives a restart of the broker.
    pub durable: bool,
    /// What else the worker tells.
    pub fields: Map,
}

/// How a worker greets another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerState {
    /// The ids of the tasks that it knows to be revoked, the oldest first.
    pub revoked: Vec<String>,
    /// Its logical clock.
    pub clock: u64,
}

/// Something that one worker tells.
type Read<T> = Result<T, String>;

pub(super) fn pong(value: &Value) -> Read<()> {
    match ok(value).as_str() {
        Some("pong") => Ok(()),
        _ => Err("it is not pong".to_owned()),
    }
}

pub(super) fn text(value: &Value) -> Read<String> {
    let text = ok(value).as_str();
    text.map(ToOwned::to_owned)
        .ok_or_else(|| "a text is expected".to_owned())
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
    let task = |(id, told): (&Value, &Value)| {
        let [state, request] = told.as_array()? else {
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

/// A worker answers nothing to itself.
pub(super) fn hello(value: &Value) -> Read<Option<PeerState>> {
    if value.is_null() {
        return Ok(None);
    }
    let revoked = match value.get("revoked") {
        // Older workers tell when each was revoked, too.
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

/// The parts of a map, taken out by name.
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

/// The elements that can be read; what is no list at all is an error.
fn list<T>(value: &Value, read: impl FnMut(&Value) -> Option<T>) -> Read<Vec<T>> {
    let elements = ok(value).as_array().ok_or_else(|| expected("a list"))?;
    Ok(elements.iter().filter_map(read).collect())
}

/// A whole number, which Celery sometimes writes as a text.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Str(digits) => digits.parse().ok(),
        value => value.as_u64(),
    }
}

fn expected(what: &str) -> String {
    format!("{what} is expected")
}

#[cfg(test)]
mod tests {
    use celery_protocol::Serializer;

    use super::*;

    fn json(text: &str) -> Value {
        Serializer::Json.decode(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_request_is_read_as_celery_writes_it() {
        let requests = requests(&json(
            r#"[{"id": "1", "name": "shown", "args": [8], "kwargs": {}, "type": "demo.late",
                "hostname": "w1@host", "time_start": 1.5, "acknowledged": false,
                "delivery_info": {"exchange": "", "routing_key": "celery", "priority": 0,
                "redelivered": true}, "worker_pid": 31223, "more": 1}, 5]"#,
        ))
        .unwrap();
        let [request] = &requests[..] else {
            panic!("what is no request is left out: {requests:?}");
        };
        assert_eq!((&*request.task, &*request.name), ("demo.late", "shown"));
        assert_eq!(request.args, Value::from(vec![8]));
        assert_eq!(request.time_start, Some(1.5));
        assert!(request.redelivered && request.priority == Some(0));
        assert_eq!(request.worker_pid, Some(31223));
        assert_eq!(request.fields, Map::from([("more", 1)]));
    }

    #[test]
    fn missing_and_foreign_parts_are_empty() {
        let empty = RequestInfo::read(&json("{}")).unwrap();
        assert_eq!(empty, RequestInfo::default());
        let odd = RequestInfo::read(&json(r#"{"id": 1, "delivery_info": []}"#)).unwrap();
        assert_eq!(odd, RequestInfo::default());
        assert_eq!(stats(&json("{}")).unwrap(), Stats::default());
        stats(&json("[]")).unwrap_err();
    }

    #[test]
    fn statistics_keep_everything() {
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
    fn tasks_are_read_in_each_place() {
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
    fn greetings_of_all_versions_are_read() {
        let list = hello(&json(r#"{"revoked": ["a", "b"], "clock": 7}"#)).unwrap();
        let map = hello(&json(r#"{"revoked": {"a": 1.5, "b": 2}, "clock": 7}"#)).unwrap();
        assert_eq!(list, map);
        assert_eq!(list.unwrap().revoked, ["a", "b"]);
        assert_eq!(hello(&Value::Null).unwrap(), None);
        assert_eq!(clock(&json(r#"{"clock": 3}"#)).unwrap(), 3);
    }

    #[test]
    fn simple_answers_are_read() {
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
