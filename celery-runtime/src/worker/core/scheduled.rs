//! The tasks that were left with the broker until they are due, as far as this
//! worker has seen them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use celery_protocol::{Serializer, Value};

use crate::execution::Job;
use crate::worker::core::describe::describe;

/// Tasks that are remembered; the others are waiting all the same, unseen.
const MOST: usize = 10_000;

/// Where a due task should have come back.
const OVERDUE: Duration = Duration::from_secs(5);

/// For `inspect scheduled` only: what becomes of the tasks does not depend on it.
#[derive(Debug, Default)]
pub(crate) struct Scheduled {
    tasks: HashMap<String, ParkedTask>,
}

#[derive(Debug)]
pub(crate) struct ParkedTask {
    pub(crate) eta: SystemTime,
    /// As JSON, which takes a fraction of the memory.
    request: Box<[u8]>,
}

impl ParkedTask {
    /// The task as `inspect` shows it.
    pub(crate) fn request(&self) -> Value {
        Serializer::Json.decode(&self.request).unwrap_or_default()
    }
}

impl Scheduled {
    pub(crate) fn note(&mut self, job: &Arc<Job>, eta: SystemTime, hostname: &str) {
        if self.tasks.len() < MOST || self.tasks.contains_key(&job.id) {
            let request = Serializer::Json.encode(&describe(job, hostname, None, false));
            let request = request.unwrap_or_default().into_boxed_slice();
            self.tasks
                .insert(job.id.clone(), ParkedTask { eta, request });
        }
    }

    /// Whether the task was waiting, which it does no more.
    pub(crate) fn take(&mut self, id: &str) -> bool {
        !self.tasks.is_empty() && self.tasks.remove(id).is_some()
    }

    pub(crate) fn find(&self, id: &str) -> Option<&ParkedTask> {
        self.tasks.get(id)
    }

    /// Those that wait, the next one first. Who is overdue went elsewhere.
    pub(crate) fn list(&mut self, now: SystemTime) -> Vec<&ParkedTask> {
        self.tasks.retain(|_, later| later.eta + OVERDUE > now);
        let mut tasks: Vec<_> = self.tasks.values().collect();
        tasks.sort_by_key(|later| later.eta);
        tasks
    }
}
