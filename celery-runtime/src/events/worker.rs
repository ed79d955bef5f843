//! The state of one worker according to its events: [`WorkerRecord`].

use std::time::{Duration, SystemTime};

use celery_protocol::{Event, Value};

use crate::events::task::truncated;

/// The assumed seconds between heartbeats of a worker that has not reported them.
const DEFAULT_FREQUENCY: f64 = 60.0;

/// The number of missed heartbeats after which a worker counts as offline.
const MISSED_HEARTBEATS: f64 = 2.0;

/// A worker according to its last events.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WorkerRecord {
    /// Its name.
    pub hostname: String,
    /// Its process id.
    pub pid: Option<u32>,
    /// Seconds between two heartbeats.
    pub freq: f64,
    /// When its last event arrived; `None` after it has gone offline.
    pub last_heard: Option<SystemTime>,
    /// The number of tasks that it runs.
    pub active: Option<u64>,
    /// The number of tasks that it has processed.
    pub processed: Option<u64>,
    /// The load average of its machine over 1, 5 and 15 minutes.
    pub loadavg: Option<[f64; 3]>,
    /// The name of its software, such as `py-celery`.
    pub sw_ident: Option<String>,
    /// The version of its software.
    pub sw_ver: Option<String>,
    /// Its operating system, such as `Linux`.
    pub sw_sys: Option<String>,
    /// Its logical clock.
    pub clock: u64,
}

impl WorkerRecord {
    pub(super) fn new(hostname: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            pid: None,
            freq: DEFAULT_FREQUENCY,
            last_heard: None,
            active: None,
            processed: None,
            loadavg: None,
            sw_ident: None,
            sw_ver: None,
            sw_sys: None,
            clock: 0,
        }
    }

    /// Returns whether an event arrived within two heartbeat intervals before `now`,
    /// and the worker has not gone offline.
    pub fn is_alive(&self, now: SystemTime) -> bool {
        let window =
            Duration::try_from_secs_f64(self.freq * MISSED_HEARTBEATS).unwrap_or(Duration::MAX);
        self.last_heard
            .is_some_and(|last| now.duration_since(last).unwrap_or_default() < window)
    }

    /// Records that an event of any kind arrived.
    pub(super) fn touch(&mut self, event: &Event, now: SystemTime) {
        self.last_heard = Some(self.last_heard.map_or(now, |last| last.max(now)));
        self.clock = self.clock.max(event.clock);
        if event.pid != 0 {
            self.pid = Some(event.pid);
        }
    }

    /// Applies an event about the worker. Fields that are missing keep their values:
    /// requested heartbeats contain only the frequency.
    pub(super) fn handle(&mut self, event: &Event, now: SystemTime) {
        self.touch(event, now);
        let field = |name| event.fields.get(name);
        let number = |name| field(name).and_then(Value::as_f64);
        let count = |name| field(name).and_then(Value::as_u64);
        let text = |name| field(name).and_then(Value::as_str).map(truncated);
        if let Some(freq) = number("freq").filter(|freq| freq.is_finite() && *freq > 0.0) {
            self.freq = freq;
        }
        self.active = count("active").or(self.active);
        self.processed = count("processed").or(self.processed);
        self.loadavg = field("loadavg").and_then(load).or(self.loadavg);
        for (target, value) in [
            (&mut self.sw_ident, text("sw_ident")),
            (&mut self.sw_ver, text("sw_ver")),
            (&mut self.sw_sys, text("sw_sys")),
        ] {
            if value.is_some() {
                *target = value;
            }
        }
        if event.kind == "worker-offline" {
            self.last_heard = None;
        }
    }
}

fn load(value: &Value) -> Option<[f64; 3]> {
    match value.as_array()? {
        [one, five, fifteen] => Some([one.as_f64()?, five.as_f64()?, fifteen.as_f64()?]),
        _ => None,
    }
}
