//! Monitoring: task and worker events, heartbeats, counters.

use std::time::Instant;

use celery_protocol::{Map, Value};

use crate::execution::{FailureInfo, Job};
use crate::logical_clock::LogicalClock;
use crate::worker::core::counters::Counters;
use crate::worker::core::describe::{shown, shown_arguments};
use crate::worker::core::scheduled::Scheduled;
use crate::worker::delivery::event::{Rejection, TaskEvent};
use crate::worker::driver::{DeliveryKey, Driver, Payload};
use crate::worker::io::event_dispatcher::EventDispatcher;

/// What monitors see of a worker.
pub(crate) struct Monitor {
    pub(crate) dispatcher: EventDispatcher,
    pub(crate) logical_clock: LogicalClock,
    pub(crate) counters: Counters,
    /// Deferred tasks, for `inspect scheduled`.
    pub(crate) scheduled: Scheduled,
    /// When the next heartbeat is due; `None` without heartbeats.
    pub(crate) heartbeat_at: Option<Instant>,
}

impl Monitor {
    pub(crate) fn new(
        dispatcher: EventDispatcher,
        logical_clock: LogicalClock,
        heartbeat_at: Option<Instant>,
        now: Instant,
    ) -> Self {
        Self {
            dispatcher,
            logical_clock,
            counters: Counters::new(now),
            scheduled: Scheduled::default(),
            heartbeat_at,
        }
    }
}

/// The name of this software in events (`sw_ident`).
const SOFTWARE: &str = "rust-celery";

impl Driver {
    /// Emits an event of a task.
    pub(crate) fn emit(&mut self, key: DeliveryKey, event: TaskEvent) {
        let Some(entry) = self.in_flight.find(key) else {
            return;
        };
        let Payload::Task { job, .. } = &entry.payload else {
            return;
        };
        let runtime = entry.started.map(|started| {
            let runtime = self.now.instant.saturating_duration_since(started.instant);
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
        self.monitor
            .dispatcher
            .task_event(kind, fields, self.now.wall);
    }

    /// Emits the failure of a task that this worker cannot run.
    pub(crate) fn emit_rejected(&mut self, rejection: &Rejection) {
        let Some(task) = rejection
            .task
            .as_deref()
            .filter(|_| self.decoder.emits_events)
        else {
            return;
        };
        let mut fields = of_task(&task.id);
        fields.insert("exception", task.failure_info.exception.to_string());
        self.monitor
            .dispatcher
            .task_event("task-failed", fields, self.now.wall);
    }

    /// Emits an event of the worker, with the numbers that monitors show.
    pub(crate) fn emit_worker_event(&mut self, kind: &str) {
        let Some(interval) = self.settings.heartbeat else {
            return;
        };
        let mut fields = Map::new();
        fields.insert("freq", interval.as_secs_f64());
        fields.insert("active", self.slots.busy() as u64);
        fields.insert("processed", self.monitor.counters.processed);
        let load = load_average().map(|load| load.map(Value::Float).to_vec());
        fields.insert("loadavg", Value::Array(load.unwrap_or_default()));
        describe_software(&mut fields);
        self.monitor
            .dispatcher
            .worker_event(kind, fields, self.now.wall);
    }

    /// Emits the heartbeat that remote control requested.
    pub(crate) fn send_heartbeat(&mut self) {
        let mut fields = Map::new();
        fields.insert("freq", 5_i64);
        describe_software(&mut fields);
        self.monitor
            .dispatcher
            .worker_event("worker-heartbeat", fields, self.now.wall);
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
