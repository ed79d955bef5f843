//! The commands of `celery inspect`: they read the worker's state.

use celery_protocol::{Map, Serializer, Value, time};

use crate::boundary::{Exchange, Queue};
use crate::config::url::{ServiceUrl, redacted};
use crate::execution::RegistryEntry;
use crate::worker::core::describe::describe;
use crate::worker::delivery::in_flight::{DeliveryKey, InFlightDelivery, Payload};
use crate::worker::driver::Driver;
use crate::worker::driver::command::argument::{is_true, texts};
use crate::worker::isolated::Children;

/// The fields of a task that `inspect registered` shows by default.
const DEFAULT_TASK_FIELDS: [&str; 3] = ["exchange", "routing_key", "rate_limit"];

impl Driver {
    pub(crate) fn active(&self) -> Value {
        self.requests(|entry| entry.state.is_running())
    }

    pub(crate) fn reserved(&self) -> Value {
        self.requests(|entry| entry.state.is_reserved())
    }

    pub(crate) fn requests(&self, wanted: impl Fn(&InFlightDelivery) -> bool) -> Value {
        let found = self.in_flight.keys().into_iter().filter(|key| {
            let entry = self.in_flight.find(*key);
            entry.is_some_and(&wanted)
        });
        Value::Array(found.filter_map(|key| self.request(key)).collect())
    }

    pub(crate) fn request(&self, key: DeliveryKey) -> Option<Value> {
        let entry = self.in_flight.find(key)?;
        let Payload::Task { job, .. } = &entry.payload else {
            return None;
        };
        let started = entry.started.filter(|_| entry.state.is_running());
        let started = started.map(|moment| moment.wall);
        let acknowledged = entry.state.is_acknowledged();
        Some(describe(job, self.hostname(), started, acknowledged))
    }

    pub(crate) fn scheduled(&mut self) -> Value {
        let tasks = self.monitor.scheduled.list(self.now.wall);
        let shown = tasks.into_iter().map(|task| {
            let mut map = Map::new();
            map.insert("eta", time::format(task.eta));
            // The priority of ETA tasks in Celery's timer.
            map.insert("priority", 6_i64);
            map.insert("request", task.request());
            Value::Map(map)
        });
        Value::Array(shown.collect())
    }

    pub(crate) fn query_tasks(&self, ids: &[String]) -> Value {
        let mut found = Map::new();
        for key in self.in_flight.keys() {
            let Some(entry) = self.in_flight.find(key) else {
                continue;
            };
            let Payload::Task { job, .. } = &entry.payload else {
                continue;
            };
            if !ids.contains(&job.id) {
                continue;
            }
            let state = match &entry.state {
                state if state.is_running() => "active",
                state if state.is_reserved() => "reserved",
                // The message is on its way to the delay queue.
                _ if self.monitor.scheduled.find(&job.id).is_some() => "scheduled",
                _ => "ready",
            };
            if let Some(request) = self.request(key) {
                let pair = vec![Value::from(state), request];
                found.insert(job.id.as_str(), Value::Array(pair));
            }
        }
        for id in ids {
            if let (Some(task), false) = (self.monitor.scheduled.find(id), found.contains_key(id)) {
                let pair = vec![Value::from("scheduled"), task.request()];
                found.insert(id.as_str(), Value::Array(pair));
            }
        }
        Value::Map(found)
    }

    pub(crate) fn registered(&self, arguments: &Map) -> Value {
        let requested = texts(arguments.get("taskinfoitems"));
        let items: Vec<&str> = match &*requested {
            [] => DEFAULT_TASK_FIELDS.to_vec(),
            requested => requested.iter().map(String::as_str).collect(),
        };
        let builtins = is_true(arguments.get("builtins"));
        let mut lines: Vec<String> = self
            .decoder
            .registry
            .iter()
            .filter(|task| builtins || !task.name.starts_with("celery."))
            .map(|task| self.describe_task(task, &items))
            .collect();
        lines.sort_unstable();
        Value::Array(lines.into_iter().map(Value::from).collect())
    }

    /// Returns a task's name and the requested fields that are set, as in
    /// `add [rate_limit=10/m max_retries=3]`.
    pub(crate) fn describe_task(&self, task: &RegistryEntry, items: &[&str]) -> String {
        let options = &task.declaration.options;
        let seconds = |time: Option<std::time::Duration>| Some(time?.as_secs_f64().to_string());
        let shown = items.iter().filter_map(|item| {
            let value = match *item {
                "name" => Some(task.name.to_string()),
                "rate_limit" => self.rates.show(&task.name).map(ToOwned::to_owned),
                "max_retries" => match options.max_retries.unwrap_or(Some(3)) {
                    Some(limit) => Some(limit.to_string()),
                    None => Some("None".to_owned()),
                },
                "queue" => task.declaration.queue.as_deref().map(ToOwned::to_owned),
                "acks_late" => options.acks_late.map(python_bool),
                "ignore_result" => options.ignore_result.map(python_bool),
                "time_limit" => seconds(options.time_limit),
                "soft_time_limit" => seconds(options.soft_time_limit),
                "priority" => options.priority.map(|priority| priority.to_string()),
                _ => None,
            };
            Some(format!("{item}={}", value?))
        });
        let shown: Vec<_> = shown.collect();
        match &*shown {
            [] => task.name.to_string(),
            shown => format!("{} [{}]", task.name, shown.join(" ")),
        }
    }

    pub(crate) fn active_queues(&self) -> Value {
        let queues = self.connection.queues().iter();
        Value::Array(queues.map(describe_queue).collect())
    }

    pub(crate) fn stats(&self) -> Value {
        let mut stats = Map::new();
        let mut total = Map::new();
        for (task, count) in &self.monitor.counters.by_task {
            total.insert(&**task, *count);
        }
        stats.insert("total", Value::Map(total));
        stats.insert("pid", i64::from(std::process::id()));
        // Celery sends the clock as a string.
        stats.insert("clock", self.monitor.logical_clock.value().to_string());
        let uptime = self
            .now
            .instant
            .saturating_duration_since(self.monitor.counters.started_at);
        stats.insert("uptime", uptime.as_secs());
        stats.insert("pool", Value::Map(self.pool()));
        stats.insert("broker", Value::Map(self.broker()));
        stats.insert(
            "prefetch_count",
            self.window.size(self.slots.max_concurrency()) as u64,
        );
        stats.insert("rusage", Value::Map(resource_usage()));
        if let Some((max, min)) = self.slots.autoscale() {
            let mut scale = Map::new();
            scale.insert("max", max as u64);
            scale.insert("min", min as u64);
            scale.insert("current", self.slots.concurrency() as u64);
            scale.insert("qty", self.window.pending() as u64);
            stats.insert("autoscaler", Value::Map(scale));
        }
        Value::Map(stats)
    }

    /// Describes the pool. Flower takes the length of `processes` for its size.
    pub(crate) fn pool(&self) -> Map {
        let pid = i64::from(std::process::id());
        let mut pool = Map::new();
        let children = self.pool.children();
        let children = children.map(Children::stats);
        let mut pids: Vec<i64> = Vec::new();
        let mut implementation = "celery_runtime:tokio";
        let mut max_tasks = None;
        if let Some(children) = &children {
            implementation = "celery_runtime:isolated";
            max_tasks = children.max_tasks;
            pids.extend(children.tasks.iter().map(|(pid, _)| i64::from(*pid)));
        }
        // A slot without a child process runs in this process.
        pids.truncate(self.slots.concurrency());
        pids.resize(self.slots.concurrency(), pid);
        pool.insert("implementation", implementation);
        pool.insert("max-concurrency", self.pool.initial_size() as u64);
        let slots = pids.into_iter().map(Value::Int);
        pool.insert("processes", Value::Array(slots.collect()));
        let max_tasks = max_tasks.map_or(Value::from("N/A"), |limit| i64::from(limit).into());
        pool.insert("max-tasks-per-child", max_tasks);
        let abandoned = self.pool.abandoned_threads();
        pool.insert("abandoned-threads", abandoned as u64);
        pool.insert("put-guarded-by-semaphore", true);
        let seconds = |limit: Option<std::time::Duration>| {
            Value::Int(limit.map_or(0, |limit| limit.as_secs() as i64))
        };
        let defaults = &self.decoder.defaults;
        let timeouts = [defaults.soft_time_limit, defaults.time_limit].map(seconds);
        pool.insert("timeouts", Value::Array(timeouts.to_vec()));
        pool.insert("writes", Value::Map(Map::new()));
        pool
    }

    pub(crate) fn broker(&self) -> Map {
        let config = &self.executor.messages.sender.config;
        let url = config.broker_url.as_deref().and_then(first_url);
        let scheme = url.as_ref().map(|url| url.scheme.as_str());
        let is_amqp = scheme.is_some_and(|scheme| scheme.starts_with("amqp"));
        let is_secure = scheme.is_some_and(|scheme| scheme.ends_with('s') && scheme != "redis");
        let mut broker = broker_address(url.as_ref(), is_amqp);
        broker.insert("insist", false);
        broker.insert("ssl", is_secure);
        broker.insert("transport", scheme.map_or(Value::Null, Value::from));
        broker.insert(
            "connect_timeout",
            config.broker_connection_timeout.as_secs(),
        );
        broker.insert("transport_options", Value::Map(Map::new()));
        broker.insert(
            "login_method",
            if is_amqp { "PLAIN".into() } else { Value::Null },
        );
        broker.insert("uri_prefix", Value::Null);
        let heartbeat = config
            .broker_heartbeat
            .map(|heartbeat| heartbeat.as_secs_f64());
        broker.insert("heartbeat", heartbeat.unwrap_or(0.0));
        broker.insert("failover_strategy", "round-robin");
        broker.insert("alternates", Value::Array(Vec::new()));
        broker.insert("credential_provider", Value::Null);
        broker
    }

    /// Returns the settings, with passwords replaced as by Celery.
    pub(crate) fn configuration(&self) -> Value {
        let config = &self.executor.messages.sender.config;
        let mut shown = Map::new();
        let url = |url: Option<&str>| {
            url.map_or(Value::Null, |url| {
                redacted(url).replace("***", "********").into()
            })
        };
        shown.insert("broker_url", url(config.broker_url.as_deref()));
        shown.insert("result_backend", url(config.result_backend.as_deref()));
        shown.insert("broker_heartbeat", seconds(config.broker_heartbeat));
        let known = [Serializer::Json, Serializer::MsgPack, Serializer::Yaml].into_iter();
        let accepted = known.filter(|known| config.accept_content.contains(*known));
        let accepted: Value = accepted.map(Serializer::name).collect();
        shown.insert("accept_content", accepted);
        // These cannot be set here; monitors expect them.
        shown.insert("enable_utc", true);
        shown.insert("timezone", "UTC");
        shown.insert("include", Value::Array(Vec::new()));
        shown.insert("deprecated_settings", Value::Null);
        shown.insert("worker_hijack_root_logger", false);
        shown.insert("worker_log_color", false);
        shown.insert("result_expires", seconds(config.result_expires));
        shown.insert("result_extended", config.result_extended);
        shown.insert("result_serializer", config.result_serializer.name());
        self.task_settings(&mut shown);
        self.worker_settings(&mut shown);
        Value::Map(shown)
    }

    fn task_settings(&self, shown: &mut Map) {
        let config = &self.executor.messages.sender.config;
        shown.insert("task_serializer", config.task_serializer.name());
        shown.insert("task_default_queue", config.queues.default_queue.as_str());
        shown.insert("task_create_missing_queues", config.queues.create_missing);
        shown.insert("task_acks_late", config.task.acks_late.unwrap_or(false));
        shown.insert(
            "task_ignore_result",
            config.task.ignore_result.unwrap_or(false),
        );
        shown.insert(
            "task_track_started",
            config.task.track_started.unwrap_or(false),
        );
        shown.insert("task_time_limit", seconds(config.task.time_limit));
        shown.insert("task_soft_time_limit", seconds(config.task.soft_time_limit));
        let rate = self.settings.default_rate_limit.as_deref();
        shown.insert(
            "task_default_rate_limit",
            rate.map_or(Value::Null, Value::from),
        );
        shown.insert("task_send_sent_event", config.task_send_sent_event);
    }

    fn worker_settings(&self, shown: &mut Map) {
        let config = &self.executor.messages.sender.config;
        shown.insert("worker_concurrency", self.slots.concurrency() as u64);
        let multiplier = config.worker_prefetch_multiplier;
        shown.insert("worker_prefetch_multiplier", multiplier as u64);
        shown.insert("worker_disable_prefetch", self.settings.disable_prefetch);
        shown.insert(
            "worker_disable_rate_limits",
            self.settings.disable_rate_limits,
        );
        shown.insert("worker_enable_remote_control", self.settings.remote_control);
        shown.insert("worker_send_task_events", self.settings.task_events);
        let timeout = self.settings.soft_shutdown_timeout.as_secs_f64();
        shown.insert("worker_soft_shutdown_timeout", timeout);
    }

    pub(crate) fn report(&self) -> String {
        let config = &self.executor.messages.sender.config;
        let url = |url: Option<&str>| url.map_or_else(|| "None".to_owned(), redacted);
        format!(
            "\nsoftware -> celery:{} (rust)\nplatform -> system:{} arch:{}\nsettings -> \
             transport:{} results:{}\n",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH,
            url(config.broker_url.as_deref()),
            url(config.result_backend.as_deref()),
        )
    }
}

/// Returns host, user, virtual host and port, with the defaults of the transport.
fn broker_address(url: Option<&ServiceUrl>, is_amqp: bool) -> Map {
    let text = |text: Option<String>| text.map_or(Value::Null, Value::from);
    let mut address = Map::new();
    address.insert("hostname", text(url.and_then(|url| url.host.clone())));
    let user = url.and_then(|url| url.user.clone());
    let user = user.or_else(|| is_amqp.then(|| "guest".to_owned()));
    address.insert("userid", text(user));
    let path = url.map(|url| url.path.trim_start_matches('/').to_owned());
    let path = path.map(|path| match (&*path, is_amqp) {
        ("", true) => "/".to_owned(),
        ("", false) => "0".to_owned(),
        _ => path,
    });
    address.insert("virtual_host", text(path));
    let port = url.and_then(|url| url.port);
    let port = port.unwrap_or(if is_amqp { 5672 } else { 6379 });
    address.insert("port", i64::from(port));
    address
}

fn seconds(time: Option<std::time::Duration>) -> Value {
    time.map_or(Value::Null, |time| time.as_secs_f64().into())
}

fn first_url(urls: &str) -> Option<ServiceUrl> {
    ServiceUrl::parse_list(urls).ok()?.into_iter().next()
}

fn python_bool(flag: bool) -> String {
    if flag { "True" } else { "False" }.to_owned()
}

fn describe_queue(queue: &Queue) -> Value {
    let mut map = Map::new();
    map.insert("name", queue.name.as_str());
    map.insert("exchange", describe_exchange(&queue.exchange));
    map.insert("routing_key", queue.routing_key.as_str());
    let arguments = |arguments: &Map| {
        if arguments.is_empty() {
            Value::Null
        } else {
            Value::Map(arguments.clone())
        }
    };
    map.insert("queue_arguments", arguments(&queue.arguments));
    map.insert("binding_arguments", arguments(&queue.binding_arguments));
    map.insert("consumer_arguments", Value::Null);
    map.insert("durable", queue.durable);
    map.insert("exclusive", false);
    map.insert("auto_delete", queue.auto_delete);
    map.insert("no_ack", false);
    let alias = queue.alias.as_deref();
    map.insert("alias", alias.map_or(Value::Null, Value::from));
    let bindings = queue.bindings.iter().map(|binding| {
        let mut map = Map::new();
        map.insert("exchange", describe_exchange(&binding.exchange));
        map.insert("routing_key", binding.routing_key.as_str());
        map.insert("arguments", arguments(&binding.arguments));
        Value::Map(map)
    });
    map.insert("bindings", Value::Array(bindings.collect()));
    map.insert("no_declare", Value::Null);
    // They are in `queue_arguments`.
    for name in ["expires", "message_ttl", "max_length", "max_length_bytes"] {
        map.insert(name, Value::Null);
    }
    map.insert("max_priority", Value::Null);
    Value::Map(map)
}

fn describe_exchange(exchange: &Exchange) -> Value {
    let mut map = Map::new();
    map.insert("name", exchange.name.as_str());
    map.insert("type", exchange.kind.name());
    map.insert("arguments", Value::Null);
    map.insert("durable", exchange.durable);
    map.insert("passive", false);
    map.insert("auto_delete", false);
    map.insert("delivery_mode", Value::Null);
    map.insert("no_declare", false);
    Value::Map(map)
}

/// Returns the resource usage of the process under the names of `getrusage`.
/// Values that the system does not report are 0.
fn resource_usage() -> Map {
    let mut usage = Map::new();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The fields follow the program's name, which may contain spaces and brackets.
    let numbers: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| {
            rest.split_whitespace()
                .map(|n| n.parse().unwrap_or(0))
                .collect()
        })
        .unwrap_or_default();
    let number = |field: usize| numbers.get(field - 3).copied().unwrap_or(0);
    // Fields as numbered in proc(5); times are in hundredths of a second.
    usage.insert("utime", number(14) as f64 / 100.0);
    usage.insert("stime", number(15) as f64 / 100.0);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    usage.insert("maxrss", line("VmHWM:").unwrap_or(0));
    for name in ["ixrss", "idrss", "isrss"] {
        usage.insert(name, 0_i64);
    }
    usage.insert("minflt", number(10));
    usage.insert("majflt", number(12));
    for name in [
        "nswap", "inblock", "oublock", "msgsnd", "msgrcv", "nsignals",
    ] {
        usage.insert(name, 0_i64);
    }
    usage.insert("nvcsw", line("voluntary_ctxt_switches:").unwrap_or(0));
    usage.insert("nivcsw", line("nonvoluntary_ctxt_switches:").unwrap_or(0));
    usage
}
