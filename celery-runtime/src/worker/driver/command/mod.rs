//! The commands of remote control (Celery's `celery.worker.control`).
//!
//! To add a command:
//!
//! 1. add a row with its name to the table in [`Driver::dispatch`];
//! 2. write its function: in this file if it changes the worker, in `inspect.rs`
//!    if it only reads. It receives the arguments as a [`Map`], which the helpers
//!    in `argument.rs` read, and returns the value of the reply;
//! 3. add a method to [`Control`](crate::Control) or
//!    [`Inspect`](crate::Inspect) for clients, and a test in
//!    `tests/it/control/`.
//!
//! Names, arguments and replies are those of Celery, so that `celery inspect`,
//! `celery control` and Flower work.

pub(crate) mod argument;
mod election;
mod inspect;

use std::collections::HashSet;

use celery_protocol::{ControlRequest, Map, TimeLimits, Value, repr};

use crate::boundary::{Exchange, ExchangeKind, Queue};
use crate::task::RateLimit;
use crate::worker::core::{destination, revocations};
use crate::worker::delivery::event::{DeliveryEvent, Revocation, Stop};
use crate::worker::delivery::in_flight::{DeliveryKey, Payload};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::driver::Driver;
use crate::worker::driver::command::argument::{
    entry, is_true, list, missing, number, quoted, scalar, set, signal, task_ids, text, texts,
};
use crate::worker::io::control_receiver::Incoming;

/// When and with what a command is replied to.
pub(crate) enum Reply {
    /// At once: the value, or the text of an error.
    Immediate(Result<Value, String>),
    /// The queues to consume have changed; the reply follows when the new
    /// consumer is established.
    AfterQueueChange(Value),
    /// Never, even if the client requested a reply.
    Omitted,
}

impl Driver {
    pub(crate) fn handle_remote(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Request(request) => self.handle_command(request),
            Incoming::Events(events) => self.handle_election_events(&events),
        }
    }

    /// Runs a command that is addressed to this worker, and replies to it.
    pub(crate) fn handle_command(&mut self, request: ControlRequest) {
        self.monitor.logical_clock.adjust(request.clock);
        match destination::matches(&request, self.hostname()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(cause) => {
                return tracing::warn!(
                    "ignoring control command {:?} with an invalid destination pattern: {cause}",
                    request.method
                );
            }
        }
        tracing::debug!("control command {}", request.method);
        match self.dispatch(&request.method, &request.arguments) {
            Reply::Immediate(answer) => self.answer(&request, answer),
            Reply::AfterQueueChange(done) => self.change_queues(request, done),
            Reply::Omitted => {}
        }
    }

    /// Sends the reply to a command, if the client requested one.
    pub(crate) fn answer(&mut self, request: &ControlRequest, answer: Result<Value, String>) {
        if let Err(error) = &answer {
            tracing::warn!("control command {:?} failed: {error}", request.method);
        }
        let value = answer.unwrap_or_else(|error| entry("error", error));
        if let Some(address) = &request.reply_to {
            self.monitor.reply(address, request.ticket.clone(), value);
        }
    }

    /// The table of commands: a row for each name, and then the application's own
    /// commands. It is one `match` in spite of its length, so that it reads as a
    /// table.
    pub(crate) fn dispatch(&mut self, name: &str, arguments: &Map) -> Reply {
        let answer = match name {
            "ping" => Ok(entry("ok", "pong")),
            "active" | "dump_active" => Ok(self.active()),
            "reserved" | "dump_reserved" => Ok(self.reserved()),
            "scheduled" | "dump_schedule" => Ok(self.scheduled()),
            "revoked" | "dump_revoked" => Ok(list(self.revocations.ids())),
            "registered" | "dump_tasks" => Ok(self.registered(arguments)),
            "stats" => Ok(self.stats()),
            "conf" | "dump_conf" => Ok(self.configuration()),
            "report" => Ok(entry("ok", self.report())),
            "query_task" => Ok(self.query_tasks(&texts(arguments.get("ids")))),
            "active_queues" => Ok(self.active_queues()),
            "clock" => Ok(entry("clock", self.monitor.logical_clock.value())),
            "hello" => Ok(self.hello(arguments)),
            "memsample" => Ok(Value::Null),
            "memdump" => Ok("- rss: not measured.\n".into()),
            "revoke" => self.revoke(arguments),
            "terminate" => self.terminate(arguments),
            "revoke_by_stamped_headers" => self.revoke_by_stamps(arguments),
            "rate_limit" => self.set_rate_limit(arguments),
            "time_limit" => self.set_time_limit(arguments),
            "pool_grow" => self.resize_pool(arguments, 1),
            "pool_shrink" => self.resize_pool(arguments, -1),
            "pool_restart" => Err("ValueError('Pool restarts not enabled')".to_owned()),
            "autoscale" => self.set_autoscale(arguments),
            "enable_events" => Ok(self.set_task_events(true)),
            "disable_events" => Ok(self.set_task_events(false)),
            "heartbeat" => {
                self.monitor.requested_heartbeat(self.now.wall);
                Ok(Value::Null)
            }
            "add_consumer" => return self.add_consumer(arguments),
            "cancel_consumer" => return self.cancel_consumer(arguments),
            "election" => {
                self.propose_candidate(arguments);
                Ok(Value::Null)
            }
            "shutdown" => {
                tracing::info!("shutdown requested by remote control");
                // A later stage that is under way must not go back to warm.
                if !self.shutdown.is_requested() {
                    self.stop(Stop::Warm);
                }
                return Reply::Omitted;
            }
            other => {
                let answer = self.remote.run(other, arguments);
                answer.unwrap_or_else(|| Err(format!("KeyError({})", quoted(other))))
            }
        };
        Reply::Immediate(answer)
    }

    /// Mingle: adopts the peer's revoked ids, and returns this worker's ids and
    /// clock.
    pub(crate) fn hello(&mut self, arguments: &Map) -> Value {
        let from = text(arguments, "from_node").unwrap_or_default();
        if from == self.hostname() {
            return Value::Null;
        }
        // Older Celery versions send a map from ids to times.
        let ids = match arguments.get("revoked") {
            Some(Value::Map(map)) => map.keys().filter_map(Value::as_str).collect(),
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        for id in ids {
            self.revocations.add(id, self.now.wall);
        }
        let mut reply = Map::new();
        reply.insert("revoked", list(self.revocations.ids()));
        reply.insert("clock", self.monitor.logical_clock.forward());
        Value::Map(reply)
    }

    pub(crate) fn revoke(&mut self, arguments: &Map) -> Result<Value, String> {
        let ids = task_ids(arguments)?;
        let terminates = is_true(arguments.get("terminate"));
        let signal = terminates.then(|| signal(arguments.get("signal")));
        self.revoke_ids(&ids, signal.transpose()?)
    }

    pub(crate) fn terminate(&mut self, arguments: &Map) -> Result<Value, String> {
        let ids = task_ids(arguments)?;
        let signal = signal(arguments.get("signal"))?;
        self.revoke_ids(&ids, Some(signal))
    }

    /// Revokes ids, and terminates their running tasks if there is a signal.
    pub(crate) fn revoke_ids(
        &mut self,
        ids: &[String],
        signal: Option<i32>,
    ) -> Result<Value, String> {
        for id in ids {
            self.revocations.add(id, self.now.wall);
            self.rates.release(id);
        }
        self.store_revocations(ids);
        let revoked: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let found: Vec<_> = self
            .in_flight
            .keys()
            .into_iter()
            .filter_map(|key| {
                let entry = self.in_flight.find(key)?;
                let Payload::Task { job, .. } = &entry.payload else {
                    return None;
                };
                let id = job.id.clone();
                revoked
                    .contains(&*id)
                    .then(|| (key, id, entry.state.is_running()))
            })
            .collect();
        let mut running = HashSet::new();
        let mut terminated = Vec::new();
        for (key, id, is_running) in found {
            match signal {
                Some(signal) => self.terminate_delivery(key, signal),
                None => self.event(key, DeliveryEvent::Revoked(Revocation::Unstarted)),
            }
            if is_running {
                running.insert(id.clone());
            }
            terminated.push(id);
        }
        let unstarted = ids.iter().filter(|id| !running.contains(*id));
        self.queue_revoked_results(unstarted.cloned());
        let done = match (signal, &*terminated) {
            (None, _) => format!("tasks {} flagged as revoked", set(ids)),
            (Some(_), []) => "terminate: tasks unknown".to_owned(),
            (Some(_), ids) => format!("terminate: {}", ids.join(", ")),
        };
        tracing::info!("{done}");
        Ok(entry("ok", done))
    }

    pub(crate) fn terminate_delivery(&mut self, key: DeliveryKey, signal: i32) {
        if let Some(Payload::Task { job, .. }) =
            self.in_flight.find(key).map(|entry| &entry.payload)
        {
            job.control.set_signal(signal);
        }
        self.event(key, DeliveryEvent::Revoked(Revocation::Terminate(signal)));
    }

    pub(crate) fn revoke_by_stamps(&mut self, arguments: &Map) -> Result<Value, String> {
        let headers = match arguments.get("headers") {
            Some(Value::Map(headers)) => headers.clone(),
            // `celery control` sends a list of `name=value`.
            Some(Value::Array(pairs)) => pairs
                .iter()
                .filter_map(|pair| pair.as_str()?.split_once('='))
                .map(|(name, value)| (name.to_owned(), Value::from(value)))
                .collect(),
            _ => return Err(missing("headers")),
        };
        for (name, values) in headers.iter() {
            let name = name.as_str().unwrap_or_default();
            self.revocations
                .add_stamps(name, revocations::stamp_values(values));
        }
        let shown = repr::kwargs(&headers);
        if !is_true(arguments.get("terminate")) {
            // Waiting tasks are checked when they start; the check of these is over.
            let starting = self
                .deliveries_revoked_by_stamps(|state| state.is_reserved() && !state.is_waiting());
            for key in starting {
                self.event(key, DeliveryEvent::Revoked(Revocation::Unstarted));
            }
            let done = format!("headers {shown} flagged as revoked, but not terminated");
            tracing::info!("{done}");
            return Ok(entry("ok", done));
        }
        let signal = signal(arguments.get("signal"))?;
        let running = self.deliveries_revoked_by_stamps(DeliveryState::is_running);
        if running.is_empty() {
            return Ok(entry("ok", format!("headers {shown} were not terminated")));
        }
        for key in running {
            self.terminate_delivery(key, signal);
        }
        Ok(entry("ok", format!("headers {shown} revoked")))
    }

    /// Returns the deliveries of tasks revoked by a stamp whose state matches.
    pub(crate) fn deliveries_revoked_by_stamps(
        &self,
        matches: impl Fn(&DeliveryState) -> bool,
    ) -> Vec<DeliveryKey> {
        let revoked = self.in_flight.keys().into_iter().filter(|key| {
            let entry = self.in_flight.find(*key);
            entry.is_some_and(|entry| match &entry.payload {
                Payload::Task { job, .. } => matches(&entry.state) && self.revocations.covers(job),
                Payload::Rejected(_) => false,
            })
        });
        revoked.collect()
    }

    pub(crate) fn set_rate_limit(&mut self, arguments: &Map) -> Result<Value, String> {
        let task = text(arguments, "task_name").ok_or_else(|| missing("task_name"))?;
        let limit = match arguments.get("rate_limit") {
            None | Some(Value::Null) => "0".to_owned(),
            Some(Value::Str(limit)) if limit.is_empty() => "0".to_owned(),
            Some(limit) => scalar(limit).ok_or_else(|| missing("rate_limit"))?,
        };
        let rate = RateLimit::parse(&limit)
            .map_err(|error| format!("Invalid rate limit string: {error}"))?;
        if self.decoder.registry.find(&task).is_none() {
            return Err("unknown task".to_owned());
        }
        self.rates.set(&task, &limit, rate, self.now.instant);
        let done = if rate.per_second.is_some() {
            "new rate limit set successfully"
        } else {
            "rate limit disabled successfully"
        };
        Ok(entry("ok", done))
    }

    pub(crate) fn set_time_limit(&mut self, arguments: &Map) -> Result<Value, String> {
        let task = text(arguments, "task_name").ok_or_else(|| missing("task_name"))?;
        if self.decoder.registry.find(&task).is_none() {
            return Err("unknown task".to_owned());
        }
        let seconds = |name: &str| match arguments.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => number(value)
                .filter(|seconds| *seconds >= 0.0)
                .map(Some)
                .ok_or_else(|| format!("ValueError('{name} must be a number of seconds')")),
        };
        let limits = TimeLimits {
            hard: seconds("hard")?,
            soft: seconds("soft")?,
        };
        self.decoder.time_limits.insert(task, limits);
        Ok(entry("ok", "time limits set successfully"))
    }

    pub(crate) fn resize_pool(&mut self, arguments: &Map, direction: i64) -> Result<Value, String> {
        let by = match arguments.get("n") {
            None => 1,
            Some(n) => number(n)
                .filter(|n| *n >= 0.0 && n.fract() == 0.0 && *n <= 65_535.0)
                .ok_or("ValueError('n must be a whole number')")? as i64,
        };
        if self.slots.autoscale().is_some() {
            let name = if direction > 0 { "grow" } else { "shrink" };
            return Err(format!(
                "pool_{name} is not supported with autoscale. Adjust autoscale range instead."
            ));
        }
        let size = self.slots.concurrency() as i64 + direction * by;
        if size < 1 {
            return Err("ValueError('the pool must keep a slot')".to_owned());
        }
        self.set_concurrency(size as usize);
        let done = if direction > 0 {
            "pool will grow"
        } else {
            "pool will shrink"
        };
        Ok(entry("ok", done))
    }

    pub(crate) fn set_autoscale(&mut self, arguments: &Map) -> Result<Value, String> {
        let Some((max, min)) = self.slots.autoscale() else {
            return Err("ValueError('Autoscale not enabled')".to_owned());
        };
        let size = |name: &str, default: usize| match arguments.get(name).and_then(number) {
            Some(size) if (0.0..=65_535.0).contains(&size) => size as usize,
            _ => default,
        };
        let max = size("max", max).max(1);
        let min = size("min", min).clamp(1, max);
        let size = self.slots.set_autoscale(max, min);
        self.set_concurrency(size);
        self.set_prefetch();
        self.scale_up();
        Ok(entry("ok", format!("autoscale now max={max} min={min}")))
    }

    pub(crate) fn set_task_events(&mut self, enabled: bool) -> Value {
        let word = if enabled { "enabled" } else { "disabled" };
        let changed = std::mem::replace(&mut self.decoder.emits_events, enabled) != enabled;
        let already = if changed { "" } else { "already " };
        entry("ok", format!("task events {already}{word}"))
    }

    pub(crate) fn add_consumer(&mut self, arguments: &Map) -> Reply {
        let Some(name) = text(arguments, "queue") else {
            return Reply::Immediate(Err(missing("queue")));
        };
        let done = entry("ok", format!("add consumer {name}"));
        let mut queues = self.connection.queues().iter();
        if queues.any(|known| known.name == name) {
            return Reply::Immediate(Ok(done));
        }
        match self.queue_of(&name, arguments) {
            Ok(queue) => {
                self.connection.add_queue(queue);
                Reply::AfterQueueChange(done)
            }
            Err(error) => Reply::Immediate(Err(error)),
        }
    }

    /// Returns the queue of this name from the settings, with the exchange and
    /// routing key of the command, if there are any.
    pub(crate) fn queue_of(&self, name: &str, arguments: &Map) -> Result<Queue, String> {
        let known = self.executor.messages.sender.queues.find(name);
        let known =
            known.map_err(|error| format!("OperationalError({})", quoted(&error.to_string())))?;
        let mut queue = known.for_consumer();
        if let Some(exchange) = text(arguments, "exchange") {
            let kind = text(arguments, "exchange_type").unwrap_or_else(|| "direct".to_owned());
            let kind = ExchangeKind::named(&kind)
                .ok_or_else(|| format!("ValueError('no exchange type {kind:?}')"))?;
            let key = text(arguments, "routing_key").unwrap_or_else(|| name.to_owned());
            queue = queue.bound_to(Exchange::new(exchange, kind), key);
        }
        Ok(queue)
    }

    pub(crate) fn cancel_consumer(&mut self, arguments: &Map) -> Reply {
        let Some(name) = text(arguments, "queue") else {
            return Reply::Immediate(Err(missing("queue")));
        };
        let done = entry("ok", format!("no longer consuming from {name}"));
        if self.connection.remove_queue(&name) {
            Reply::AfterQueueChange(done)
        } else {
            Reply::Immediate(Ok(done))
        }
    }
}
