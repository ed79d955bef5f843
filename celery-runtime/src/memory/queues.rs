//! The queues of the in-memory broker and its unsettled deliveries. Pure: the time
//! is an argument.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use celery_protocol::Message;

use crate::boundary::{Delivery, DeliveryTag, QueueEnd, Settled, Settlement};

/// The number of priorities; 0 is delivered first, as on Redis.
const PRIORITY_COUNT: usize = 10;

/// The waiting, the unsettled and the deferred messages of all queues.
#[derive(Debug, Default)]
pub(super) struct MessageQueues {
    queues: HashMap<Arc<str>, [VecDeque<QueuedMessage>; PRIORITY_COUNT]>,
    unsettled: HashMap<DeliveryTag, UnsettledDelivery>,
    deferred: BTreeMap<(SystemTime, u64), (Arc<str>, QueuedMessage)>,
    /// The last number given to a tag or a deferred message.
    last_number: u64,
}

/// A message with the number of its earlier deliveries.
#[derive(Debug)]
struct QueuedMessage {
    message: Message,
    deliveries: u32,
}

/// A message that a consumer holds.
#[derive(Debug)]
struct UnsettledDelivery {
    consumer: u64,
    queue: Arc<str>,
    queued: QueuedMessage,
}

impl MessageQueues {
    pub(super) fn push(&mut self, queue: &str, message: Message) {
        let queued = QueuedMessage {
            message,
            deliveries: 0,
        };
        self.insert(queue.into(), queued, QueueEnd::Tail);
    }

    /// Delivers up to `max` messages, by priority and within one priority in turn
    /// from each queue, beginning with the first.
    pub(super) fn take(
        &mut self,
        consumer: u64,
        queues: &[Arc<str>],
        max: usize,
        now: SystemTime,
    ) -> Vec<Delivery> {
        self.requeue_due(now);
        let mut taken = Vec::new();
        for priority in 0..PRIORITY_COUNT {
            let mut found = true;
            while found {
                found = false;
                for queue in queues {
                    if taken.len() == max {
                        return taken;
                    }
                    let lists = self.queues.get_mut(queue);
                    let Some(queued) = lists.and_then(|lists| lists[priority].pop_front()) else {
                        continue;
                    };
                    found = true;
                    taken.push(self.deliver(consumer, queue, queued));
                }
            }
        }
        taken
    }

    pub(super) fn settle(&mut self, settlement: &Settlement) -> Settled {
        let Some(unsettled) = self.unsettled.remove(settlement.tag()) else {
            return Settled::Gone;
        };
        match settlement {
            Settlement::Ack(_) | Settlement::Reject(_) => {}
            Settlement::Requeue(_, end) => self.requeue(unsettled, *end),
            Settlement::Defer(_, until) => {
                self.last_number += 1;
                self.deferred.insert(
                    (*until, self.last_number),
                    (unsettled.queue, unsettled.queued),
                );
            }
        }
        Settled::Done
    }

    /// Returns a message to the head of its queue: that of the delivery if it is
    /// unsettled, otherwise the copy.
    pub(super) fn restore(&mut self, tag: &DeliveryTag, queue: &str, copy: &Message) {
        let requeue = Settlement::Requeue(tag.clone(), QueueEnd::Head);
        if self.settle(&requeue) == Settled::Done {
            return;
        }
        let mut message = copy.clone();
        message.properties.delivery_info.redelivered = true;
        let queued = QueuedMessage {
            message,
            deliveries: 1,
        };
        self.insert(queue.into(), queued, QueueEnd::Head);
    }

    /// Requeues the deliveries of a dropped consumer in their old order.
    pub(super) fn release(&mut self, consumer: u64) {
        let mut tags: Vec<_> = self
            .unsettled
            .iter()
            .filter(|(_, unsettled)| unsettled.consumer == consumer)
            .map(|(tag, _)| tag.clone())
            .collect();
        tags.sort_by_key(|tag| std::cmp::Reverse(sequence_number(tag)));
        for tag in tags {
            self.settle(&Settlement::Requeue(tag, QueueEnd::Head));
        }
    }

    /// Returns when the next deferred message is due.
    pub(super) fn next_due(&self) -> Option<SystemTime> {
        self.deferred.first_key_value().map(|((due, _), _)| *due)
    }

    pub(super) fn depth(&self, queue: &str) -> usize {
        self.queues
            .get(queue)
            .map_or(0, |lists| lists.iter().map(VecDeque::len).sum())
    }

    pub(super) fn purge(&mut self, queue: &str) -> usize {
        let depth = self.depth(queue);
        self.queues.remove(queue);
        depth
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    fn deliver(&mut self, consumer: u64, queue: &Arc<str>, queued: QueuedMessage) -> Delivery {
        self.last_number += 1;
        let tag = DeliveryTag::new(self.last_number.to_string());
        let mut delivery = Delivery::new(tag.clone(), Arc::clone(queue), queued.message.clone());
        delivery.redelivered = queued.deliveries > 0;
        delivery.delivery_count = Some(queued.deliveries);
        let unsettled = UnsettledDelivery {
            consumer,
            queue: Arc::clone(queue),
            queued,
        };
        self.unsettled.insert(tag, unsettled);
        delivery
    }

    fn requeue(&mut self, mut unsettled: UnsettledDelivery, end: QueueEnd) {
        unsettled.queued.deliveries += 1;
        unsettled
            .queued
            .message
            .properties
            .delivery_info
            .redelivered = true;
        self.insert(unsettled.queue, unsettled.queued, end);
    }

    fn requeue_due(&mut self, now: SystemTime) {
        while let Some(entry) = self.deferred.first_entry()
            && entry.key().0 <= now
        {
            let (queue, queued) = entry.remove();
            self.insert(queue, queued, QueueEnd::Head);
        }
    }

    fn insert(&mut self, queue: Arc<str>, queued: QueuedMessage, end: QueueEnd) {
        let priority = usize::from(queued.message.properties.priority.unwrap_or(0));
        let lists = self.queues.entry(queue).or_default();
        let list = &mut lists[priority.min(PRIORITY_COUNT - 1)];
        match end {
            QueueEnd::Head => list.push_front(queued),
            QueueEnd::Tail => list.push_back(queued),
        }
    }
}

fn sequence_number(tag: &DeliveryTag) -> u64 {
    tag.as_str().parse().unwrap_or_default()
}
