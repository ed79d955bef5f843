//! The table of a worker's deliveries in flight, owned by the driver.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use celery_protocol::ResultTree;
use slab::Slab;

use crate::boundary::{Consumer, Content, DeliveryTag};
use crate::env::{AbortOnDrop, Now};
use crate::execution::{ErasedTask, Job};
use crate::worker::delivery::state::DeliveryState;
use crate::worker::workflow::effect::OutgoingBatch;

/// Releases the lock of a unique task when it is dropped.
pub(crate) type LockGuard = Box<dyn fmt::Debug + Send>;

/// The key of a delivery in [`InFlight`]. The serial number distinguishes it from a
/// later delivery at the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeliveryKey {
    serial: u64,
    index: usize,
}

/// One delivery: its state machine, and the data for its effects.
#[derive(Debug)]
pub(crate) struct InFlightDelivery {
    pub(crate) state: DeliveryState,
    pub(crate) tag: DeliveryTag,
    /// The consumer that received the delivery, to settle it while that is open.
    pub(crate) consumer: Weak<dyn Consumer>,
    pub(crate) queue: Arc<str>,
    pub(crate) payload: Payload,
    /// The lock of a unique task.
    pub(crate) lock: Option<LockGuard>,
    /// Whether this worker deferred the task before, and so has emitted `task-received`
    /// already.
    pub(crate) was_scheduled: bool,
    /// When the task started.
    pub(crate) started: Option<Now>,
    /// The running task; none outlives its delivery and so its worker.
    pub(crate) running: Option<AbortOnDrop>,
    /// The messages of the current effect. They are kept until they are published, so
    /// that a repeated attempt sends tasks with the same ids.
    pub(crate) outgoing: Option<Arc<OutgoingBatch>>,
    /// The results of the callbacks and chain steps that were sent after the task.
    pub(crate) children: Vec<ResultTree>,
}

/// What a delivery contains.
pub(crate) enum Payload {
    Task {
        job: Arc<Job>,
        run: Arc<dyn ErasedTask>,
    },
    /// A message that this worker cannot run.
    Rejected(Box<Content>),
}

/// All deliveries in flight, by key.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    slab: Slab<(u64, InFlightDelivery)>,
    next_serial: u64,
    /// Deliveries whose connection is lost and whose task continues, by task id. Of two
    /// with the same id, the last one is known.
    invalidated: HashMap<String, DeliveryKey>,
}

impl InFlightDelivery {
    pub(crate) fn new(
        state: DeliveryState,
        tag: DeliveryTag,
        consumer: Weak<dyn Consumer>,
        queue: Arc<str>,
        payload: Payload,
    ) -> Self {
        Self {
            state,
            tag,
            consumer,
            queue,
            payload,
            lock: None,
            was_scheduled: false,
            started: None,
            running: None,
            outgoing: None,
            children: Vec::new(),
        }
    }

    /// Returns the results of the tasks that the task sent itself, and of those sent
    /// after its end.
    pub(crate) fn all_children(&self) -> Vec<ResultTree> {
        let mut children = match &self.payload {
            Payload::Task { job, .. } => job.children().clone(),
            Payload::Rejected(_) => Vec::new(),
        };
        children.extend_from_slice(&self.children);
        children
    }
}

impl InFlight {
    pub(crate) fn insert(&mut self, delivery: InFlightDelivery) -> DeliveryKey {
        let serial = self.next_serial;
        self.next_serial += 1;
        let index = self.slab.insert((serial, delivery));
        DeliveryKey { serial, index }
    }

    pub(crate) fn find(&self, key: DeliveryKey) -> Option<&InFlightDelivery> {
        let (serial, delivery) = self.slab.get(key.index)?;
        (*serial == key.serial).then_some(delivery)
    }

    pub(crate) fn find_mut(&mut self, key: DeliveryKey) -> Option<&mut InFlightDelivery> {
        let (serial, delivery) = self.slab.get_mut(key.index)?;
        (*serial == key.serial).then_some(delivery)
    }

    pub(crate) fn remove(&mut self, key: DeliveryKey) {
        if self.find(key).is_none() {
            return;
        }
        let (_, delivery) = self.slab.remove(key.index);
        if let Payload::Task { job, .. } = &delivery.payload
            && self.invalidated.get(&job.id) == Some(&key)
        {
            self.invalidated.remove(&job.id);
        }
    }

    /// Records a delivery whose connection is lost, if its task continues.
    pub(crate) fn record_invalidated(&mut self, key: DeliveryKey) {
        let Some(delivery) = self
            .find(key)
            .filter(|delivery| delivery.state.awaits_redelivery())
        else {
            return;
        };
        if let Payload::Task { job, .. } = &delivery.payload {
            let id = job.id.clone();
            self.invalidated.insert(id, key);
        }
    }

    /// Finds the recorded delivery that a redelivery belongs to: that of the same
    /// attempt of the same task in the same queue. It is returned once.
    pub(crate) fn take_redelivered(&mut self, job: &Job, queue: &str) -> Option<DeliveryKey> {
        let key = *self.invalidated.get(&job.id)?;
        let delivery = self.find(key)?;
        let Payload::Task { job: held, .. } = &delivery.payload else {
            return None;
        };
        let is_same = held.retries == job.retries && *delivery.queue == *queue;
        (is_same && delivery.state.awaits_redelivery()).then(|| {
            self.invalidated.remove(&job.id);
            key
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Returns whether a delivery was received by this consumer.
    pub(crate) fn any_of(&self, consumer: &Arc<dyn Consumer>) -> bool {
        let consumer = Arc::downgrade(consumer);
        let mut deliveries = self.slab.iter();
        deliveries.any(|(_, (_, delivery))| Weak::ptr_eq(&delivery.consumer, &consumer))
    }

    /// Returns all keys, in the order in which the deliveries were received.
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

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task { job, .. } => write!(f, "Task({})", job.id),
            Self::Rejected(_) => f.write_str("Rejected"),
        }
    }
}
