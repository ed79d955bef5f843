//! From what happens to tasks and the worker to the events that tell of it.

use celery_protocol::{Map, Value};

use crate::execution::Job;
use crate::worker::core::describe::{shown, shown_arguments};
use crate::worker::core::failure::FailureInfo;
use crate::worker::delivery::event::{Rejection, TaskEvent};
use crate::worker::driver::{DeliveryKey, Driver, Payload};

/// How this software calls itself.
const SOFTWARE: &str = "rust-celery";

impl Driver {
    /// Tells of a task.
    pub(crate) fn tell(&mut self, key: DeliveryKey, notice: TaskEvent) {
        let Some(entry) = self.entries.find(key) else {
            return;
        };
        let Payload::Task { job, .. } = &entry.work else {
            return;
        };
        let runtime = entry.started.map(|started| {
            let runtime = self.now.instant.saturating_duration_since(started.instant);
            runtime.as_secs_f64()
        });
        let mut fields = of_task(&job.id);
        let kind = match notice {
            // It comes back from where it waited for its time.
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
                describe_mishap(&mut fields, &failure_info);
                "task-failed"
            }
            TaskEvent::Retried(failure_info) => {
                describe_mishap(&mut fields, &failure_info);
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
        self.events.task_event(kind, fields, self.now.wall);
    }

    /// Tells of a task that nobody here can run.
    pub(crate) fn tell_refused(&mut self, refusal: &Rejection) {
        let Some(task) = refusal.task.as_deref().filter(|_| self.decoder.tells) else {
            return;
        };
        let mut fields = of_task(&task.id);
        fields.insert("exception", task.failure_info.exception.to_string());
        self.events.task_event("task-failed", fields, self.now.wall);
    }

    /// Tells of the worker itself, with the numbers that monitors show.
    pub(crate) fn tell_of_worker(&mut self, kind: &str) {
        let Some(interval) = self.settings.heartbeat else {
            return;
        };
        let mut fields = Map::new();
        fields.insert("freq", interval.as_secs_f64());
        fields.insert("active", self.busy as u64);
        fields.insert("processed", self.counters.processed);
        let load = load_average().map(|load| load.map(Value::Float).to_vec());
        fields.insert("loadavg", Value::Array(load.unwrap_or_default()));
        describe_software(&mut fields);
        self.events.worker_event(kind, fields, self.now.wall);
    }

    /// The sign of life that remote control asks for.
    pub(crate) fn beat_once(&mut self) {
        let mut fields = Map::new();
        fields.insert("freq", 5_i64);
        describe_software(&mut fields);
        self.events
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

fn describe_mishap(fields: &mut Map, failure_info: &FailureInfo) {
    fields.insert("exception", failure_info.exception.to_string());
    let traceback = failure_info.traceback.as_deref();
    fields.insert("traceback", traceback.map_or(Value::Null, Value::from));
}

/// The machine's load over 1, 5 and 15 minutes, rounded as by Celery.
fn load_average() -> Option<[f64; 3]> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let mut numbers = text.split(' ').map_while(|number| number.parse().ok());
    Some([numbers.next()?, numbers.next()?, numbers.next()?])
}
