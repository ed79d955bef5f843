//! The queues of the in-memory broker and what consumers hold. Pure: the time
//! is an argument.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use celery_protocol::Message;

use crate::boundary::{Delivery, DeliveryTag, QueueEnd, Settled, Settlement};

/// Celery's priorities: 0 is served first, as on Redis.
const PRIORITIES: usize = 10;

/// All queues, and the deliveries that nobody has settled yet.
#[derive(Debug, Default)]
pub(super) struct Queues {
    queues: HashMap<Arc<str>, [VecDeque<Stored>; PRIORITIES]>,
    held: HashMap<DeliveryTag, Held>,
    parked: BTreeMap<(SystemTime, u64), (Arc<str>, Stored)>,
    next: u64,
}

#[derive(Debug)]
struct Stored {
    message: Message,
    deliveries: u32,
}

#[derive(Debug)]
struct Held {
    consumer: u64,
    queue: Arc<str>,
    stored: Stored,
}

impl Queues {
    pub(super) fn push(&mut self, queue: &str, message: Message) {
        let stored = Stored {
            message,
            deliveries: 0,
        };
        self.put(queue.into(), stored, QueueEnd::Tail);
    }

    /// Takes up to `max` messages, those of higher priority first and within
    /// one priority from the queues in turn, beginning with the first.
    pub(super) fn take(
        &mut self,
        consumer: u64,
        queues: &[Arc<str>],
        max: usize,
        now: SystemTime,
    ) -> Vec<Delivery> {
        self.unpark(now);
        let mut taken = Vec::new();
        for priority in 0..PRIORITIES {
            let mut found = true;
            while found {
                found = false;
                for queue in queues {
                    if taken.len() == max {
                        return taken;
                    }
                    let lists = self.queues.get_mut(queue);
                    let Some(stored) = lists.and_then(|lists| lists[priority].pop_front()) else {
                        continue;
                    };
                    found = true;
                    taken.push(self.hold(consumer, queue, stored));
                }
            }
        }
        taken
    }

    pub(super) fn settle(&mut self, settlement: &Settlement) -> Settled {
        let Some(held) = self.held.remove(settlement.tag()) else {
            return Settled::Gone;
        };
        match settlement {
            Settlement::Ack(_) | Settlement::Reject(_) => {}
            Settlement::Requeue(_, end) => self.give_back(held, *end),
            Settlement::Defer(_, until) => {
                self.next += 1;
                self.parked
                    .insert((*until, self.next), (held.queue, held.stored));
            }
        }
        Settled::Done
    }

    /// Gives back what a consumer held that is gone, in its old order.
    pub(super) fn abandon(&mut self, consumer: u64) {
        let mut tags: Vec<_> = self
            .held
            .iter()
            .filter(|(_, held)| held.consumer == consumer)
            .map(|(tag, _)| tag.clone())
            .collect();
        tags.sort_by_key(|tag| std::cmp::Reverse(serial(tag)));
        for tag in tags {
            self.settle(&Settlement::Requeue(tag, QueueEnd::Head));
        }
    }

    /// When the next parked message falls due.
    pub(super) fn next_due(&self) -> Option<SystemTime> {
        self.parked.first_key_value().map(|((due, _), _)| *due)
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

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    fn hold(&mut self, consumer: u64, queue: &Arc<str>, stored: Stored) -> Delivery {
        self.next += 1;
        let tag = DeliveryTag::new(self.next.to_string());
        let mut delivery = Delivery::new(tag.clone(), Arc::clone(queue), stored.message.clone());
        delivery.redelivered = stored.deliveries > 0;
        delivery.delivery_count = Some(stored.deliveries);
        let held = Held {
            consumer,
            queue: Arc::clone(queue),
            stored,
        };
        self.held.insert(tag, held);
        delivery
    }

    fn give_back(&mut self, mut held: Held, end: QueueEnd) {
        held.stored.deliveries += 1;
        held.stored.message.properties.delivery_info.redelivered = true;
        self.put(held.queue, held.stored, end);
    }

    fn unpark(&mut self, now: SystemTime) {
        while let Some(entry) = self.parked.first_entry()
            && entry.key().0 <= now
        {
            let (queue, stored) = entry.remove();
            self.put(queue, stored, QueueEnd::Head);
        }
    }

    fn put(&mut self, queue: Arc<str>, stored: Stored, end: QueueEnd) {
        let priority = usize::from(stored.message.properties.priority.unwrap_or(0));
        let lists = self.queues.entry(queue).or_default();
        let list = &mut lists[priority.min(PRIORITIES - 1)];
        match end {
            QueueEnd::Head => list.push_front(stored),
            QueueEnd::Tail => list.push_back(stored),
        }
    }
}

fn serial(tag: &DeliveryTag) -> u64 {
    tag.as_str().parse().unwrap_or_default()
}
