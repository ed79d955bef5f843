//! Fetching messages from queues on a connection that the server notifies of
//! new messages.

use std::sync::LazyLock;

use celery_runtime::{Delivery, ServiceError};

use crate::client::{Operation, RedisClient, RedisReply, Script};
use crate::config::{Layout, QueueOrder};
use crate::delivery::delivery;
use crate::entry::UnackedEntry;
use crate::key_watcher::KeyWatcher;

static FETCH: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/fetch.lua")));

/// Fetches messages from queues in the configured order.
#[derive(Debug)]
pub(crate) struct Fetcher {
    watcher: KeyWatcher,
    queue_set: QueueSet,
}

/// The queues of one consumer.
#[derive(Debug)]
struct QueueSet {
    order: QueueOrder,
    /// In the order in which the next call reads them.
    queues: Vec<QueueKeys>,
    unacked_index: String,
    unacked: String,
}

/// The keys and texts of one queue that the script needs.
#[derive(Debug)]
struct QueueKeys {
    name: String,
    lists: Vec<String>,
    quarantine: String,
    entry_suffix: String,
}

impl Fetcher {
    pub(crate) async fn connect(
        client: &RedisClient,
        operation: Operation<'_>,
        queues: &[String],
    ) -> Result<Self, ServiceError> {
        let layout = &client.options().layout;
        let mut queues: Vec<_> = queues
            .iter()
            .map(|queue| QueueKeys::new(layout, queue))
            .collect();
        if layout.order == QueueOrder::Sorted {
            queues.sort_by(|one, other| one.name.cmp(&other.name));
        }
        let queue_set = QueueSet {
            order: layout.order,
            queues,
            unacked_index: layout.unacked_index(),
            unacked: layout.unacked(),
        };
        let watcher = KeyWatcher::connect(client, operation).await?;
        Ok(Self { watcher, queue_set })
    }

    /// Takes up to `max` messages; returns none if the queues are empty. The
    /// tags are `prefix` followed by numbers from `first` on.
    pub(crate) async fn fetch(
        &mut self,
        operation: Operation<'_>,
        max: usize,
        prefix: &str,
        first: u64,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let queue_set = &self.queue_set;
        let round_robin: &[u8] = match queue_set.order {
            QueueOrder::RoundRobin => b"1",
            QueueOrder::Sorted | QueueOrder::Priority => b"0",
        };
        let numbers = [max as u64, first, queue_set.queues.len() as u64].map(|n| n.to_string());
        let [max, first, count] = numbers.each_ref().map(String::as_bytes);
        let mut arguments = vec![max, round_robin, prefix.as_bytes(), first, count];
        for queue in &queue_set.queues {
            arguments.extend([queue.name.as_bytes(), queue.entry_suffix.as_bytes()]);
        }
        let keys = queue_set.keys();
        let reply = self
            .watcher
            .script(operation, &FETCH, &keys, &arguments)
            .await?;
        let (deliveries, last_served) = parse_reply(reply);
        self.queue_set.rotate(last_served);
        Ok(deliveries)
    }

    /// Waits until a queue may have changed.
    pub(crate) async fn changed(&mut self) {
        self.watcher.changed().await;
    }

    /// Resets the poll interval after messages were delivered.
    pub(crate) fn reset_poll_interval(&mut self) {
        self.watcher.reset_poll_interval();
    }
}

impl QueueSet {
    /// Returns the keys of the script. The lists of all queues for one priority
    /// come before those of the next, as in kombu.
    fn keys(&self) -> Vec<&str> {
        let mut keys = vec![self.unacked_index.as_str(), self.unacked.as_str()];
        let steps = self.queues.first().map_or(0, |queue| queue.lists.len());
        for step in 0..steps {
            keys.extend(
                self.queues
                    .iter()
                    .filter_map(|queue| queue.lists.get(step))
                    .map(String::as_str),
            );
        }
        keys.extend(self.queues.iter().map(|queue| queue.quarantine.as_str()));
        keys
    }

    /// Moves the queue that was served last to the end, so that calls for one
    /// message at a time are fair as well.
    fn rotate(&mut self, last_served: Option<usize>) {
        if let (QueueOrder::RoundRobin, Some(last_served)) = (self.order, last_served)
            && last_served < self.queues.len()
        {
            self.queues.rotate_left(last_served + 1);
        }
    }
}

impl QueueKeys {
    fn new(layout: &Layout, queue: &str) -> Self {
        Self {
            name: queue.to_owned(),
            lists: layout.lists(queue).collect(),
            quarantine: layout.quarantine(queue),
            entry_suffix: UnackedEntry::suffix(queue),
        }
    }
}

/// Returns the deliveries, and the index of the queue that was served last.
fn parse_reply(reply: RedisReply) -> (Vec<Delivery>, Option<usize>) {
    let mut replies = reply.list().into_iter();
    let mut deliveries = Vec::with_capacity(replies.len() / 3);
    let mut last_served = None;
    while let (Some(tag), Some(queue), Some(raw)) = (replies.next(), replies.next(), replies.next())
    {
        let (Some(tag), Some(raw)) = (tag.text(), raw.data()) else {
            continue;
        };
        deliveries.push(delivery(tag, raw));
        last_served = usize::try_from(queue.number() - 1).ok();
    }
    (deliveries, last_served)
}
