//! What is known of a worker: [`WorkerRecord`].

use std::time::{Duration, SystemTime};

use celery_protocol::{Event, Value};

use crate::events::task::bounded;

/// How often a worker shows that it lives, if it never said so.
const UNKNOWN_FREQUENCY: f64 = 60.0;

/// After how many missed heartbeats a worker counts as gone.
const MISSED: f64 = 2.0;

/// A worker, by its last events.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WorkerRecord {
    /// Its name.
    pub hostname: String,
    /// Its process.
    pub pid: Option<u32>,
    /// Seconds between two heartbeats.
    pub freq: f64,
    /// When it was last heard of; `None` once it went.
    pub last_heard: Option<SystemTime>,
    /// How many tasks it runs.
    pub active: Option<u64>,
    /// How many tasks it took.
    pub processed: Option<u64>,
    /// The load of its machine over 1, 5 and 15 minutes.
    pub loadavg: Option<[f64; 3]>,
    /// Its program, such as `py-celery`.
    pub sw_ident: Option<String>,
    /// Its program's version.
    pub sw_ver: Option<String>,
    /// Its system, such as `Linux`.
    pub sw_sys: Option<String>,
    /// Its logical clock.
    pub clock: u64,
}

impl WorkerRecord {
    pub(super) fn new(hostname: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            pid: None,
            freq: UNKNOWN_FREQUENCY,
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

    /// Whether it was heard of within two heartbeats before `now`, and did not
    /// say that it goes.
    pub fn is_alive(&self, now: SystemTime) -> bool {
        let window = Duration::try_from_secs_f64(self.freq * MISSED).unwrap_or(Duration::MAX);
        self.last_heard
            .is_some_and(|heard| now.duration_since(heard).unwrap_or_default() < window)
    }

    /// It told something, whatever it was.
    pub(super) fn heard(&mut self, event: &Event, now: SystemTime) {
        self.last_heard = Some(self.last_heard.map_or(now, |last| last.max(now)));
        self.clock = self.clock.max(event.clock);
        if event.pid != 0 {
            self.pid = Some(event.pid);
        }
    }

    /// It told about itself. What it left out stays as it was: heartbeats that
    /// were asked for say little.
    pub(super) fn handle(&mut self, event: &Event, now: SystemTime) {
        self.heard(event, now);
        let field = |name| event.fields.get(name);
        let number = |name| field(name).and_then(Value::as_f64);
        let count = |name| field(name).and_then(Value::as_u64);
        let text = |name| field(name).and_then(Value::as_str).map(bounded);
        if let Some(freq) = number("freq").filter(|freq| freq.is_finite() && *freq > 0.0) {
            self.freq = freq;
        }
        self.active = count("active").or(self.active);
        self.processed = count("processed").or(self.processed);
        self.loadavg = field("loadavg").and_then(load).or(self.loadavg);
        for (known, told) in [
            (&mut self.sw_ident, text("sw_ident")),
            (&mut self.sw_ver, text("sw_ver")),
            (&mut self.sw_sys, text("sw_sys")),
        ] {
            if told.is_some() {
                *known = told;
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
