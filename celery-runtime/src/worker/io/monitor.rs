//! What monitors see of a worker: [`Monitor`].

use std::time::{Duration, Instant, SystemTime};

use celery_protocol::{Map, ReplyAddress, Value};

use crate::env::Now;
use crate::execution::{FailureInfo, Job};
use crate::logical_clock::LogicalClock;
use crate::worker::core::counters::Counters;
use crate::worker::core::describe::{shown, shown_arguments};
use crate::worker::core::scheduled::Scheduled;
use crate::worker::delivery::event::{Rejection, TaskEvent};
use crate::worker::delivery::in_flight::{InFlightDelivery, Payload};
use crate::worker::io::event_dispatcher::EventDispatcher;

/// The events, heartbeats and replies of a worker, and the numbers and tasks that
/// `inspect` shows.
pub(crate) struct Monitor {
    dispatcher: EventDispatcher,
    pub(crate) logical_clock: LogicalClock,
    pub(crate) counters: Counters,
    /// Deferred tasks, for `inspect scheduled`.
    pub(crate) scheduled: Scheduled,
    /// The interval of heartbeats; without one the worker sends no events about
    /// itself.
    heartbeat: Option<Duration>,
    /// When the next heartbeat is due.
    heartbeat_at: Option<Instant>,
}

/// The name of this software in events (`sw_ident`).
const SOFTWARE: &str = "rust-celery";

impl Monitor {
    /// `heartbeat` is the interval of heartbeats, of which the first is due now.
    pub(crate) fn new(
        dispatcher: EventDispatcher,
        logical_clock: LogicalClock,
        heartbeat: Option<Duration>,
        now: Instant,
    ) -> Self {
        Self {
            dispatcher,
            logical_clock,
            counters: Counters::new(now),
            scheduled: Scheduled::default(),
            heartbeat,
            heartbeat_at: heartbeat.map(|_| now),
        }
    }

    /// Returns when the next heartbeat is due.
    pub(crate) fn next_heartbeat(&self) -> Option<Instant> {
        self.heartbeat_at
    }

    /// Returns whether a heartbeat is due, and if so, sets the time of the next one.
    pub(crate) fn take_heartbeat(&mut self, now: Instant) -> bool {
        let is_due = self.heartbeat_at.is_some_and(|time| time <= now);
        if is_due {
            self.heartbeat_at = self.heartbeat.map(|interval| now + interval);
        }
        is_due
    }

    /// Sends collected task events.
    pub(crate) fn flush(&mut self) {
        self.dispatcher.flush();
    }

    /// Replies to a control command.
    pub(crate) fn reply(&mut self, address: &ReplyAddress, ticket: Option<String>, value: Value) {
        self.dispatcher.reply(address, ticket, value);
    }

    /// Waits at most `deadline` until all events and replies are published.
    pub(crate) async fn close(self, deadline: Duration) {
        self.dispatcher.close(deadline).await;
    }

    /// Emits an event of the task of a delivery.
    pub(crate) fn task_event(&mut self, entry: &InFlightDelivery, event: TaskEvent, now: Now) {
        let Payload::Task { job, .. } = &entry.payload else {
            return;
        };
        let runtime = entry.started.map(|started| {
            let runtime = now.instant.saturating_duration_since(started.instant);
            runtime.as_secs_f64()
        });
        let mut fields = of_task(&job.id);
        let kind = match event {
            // A deferred task returns.
            TaskEvent::Received if entry.was_scheduled => return,
            TaskEvent::Received => {
                describe_call(&mut fields, job);
                "task-received"
            }
            TaskEvent::Started => "task-started",
            TaskEvent::Succeeded(value) => {
                fields.insert("result", shown(&value));
                fields.insert("runtime", runtime.unwrap_or(0.0));
                "task-succeeded"
            }
            TaskEvent::Failed(failure_info) => {
                describe_failure(&mut fields, &failure_info);
                "task-failed"
            }
            TaskEvent::Retried(failure_info) => {
                describe_failure(&mut fields, &failure_info);
                "task-retried"
            }
            TaskEvent::Rejected { requeue } => {
                fields.insert("requeue", requeue);
                "task-rejected"
            }
            TaskEvent::Revoked {
                signal,
                terminated,
                expired,
            } => {
                fields.insert("terminated", terminated);
                let signum = signal.map_or(Value::Null, |signal| i64::from(signal).into());
                fields.insert("signum", signum);
                fields.insert("expired", expired);
                "task-revoked"
            }
            TaskEvent::Cancelled => "task-cancelled",
        };
        self.dispatcher.task_event(kind, fields, now.wall);
    }

    /// Emits the failure of a task that this worker cannot run.
    pub(crate) fn rejected(&mut self, rejection: &Rejection, now: SystemTime) {
        let Some(task) = rejection.task.as_deref() else {
            return;
        };
        let mut fields = of_task(&task.id);
        fields.insert("exception", task.failure_info.exception.to_string());
        self.dispatcher.task_event("task-failed", fields, now);
    }

    /// Emits an event of the worker, with the numbers that monitors show. `active` is
    /// the number of running tasks.
    pub(crate) fn worker_event(&mut self, kind: &str, active: usize, now: SystemTime) {
        let Some(interval) = self.heartbeat else {
            return;
        };
        let mut fields = Map::new();
        fields.insert("freq", interval.as_secs_f64());
        fields.insert("active", active as u64);
        fields.insert("processed", self.counters.processed);
        let load = load_average().map(|load| load.map(Value::Float).to_vec());
        fields.insert("loadavg", Value::Array(load.unwrap_or_default()));
        describe_software(&mut fields);
        self.dispatcher.worker_event(kind, fields, now);
    }

    /// Emits the heartbeat that remote control requested.
    pub(crate) fn requested_heartbeat(&mut self, now: SystemTime) {
        let mut fields = Map::new();
        fields.insert("freq", 5_i64);
        describe_software(&mut fields);
        self.dispatcher
            .worker_event("worker-heartbeat", fields, now);
    }

    /// Emits an event about an election.
    pub(crate) fn election_event(&mut self, kind: &str, fields: Map, now: SystemTime) {
        self.dispatcher.worker_event(kind, fields, now);
    }
}

fn describe_software(fields: &mut Map) {
    fields.insert("sw_ident", SOFTWARE);
    fields.insert("sw_ver", env!("CARGO_PKG_VERSION"));
    fields.insert("sw_sys", system());
}

fn system() -> &'static str {
    match std::env::consts::OS {
        "linux" => "Linux",
        "macos" => "Darwin",
        "windows" => "Windows",
        other => other,
    }
}

fn of_task(id: &str) -> Map {
    let mut fields = Map::new();
    fields.insert("uuid", id);
    fields
}

fn describe_call(fields: &mut Map, job: &Job) {
    let Ok(headers) = job.headers() else {
        return;
    };
    let (args, kwargs) = shown_arguments(job);
    let text = |text: Option<&str>| text.map_or(Value::Null, Value::from);
    fields.insert("name", headers.shadow.as_deref().unwrap_or(&job.task));
    fields.insert("args", args);
    fields.insert("kwargs", kwargs);
    fields.insert("root_id", text(headers.root_id.as_deref()));
    fields.insert("parent_id", text(headers.parent_id.as_deref()));
    fields.insert("retries", i64::from(job.retries));
    fields.insert("eta", text(headers.eta.as_deref()));
    fields.insert("expires", text(headers.expires.as_deref()));
}

fn describe_failure(fields: &mut Map, failure_info: &FailureInfo) {
    fields.insert("exception", failure_info.exception.to_string());
    let traceback = failure_info.traceback.as_deref();
    fields.insert("traceback", traceback.map_or(Value::Null, Value::from));
}

/// Returns the machine's load over 1, 5 and 15 minutes, rounded as by Celery.
fn load_average() -> Option<[f64; 3]> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let mut numbers = text.split(' ').map_while(|number| number.parse().ok());
    Some([numbers.next()?, numbers.next()?, numbers.next()?])
}
