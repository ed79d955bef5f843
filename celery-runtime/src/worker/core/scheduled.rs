//! The deferred tasks that this worker has received, for `inspect scheduled`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use celery_protocol::{Serializer, Value};

use crate::execution::Job;
use crate::worker::core::describe::describe;

/// The maximum number of listed tasks. Further ones are deferred, but not listed.
const MAX_TASKS: usize = 10_000;

/// How long after its ETA a task is taken to be delivered to another worker.
const OVERDUE_AFTER: Duration = Duration::from_secs(5);

/// The deferred tasks, by id. Only `inspect scheduled`, `query_task` and the event
/// `task-received` depend on it.
#[derive(Debug, Default)]
pub(crate) struct Scheduled {
    tasks: HashMap<String, DeferredTask>,
}

#[derive(Debug)]
pub(crate) struct DeferredTask {
    pub(crate) eta: SystemTime,
    /// Encoded as JSON, which takes a fraction of the memory of a [`Value`].
    request: Box<[u8]>,
}

impl DeferredTask {
    /// Returns the task in the form of `inspect`.
    pub(crate) fn request(&self) -> Value {
        Serializer::Json.decode(&self.request).unwrap_or_default()
    }
}

impl Scheduled {
    /// Adds a task that is deferred to `eta`, unless the list is full.
    pub(crate) fn insert(&mut self, job: &Arc<Job>, eta: SystemTime, hostname: &str) {
        if self.tasks.len() < MAX_TASKS || self.tasks.contains_key(&job.id) {
            let request = Serializer::Json.encode(&describe(job, hostname, None, false));
            let request = request.unwrap_or_default().into_boxed_slice();
            self.tasks
                .insert(job.id.clone(), DeferredTask { eta, request });
        }
    }

    /// Removes a task. Returns whether it was listed.
    pub(crate) fn remove(&mut self, id: &str) -> bool {
        !self.tasks.is_empty() && self.tasks.remove(id).is_some()
    }

    pub(crate) fn find(&self, id: &str) -> Option<&DeferredTask> {
        self.tasks.get(id)
    }

    /// Returns the tasks by ETA, and removes the overdue ones.
    pub(crate) fn list(&mut self, now: SystemTime) -> Vec<&DeferredTask> {
        self.tasks.retain(|_, task| task.eta + OVERDUE_AFTER > now);
        let mut tasks: Vec<_> = self.tasks.values().collect();
        tasks.sort_by_key(|task| task.eta);
        tasks
    }
}
