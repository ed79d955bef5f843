//! The state of workers and tasks according to their events: [`ClusterState`].

use std::time::SystemTime;

use celery_protocol::{Event, State};

use crate::events::lru_table::LruTable;
use crate::events::rates::{EventRates, Meter};
use crate::events::task::{TaskRecord, state};
use crate::events::worker::WorkerRecord;

/// Most workers and tasks that are kept, as in Celery.
const MAX_WORKERS: usize = 5_000;
const MAX_TASKS: usize = 10_000;

/// Most bytes in a worker's name or a task's id; longer ones are ignored.
const MAX_NAME_LENGTH: usize = 1_024;

/// The state of workers and tasks according to their events, like Celery's
/// `celery.events.state.State`.
///
/// It does no I/O and reads no clock: `now` is an argument. The least recently
/// updated entries are evicted beyond 5,000 workers and, by default, 10,000 tasks.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use celery_runtime::{ClusterState, Event};
///
/// let mut cluster = ClusterState::new();
/// let mut online = Event::new("worker-online", "images@host");
/// online.fields.insert("freq", 2.0);
/// let now = SystemTime::now();
/// cluster.handle(&online, now);
/// assert_eq!(cluster.alive(now).count(), 1);
/// assert_eq!(cluster.alive(now + Duration::from_secs(4)).count(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct ClusterState {
    workers: LruTable<WorkerRecord>,
    tasks: LruTable<TaskRecord>,
    meter: Meter,
    events: u64,
}

impl ClusterState {
    /// Creates an empty state for up to 10,000 tasks.
    pub fn new() -> Self {
        Self::with_tasks(MAX_TASKS)
    }

    /// Creates an empty state for up to `capacity` tasks.
    pub fn with_tasks(capacity: usize) -> Self {
        Self {
            workers: LruTable::new(MAX_WORKERS),
            tasks: LruTable::new(capacity),
            meter: Meter::default(),
            events: 0,
        }
    }

    /// Applies an event that arrived at `now`. Events other than `worker-*` and
    /// `task-*` are only counted.
    pub fn handle(&mut self, event: &Event, now: SystemTime) {
        self.events += 1;
        let group = event.kind.split('-').next().unwrap_or_default();
        match (group, event.task_id()) {
            ("worker", _) => {
                if let Some(worker) = self.worker_of(event) {
                    worker.handle(event, now);
                }
            }
            ("task", Some(id)) if id.len() <= MAX_NAME_LENGTH => {
                let from_worker = event.kind != "task-sent";
                if from_worker && let Some(worker) = self.worker_of(event) {
                    worker.touch(event, now);
                }
                let task = self.tasks.touch(id, || TaskRecord::new(id));
                task.handle(event);
                self.meter.count(&state(&event.kind), now);
            }
            _ => {}
        }
    }

    /// Returns the worker of this name.
    pub fn worker(&self, hostname: &str) -> Option<&WorkerRecord> {
        self.workers.get(hostname)
    }

    /// Iterates over all workers, including those that are offline; the most recently
    /// updated first.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.workers.iter()
    }

    /// Iterates over the workers that are alive at `now`; see
    /// [`WorkerRecord::is_alive`].
    pub fn alive(&self, now: SystemTime) -> impl Iterator<Item = &WorkerRecord> {
        self.workers().filter(move |worker| worker.is_alive(now))
    }

    /// Returns the task with this id.
    pub fn task(&self, id: &str) -> Option<&TaskRecord> {
        self.tasks.get(id)
    }

    /// Iterates over all tasks, the most recently updated first.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskRecord> {
        self.tasks.iter()
    }

    /// Iterates over the tasks in a state, the most recently updated first.
    pub fn tasks_in(&self, state: &State) -> impl Iterator<Item = &TaskRecord> {
        self.tasks().filter(move |task| task.state == *state)
    }

    /// Iterates over the tasks of a worker, the most recently updated first.
    pub fn tasks_of(&self, hostname: &str) -> impl Iterator<Item = &TaskRecord> {
        self.tasks()
            .filter(move |task| task.worker.as_deref() == Some(hostname))
    }

    /// Iterates over the tasks of this name, the most recently updated first.
    pub fn tasks_named(&self, name: &str) -> impl Iterator<Item = &TaskRecord> {
        self.tasks()
            .filter(move |task| task.name.as_deref() == Some(name))
    }

    /// Returns the number of events of all kinds.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Returns the rates at which tasks reached each state in the minute before `now`.
    pub fn rates(&self, now: SystemTime) -> EventRates {
        self.meter.rates(now)
    }

    /// Returns the worker that sent the event; `None` if its name is empty or too
    /// long.
    fn worker_of(&mut self, event: &Event) -> Option<&mut WorkerRecord> {
        let name = event.hostname.as_str();
        if name.is_empty() || name.len() > MAX_NAME_LENGTH {
            return None;
        }
        Some(self.workers.touch(name, || WorkerRecord::new(name)))
    }
}

impl Default for ClusterState {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use celery_protocol::Value;
    use proptest::prelude::*;

    use super::*;

    fn event(kind: &str, fields: &[(&str, Value)]) -> Event {
        let mut event = Event::new(kind, "w@h");
        for (name, value) in fields {
            event.fields.insert(*name, value.clone());
        }
        event
    }

    fn task(kind: &str, at: f64, fields: &[(&str, Value)]) -> Event {
        let mut event = event(kind, fields);
        event.fields.insert("uuid", "id-1");
        event.timestamp = at;
        event
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn cluster_after(events: &[Event]) -> ClusterState {
        let mut cluster = ClusterState::new();
        for event in events {
            cluster.handle(event, now());
        }
        cluster
    }

    #[test]
    fn worker_is_alive_for_two_heartbeats() {
        let online = event(
            "worker-online",
            &[
                ("freq", 2.0.into()),
                ("active", 1.into()),
                ("processed", 7.into()),
                ("loadavg", Value::from(vec![0.5, 1.0, 2.0])),
                ("sw_ident", "py-celery".into()),
            ],
        );
        let mut cluster = cluster_after(&[online]);
        let later = |seconds| now() + Duration::from_millis(seconds);
        assert!(cluster.worker("w@h").unwrap().is_alive(later(3_999)));
        assert!(!cluster.worker("w@h").unwrap().is_alive(later(4_000)));
        // A requested heartbeat contains only the frequency.
        let requested = event("worker-heartbeat", &[("freq", 5.into())]);
        cluster.handle(&requested, later(3_000));
        let worker = cluster.worker("w@h").unwrap();
        assert!(worker.is_alive(later(12_999)) && !worker.is_alive(later(13_000)));
        assert_eq!((worker.active, worker.processed), (Some(1), Some(7)));
        assert_eq!(worker.loadavg, Some([0.5, 1.0, 2.0]));
        assert_eq!(worker.sw_ident.as_deref(), Some("py-celery"));
        cluster.handle(&event("worker-offline", &[]), later(3_500));
        assert_eq!(cluster.alive(later(3_500)).count(), 0);
        assert_eq!(cluster.workers().count(), 1);
    }

    #[test]
    fn task_event_shows_that_its_worker_is_alive() {
        let cluster = cluster_after(&[task("task-started", 1.0, &[])]);
        assert_eq!(cluster.alive(now()).count(), 1);
        let mut sent = task("task-sent", 1.0, &[]);
        sent.hostname = "gen1@client".into();
        let cluster = cluster_after(&[sent]);
        assert_eq!(cluster.workers().count(), 0, "a client is not a worker");
        let client = cluster.task("id-1").unwrap().client.as_deref();
        assert_eq!(client, Some("gen1@client"));
    }

    #[test]
    fn malformed_events_are_tolerated() {
        let odd = [
            event("task-started", &[]),
            event("worker-heartbeat", &[("freq", f64::NAN.into())]),
            event("worker-heartbeat", &[("freq", (-1.0).into())]),
            event("worker-heartbeat", &[("loadavg", 1.into())]),
            event("", &[]),
            event("custom", &[("uuid", 1.into())]),
            Event::new("worker-online", ""),
            task("task-", f64::INFINITY, &[("name", 1.into())]),
            task("task-cancelled", 0.0, &[]),
        ];
        let cluster = cluster_after(&odd);
        assert_eq!(cluster.events(), odd.len() as u64);
        assert_eq!((cluster.workers().count(), cluster.tasks().count()), (1, 1));
        let state = &cluster.task("id-1").unwrap().state;
        assert_eq!(state.name(), "CANCELLED");
        assert!(cluster.alive(now()).count() == 1);
    }

    #[test]
    fn late_received_event_adds_fields_and_keeps_the_state() {
        let cluster = cluster_after(&[
            task(
                "task-succeeded",
                3.0,
                &[("result", "4".into()), ("runtime", 0.5.into())],
            ),
            task("task-started", 2.0, &[]),
            task(
                "task-received",
                1.0,
                &[
                    ("name", "add".into()),
                    ("args", "(2, 2)".into()),
                    ("retries", 0.into()),
                    ("eta", Value::Null),
                    ("result", "ignored".into()),
                ],
            ),
        ]);
        let found = cluster.task("id-1").unwrap();
        assert_eq!(
            (&found.state, found.timestamp),
            (&State::Success, Some(3.0))
        );
        assert_eq!(found.result.as_deref(), Some("4"));
        assert_eq!(found.args.as_deref(), Some("(2, 2)"));
        assert_eq!((found.received, found.started), (Some(1.0), Some(2.0)));
        assert_eq!((found.runtime, found.retries), (Some(0.5), Some(0)));
        assert_eq!(cluster.tasks_named("add").count(), 1);
        assert_eq!(cluster.tasks_of("w@h").count(), 1);
        assert_eq!(cluster.tasks_in(&State::Success).count(), 1);
    }

    #[test]
    fn retried_task_starts_a_new_lifecycle() {
        let mut cluster = cluster_after(&[
            task("task-started", 1.0, &[]),
            task("task-retried", 2.0, &[("exception", "None".into())]),
        ]);
        let state = |cluster: &ClusterState| cluster.task("id-1").unwrap().state.clone();
        assert_eq!(state(&cluster), State::Retry);
        cluster.handle(&task("task-received", 3.0, &[]), now());
        assert_eq!(state(&cluster), State::Received);
        cluster.handle(&task("task-started", 4.0, &[]), now());
        assert_eq!(state(&cluster), State::Started);
        cluster.handle(&task("task-retried", 5.0, &[]), now());
        assert_eq!(state(&cluster), State::Retry);
    }

    #[test]
    fn tables_are_bounded_and_texts_truncated() {
        let mut cluster = ClusterState::with_tasks(10);
        for number in 0..100 {
            let mut event = task(
                "task-received",
                0.0,
                &[("args", "é".repeat(1 << 20).into())],
            );
            event.fields.insert("uuid", number.to_string());
            cluster.handle(&event, now());
        }
        assert_eq!(cluster.tasks().count(), 10);
        assert_eq!(cluster.tasks().next().unwrap().id, "99");
        let longest = cluster
            .tasks()
            .map(|task| task.args.as_ref().unwrap().len());
        assert_eq!(longest.max(), Some(16 << 10));
        assert!((cluster.rates(now()).received - 100.0).abs() < f64::EPSILON);
    }

    /// The events of one task without a retry.
    fn lifecycle() -> Vec<Event> {
        vec![
            task("task-sent", 1.0, &[("queue", "celery".into())]),
            task(
                "task-received",
                2.0,
                &[("name", "add".into()), ("args", "(1,)".into())],
            ),
            task("task-started", 3.0, &[]),
            task("task-succeeded", 4.0, &[("result", "1".into())]),
        ]
    }

    proptest! {
        #[test]
        fn order_of_events_does_not_matter(
            order in Just(lifecycle()).prop_shuffle(),
            again in prop::collection::vec(0usize..4, 0..6),
        ) {
            let mut events = order;
            // Some events arrive twice.
            events.extend(again.into_iter().map(|which| lifecycle()[which].clone()));
            let mut expected = cluster_after(&lifecycle());
            let found = cluster_after(&events);
            expected.events = found.events;
            prop_assert_eq!(found.task("id-1"), expected.task("id-1"));
        }

        #[test]
        fn arbitrary_event_does_not_panic(
            kind in "(worker|task|x)-[a-z]{0,9}|.{0,5}",
            hostname in ".{0,5}",
            timestamp in any::<f64>(),
            freq in any::<f64>(),
            seconds in 0u64..4_000_000_000,
        ) {
            let mut event = task(&kind, timestamp, &[("freq", freq.into())]);
            event.hostname = hostname;
            let mut cluster = ClusterState::with_tasks(1);
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            cluster.handle(&event, now);
            cluster.handle(&event, UNIX_EPOCH);
            let _ = (cluster.alive(now).count(), cluster.rates(now));
            prop_assert!(cluster.tasks().count() <= 1);
        }
    }
}
