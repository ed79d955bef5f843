//! The table of a worker's deliveries in flight, with their timers: [`InFlight`].
//! Pure.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Weak};
use std::time::Instant;

use celery_protocol::ResultTree;
use slab::Slab;

use crate::boundary::{Consumer, Content, DeliveryTag};
use crate::env::{AbortOnDrop, Now};
use crate::execution::{ErasedTask, Job};
use crate::worker::core::window::{Load, Window};
use crate::worker::delivery::event::{Action, DeliveryEvent};
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
    /// The tags of earlier deliveries of the message. The broker has taken these back, or
    /// it had the message twice.
    pub(crate) replaced: Vec<DeliveryTag>,
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
    /// Deliveries by the hash of their task's id and retries. Of two with the same
    /// hash, the last one is known.
    by_attempt: HashMap<u64, DeliveryKey>,
    /// When deliveries need a [`DeliveryEvent::Tick`]. Superseded times stay: a tick
    /// before the current deadline has no effect.
    timers: BinaryHeap<Reverse<(Instant, DeliveryKey)>>,
    /// A buffer that is reused for each event.
    actions: Vec<Action>,
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
            replaced: Vec::new(),
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

    fn job(&self) -> Option<&Arc<Job>> {
        match &self.payload {
            Payload::Task { job, .. } => Some(job),
            Payload::Rejected(_) => None,
        }
    }

    fn load(&self) -> Load {
        Load {
            is_pending: self.state.is_pending(),
            is_unsettled: self.state.is_unsettled(),
            is_running: self.state.is_running(),
            is_storing: self.state.is_storing(),
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
        let attempt = delivery.job().map(|job| self.attempt(job));
        let index = self.slab.insert((serial, delivery));
        let key = DeliveryKey { serial, index };
        if let Some(attempt) = attempt {
            self.by_attempt.insert(attempt, key);
        }
        key
    }

    fn attempt(&self, job: &Job) -> u64 {
        self.by_attempt.hasher().hash_one((&*job.id, job.retries))
    }

    pub(crate) fn find(&self, key: DeliveryKey) -> Option<&InFlightDelivery> {
        let (serial, delivery) = self.slab.get(key.index)?;
        (*serial == key.serial).then_some(delivery)
    }

    pub(crate) fn find_mut(&mut self, key: DeliveryKey) -> Option<&mut InFlightDelivery> {
        let (serial, delivery) = self.slab.get_mut(key.index)?;
        (*serial == key.serial).then_some(delivery)
    }

    /// Passes an event to the state machine of a delivery, and counts the delivery
    /// anew in `window`. Returns the actions to carry out; none for a delivery that
    /// was removed.
    pub(crate) fn handle(
        &mut self,
        key: DeliveryKey,
        event: DeliveryEvent,
        now: Now,
        window: &mut Window,
    ) -> Vec<Action> {
        let mut actions = std::mem::take(&mut self.actions);
        let Some(delivery) = self.find_mut(key) else {
            return actions;
        };
        if matches!(event, DeliveryEvent::Done | DeliveryEvent::DoneWith(_)) {
            delivery.outgoing = None;
        }
        let before = delivery.load();
        delivery.state.handle(event, now, &mut actions);
        window.changed(before, delivery.load());
        if let Some(time) = delivery.state.timeout() {
            self.timers.push(Reverse((time, key)));
        }
        actions
    }

    /// Takes back the buffer of carried out actions.
    pub(crate) fn reuse(&mut self, actions: Vec<Action>) {
        self.actions = actions;
        self.actions.clear();
    }

    /// Returns when the next timer is due.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((time, _))| *time)
    }

    /// Removes a timer that is due, and returns the delivery that needs a
    /// [`DeliveryEvent::Tick`].
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<DeliveryKey> {
        self.next_timeout().filter(|time| *time <= now)?;
        self.timers.pop().map(|Reverse((_, key))| key)
    }

    /// Removes and returns a delivery.
    pub(crate) fn remove(&mut self, key: DeliveryKey) -> Option<InFlightDelivery> {
        self.find(key)?;
        let (_, delivery) = self.slab.remove(key.index);
        if let Some(attempt) = delivery.job().map(|job| self.attempt(job))
            && self.by_attempt.get(&attempt) == Some(&key)
        {
            self.by_attempt.remove(&attempt);
        }
        Some(delivery)
    }

    /// Gives tag and consumer of a redelivery to the delivery of the same message, if
    /// that is in flight and not settled yet. It is the same message if id, attempt,
    /// body and queue are equal: an id alone says nothing, since a retry and a message
    /// that was sent twice have the same one. Returns the key of the delivery.
    ///
    /// With `leased`, the delivery may not know yet that the broker has taken its
    /// message back.
    pub(crate) fn reattach(
        &mut self,
        job: &Job,
        queue: &str,
        tag: &DeliveryTag,
        consumer: &Weak<dyn Consumer>,
        leased: bool,
    ) -> Option<DeliveryKey> {
        let key = *self.by_attempt.get(&self.attempt(job))?;
        let delivery = self.find_mut(key)?;
        let held = delivery.job()?;
        let is_same = held.id == job.id
            && held.retries == job.retries
            && held.message.body == job.message.body
            && *delivery.queue == *queue;
        let is_open =
            delivery.state.awaits_redelivery() || leased && delivery.state.is_settled_later();
        if !is_same || !is_open {
            return None;
        }
        let replaced = std::mem::replace(&mut delivery.tag, tag.clone());
        delivery.replaced.extend(leased.then_some(replaced));
        delivery.consumer = consumer.clone();
        Some(key)
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

    /// Returns all deliveries in flight.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &InFlightDelivery> {
        self.slab.iter().map(|(_, (_, delivery))| delivery)
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use celery_protocol::Message;

    use super::*;
    use crate::boundary::{BoxFuture, Delivery, ServiceError, Settled, Settlement};
    use crate::worker::delivery::event::{
        Continuations, EffectError, ExecutionPolicy, Outcome, Revocation,
    };

    #[derive(Debug)]
    struct NoConsumer;

    impl Consumer for NoConsumer {
        fn receive(&self, _: usize) -> BoxFuture<'_, Result<Vec<Delivery>, ServiceError>> {
            Box::pin(std::future::pending())
        }

        fn interrupt(&self) {}

        fn settle<'a>(
            &'a self,
            _: &'a [Settlement],
        ) -> BoxFuture<'a, Vec<Result<Settled, ServiceError>>> {
            Box::pin(std::future::pending())
        }

        fn close(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
            Box::pin(std::future::pending())
        }
    }

    fn policy() -> ExecutionPolicy {
        ExecutionPolicy {
            acks_late: false,
            acks_on_failure: true,
            acks_on_timeout: true,
            requeued_when_lost: false,
            stores_result: false,
            stores_errors: false,
            track_started: false,
            emits_events: false,
            checks_admission: false,
            continuations: Continuations::default(),
            eta: None,
            expires: None,
            soft_limit: None,
            hard_limit: Some(Duration::from_secs(10)),
            retries: 0,
            max_retries: None,
            retry_delay: Duration::ZERO,
            autoretry: None,
        }
    }

    struct Table {
        in_flight: InFlight,
        window: Window,
        now: Now,
    }

    impl Table {
        fn new() -> Self {
            Self {
                in_flight: InFlight::default(),
                window: Window::new(2),
                now: Now {
                    wall: UNIX_EPOCH,
                    instant: Instant::now(),
                },
            }
        }

        fn insert(&mut self) -> DeliveryKey {
            let delivery = InFlightDelivery::new(
                DeliveryState::of_task(policy()),
                DeliveryTag::new("tag"),
                Weak::<NoConsumer>::new(),
                "celery".into(),
                Payload::Rejected(Box::new(Content::Message(Message::default()))),
            );
            self.in_flight.insert(delivery)
        }

        /// Returns the number of actions.
        fn handle(&mut self, key: DeliveryKey, event: DeliveryEvent) -> usize {
            let actions = self
                .in_flight
                .handle(key, event, self.now, &mut self.window);
            let count = actions.len();
            self.in_flight.reuse(actions);
            count
        }

        /// Returns the pending deliveries and the room for others with four slots.
        fn counts(&self) -> (usize, usize) {
            let room = self.window.room(4, self.in_flight.len());
            (self.window.pending(), room)
        }
    }

    #[test]
    fn delivery_is_counted_until_it_is_acknowledged_and_ends() {
        let mut table = Table::new();
        let key = table.insert();
        assert_eq!(table.counts(), (0, 8));
        table.handle(key, DeliveryEvent::Arrived);
        table.handle(key, DeliveryEvent::SlotGranted);
        assert_eq!(table.counts(), (1, 7));
        table.handle(key, DeliveryEvent::Done);
        assert_eq!(table.counts(), (1, 8));
        table.handle(key, DeliveryEvent::Returned(Outcome::Value(None)));
        assert_eq!(table.counts(), (0, 8));
    }

    #[test]
    fn event_of_removed_delivery_has_no_effect() {
        let mut table = Table::new();
        let removed = table.insert();
        table.in_flight.remove(removed);
        let later = table.insert();
        assert_ne!(removed, later);
        assert_eq!(table.handle(removed, DeliveryEvent::Arrived), 0);
        assert_eq!(table.counts(), (0, 8));
        assert!(table.in_flight.find(later).is_some());
    }

    #[test]
    fn timers_are_due_in_order() {
        let mut table = Table::new();
        let begin = table.now.instant;
        let keys = [table.insert(), table.insert()];
        for key in keys {
            table.handle(key, DeliveryEvent::Arrived);
            table.handle(key, DeliveryEvent::SlotGranted);
            table.handle(key, DeliveryEvent::Done);
            table.now.instant += Duration::from_secs(1);
        }
        let due = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(table.in_flight.next_timeout(), Some(due(10)));
        assert_eq!(table.in_flight.take_due(due(9)), None);
        assert_eq!(table.in_flight.take_due(due(10)), Some(keys[0]));
        assert_eq!(table.in_flight.take_due(due(10)), None);
        assert_eq!(table.in_flight.take_due(due(11)), Some(keys[1]));
        assert_eq!(table.in_flight.next_timeout(), None);
    }

    #[test]
    fn keys_are_in_order_of_receipt() {
        let mut table = Table::new();
        let first = table.insert();
        let second = table.insert();
        table.in_flight.remove(first);
        let third = table.insert();
        assert_eq!(table.in_flight.keys(), [second, third]);
    }

    #[test]
    fn failed_acknowledgement_sets_a_timer() {
        let mut table = Table::new();
        let key = table.insert();
        table.handle(key, DeliveryEvent::Arrived);
        table.handle(key, DeliveryEvent::Revoked(Revocation::Unstarted));
        assert_eq!(table.counts().0, 0);
        table.handle(key, DeliveryEvent::Failed(EffectError::NotSent));
        assert!(table.in_flight.next_timeout() > Some(table.now.instant));
    }
}
