//! The deliveries that a worker has in hand.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use celery_protocol::ResultTree;
use slab::Slab;
use tokio::task::AbortHandle;

use crate::boundary::{Consumer, Content, DeliveryTag};
use crate::env::Now;
use crate::execution::{Job, Run};
use crate::worker::delivery::state::Life;
use crate::worker::io::admission::Lock;
use crate::worker::workflow::effect::Dispatch;

/// Names an entry, and tells it from a later one in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    serial: u64,
    index: usize,
}

/// One delivery: its life, and what its steps are made from.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) life: Life,
    pub(crate) tag: DeliveryTag,
    /// By whom it is settled, while he lives.
    pub(crate) consumer: Weak<dyn Consumer>,
    pub(crate) queue: Arc<str>,
    pub(crate) work: Work,
    /// Held while its task has to be the only one.
    pub(crate) lock: Option<Lock>,
    /// Whether it comes back from where it waited for its time.
    pub(crate) was_scheduled: bool,
    /// When its task was started.
    pub(crate) started: Option<Now>,
    /// Ends the task while it runs.
    pub(crate) running: Option<AbortHandle>,
    /// What is being sent for it: kept until it is sent, so that a repeated
    /// attempt sends the same tasks and not others of the same kind.
    pub(crate) letters: Option<Arc<Dispatch>>,
    /// What was sent because of it, which its result names.
    pub(crate) children: Vec<ResultTree>,
}

pub(crate) enum Work {
    Task { job: Arc<Job>, run: Arc<dyn Run> },
    Refused(Box<Content>),
}

/// All of them, by key.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    slab: Slab<(u64, Entry)>,
    next_serial: u64,
    /// Those that go on without their delivery, by the id of their task. Of two
    /// with the same id one is known.
    withdrawn: HashMap<String, Key>,
}

impl Entry {
    pub(crate) fn new(
        life: Life,
        tag: DeliveryTag,
        consumer: Weak<dyn Consumer>,
        queue: Arc<str>,
        work: Work,
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
            Work::Task { job, .. } => job.trail().clone(),
            Work::Refused(_) => Vec::new(),
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

impl Entries {
    pub(crate) fn insert(&mut self, entry: Entry) -> Key {
        let serial = self.next_serial;
        self.next_serial += 1;
        let index = self.slab.insert((serial, entry));
        Key { serial, index }
    }

    pub(crate) fn find(&self, key: Key) -> Option<&Entry> {
        let (serial, entry) = self.slab.get(key.index)?;
        (*serial == key.serial).then_some(entry)
    }

    pub(crate) fn find_mut(&mut self, key: Key) -> Option<&mut Entry> {
        let (serial, entry) = self.slab.get_mut(key.index)?;
        (*serial == key.serial).then_some(entry)
    }

    pub(crate) fn remove(&mut self, key: Key) {
        if self.find(key).is_none() {
            return;
        }
        let (_, entry) = self.slab.remove(key.index);
        if let Work::Task { job, .. } = &entry.work
            && self.withdrawn.get(&job.id) == Some(&key)
        {
            self.withdrawn.remove(&job.id);
        }
    }

    /// Remembers an entry whose delivery was withdrawn, if it goes on without.
    pub(crate) fn note_withdrawn(&mut self, key: Key) {
        let Some(entry) = self.find(key).filter(|entry| entry.life.awaits_return()) else {
            return;
        };
        if let Work::Task { job, .. } = &entry.work {
            let id = job.id.clone();
            self.withdrawn.insert(id, key);
        }
    }

    /// The entry whose delivery this is, come back: the same attempt of the
    /// same task in the same queue. It is given out once.
    pub(crate) fn take_returned(&mut self, job: &Job, queue: &str) -> Option<Key> {
        let key = *self.withdrawn.get(&job.id)?;
        let entry = self.find(key)?;
        let Work::Task { job: held, .. } = &entry.work else {
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
    pub(crate) fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<_> = self
            .slab
            .iter()
            .map(|(index, (serial, _))| Key {
                serial: *serial,
                index,
            })
            .collect();
        keys.sort_unstable();
        keys
    }
}

/// No task outlives its worker.
impl Drop for Entries {
    fn drop(&mut self) {
        for (_, (_, entry)) in &mut self.slab {
            entry.abort();
        }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task { job, .. } => write!(f, "Task({})", job.id),
            Self::Refused(_) => f.write_str("Refused"),
        }
    }
}
