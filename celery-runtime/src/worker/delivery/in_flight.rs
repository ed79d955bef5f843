//! The deliveries that a worker has in hand.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use celery_protocol::ResultTree;
use slab::Slab;
use tokio::task::AbortHandle;

use crate::boundary::{Consumer, Content, DeliveryTag};
use crate::env::Now;
use crate::execution::{ErasedTask, Job};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::workflow::effect::OutgoingBatch;

/// Releases the lock of a unique task when it is dropped.
pub(crate) type LockGuard = Box<dyn fmt::Debug + Send>;

/// Names an entry, and tells it from a later one in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeliveryKey {
    serial: u64,
    index: usize,
}

/// One delivery: its life, and what its steps are made from.
#[derive(Debug)]
pub(crate) struct InFlightDelivery {
    pub(crate) life: DeliveryState,
    pub(crate) tag: DeliveryTag,
    /// By whom it is settled, while he lives.
    pub(crate) consumer: Weak<dyn Consumer>,
    pub(crate) queue: Arc<str>,
    pub(crate) work: Payload,
    /// Held while its task has to be the only one.
    pub(crate) lock: Option<LockGuard>,
    /// Whether it comes back from where it waited for its time.
    pub(crate) was_scheduled: bool,
    /// When its task was started.
    pub(crate) started: Option<Now>,
    /// Ends the task while it runs.
    pub(crate) running: Option<AbortHandle>,
    /// What is being sent for it: kept until it is sent, so that a repeated
    /// attempt sends the same tasks and not others of the same kind.
    pub(crate) letters: Option<Arc<OutgoingBatch>>,
    /// What was sent because of it, which its result names.
    pub(crate) children: Vec<ResultTree>,
}

pub(crate) enum Payload {
    Task {
        job: Arc<Job>,
        run: Arc<dyn ErasedTask>,
    },
    Refused(Box<Content>),
}

/// All of them, by key.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    slab: Slab<(u64, InFlightDelivery)>,
    next_serial: u64,
    /// Those that go on without their delivery, by the id of their task. Of two
    /// with the same id one is known.
    withdrawn: HashMap<String, DeliveryKey>,
}

impl InFlightDelivery {
    pub(crate) fn new(
        life: DeliveryState,
        tag: DeliveryTag,
        consumer: Weak<dyn Consumer>,
        queue: Arc<str>,
        work: Payload,
    ) -> Self {
        Self {
            life,
            tag,
            consumer,
            queue,
            work,
            lock: None,
            was_scheduled: false,
            started: None,
            running: None,
            letters: None,
            children: Vec::new(),
        }
    }

    /// What its task has sent, and what was sent when that had ended.
    pub(crate) fn all_children(&self) -> Vec<ResultTree> {
        let mut children = match &self.work {
            Payload::Task { job, .. } => job.children().clone(),
            Payload::Refused(_) => Vec::new(),
        };
        children.extend_from_slice(&self.children);
        children
    }

    /// Ends the task, if one runs.
    pub(crate) fn abort(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }
}

impl InFlight {
    pub(crate) fn insert(&mut self, entry: InFlightDelivery) -> DeliveryKey {
        let serial = self.next_serial;
        self.next_serial += 1;
        let index = self.slab.insert((serial, entry));
        DeliveryKey { serial, index }
    }

    pub(crate) fn find(&self, key: DeliveryKey) -> Option<&InFlightDelivery> {
        let (serial, entry) = self.slab.get(key.index)?;
        (*serial == key.serial).then_some(entry)
    }

    pub(crate) fn find_mut(&mut self, key: DeliveryKey) -> Option<&mut InFlightDelivery> {
        let (serial, entry) = self.slab.get_mut(key.index)?;
        (*serial == key.serial).then_some(entry)
    }

    pub(crate) fn remove(&mut self, key: DeliveryKey) {
        if self.find(key).is_none() {
            return;
        }
        let (_, entry) = self.slab.remove(key.index);
        if let Payload::Task { job, .. } = &entry.work
            && self.withdrawn.get(&job.id) == Some(&key)
        {
            self.withdrawn.remove(&job.id);
        }
    }

    /// Remembers an entry whose delivery was withdrawn, if it goes on without.
    pub(crate) fn note_withdrawn(&mut self, key: DeliveryKey) {
        let Some(entry) = self.find(key).filter(|entry| entry.life.awaits_return()) else {
            return;
        };
        if let Payload::Task { job, .. } = &entry.work {
            let id = job.id.clone();
            self.withdrawn.insert(id, key);
        }
    }

    /// The entry whose delivery this is, come back: the same attempt of the
    /// same task in the same queue. It is given out once.
    pub(crate) fn take_returned(&mut self, job: &Job, queue: &str) -> Option<DeliveryKey> {
        let key = *self.withdrawn.get(&job.id)?;
        let entry = self.find(key)?;
        let Payload::Task { job: held, .. } = &entry.work else {
            return None;
        };
        let is_same = held.retries == job.retries && *entry.queue == *queue;
        (is_same && entry.life.awaits_return()).then(|| {
            self.withdrawn.remove(&job.id);
            key
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Whether one of them is to be settled by this consumer.
    pub(crate) fn any_of(&self, consumer: &Arc<dyn Consumer>) -> bool {
        let consumer = Arc::downgrade(consumer);
        let mut entries = self.slab.iter();
        entries.any(|(_, (_, entry))| Weak::ptr_eq(&entry.consumer, &consumer))
    }

    /// All keys, in the order in which the deliveries were taken.
    pub(crate) fn keys(&self) -> Vec<DeliveryKey> {
        let mut keys: Vec<_> = self
            .slab
            .iter()
            .map(|(index, (serial, _))| DeliveryKey {
                serial: *serial,
                index,
            })
            .collect();
        keys.sort_unstable();
        keys
    }
}

/// No task outlives its worker.
impl Drop for InFlight {
    fn drop(&mut self) {
        for (_, (_, entry)) in &mut self.slab {
            entry.abort();
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task { job, .. } => write!(f, "Task({})", job.id),
            Self::Refused(_) => f.write_str("Refused"),
        }
    }
}
