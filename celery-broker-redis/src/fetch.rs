//! Fetching messages from queues on a connection that the server notifies of
//! new messages.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use celery_runtime::{Delivery, ServiceError, env};

use crate::answer_budget::{AnswerBudget, AnswerLimits};
use crate::client::{Operation, RedisReply, Script};
use crate::config::{Layout, QueueOrder};
use crate::delivery::delivery;
use crate::entry::UnackedEntry;
use crate::key_watcher::KeyWatcher;
use crate::keys::quarantine_tag;
use crate::shared::Shared;

static FETCH: LazyLock<Script> = LazyLock::new(|| script!("fetch.lua"));
static QUARANTINE_MESSAGE: LazyLock<Script> = LazyLock::new(|| script!("quarantine_message.lua"));

/// Fetches messages from queues in the configured order.
#[derive(Debug)]
pub(crate) struct Fetcher {
    watcher: KeyWatcher,
    budget: Arc<AnswerBudget>,
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

/// The reply of the script.
#[derive(Debug)]
struct Fetched {
    deliveries: Vec<Delivery>,
    malformed: Vec<MalformedMessage>,
}

/// A malformed message at the end of a list.
#[derive(Debug)]
struct MalformedMessage {
    queue_index: usize,
    queue: String,
    list: String,
    quarantine: String,
    digest: Bytes,
}

impl Fetcher {
    pub(crate) async fn connect(
        shared: &Shared,
        operation: Operation<'_>,
        queues: &[String],
    ) -> Result<Self, ServiceError> {
        let layout = &shared.client.options().layout;
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
        let watcher = KeyWatcher::connect(&shared.client, operation).await?;
        Ok(Self {
            watcher,
            budget: Arc::clone(&shared.answer_budget),
            queue_set,
        })
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
        let limits = self.limits();
        let arguments = self.queue_set.arguments(max, limits, prefix, first);
        let arguments: Vec<&[u8]> = arguments.iter().map(AsRef::as_ref).collect();
        let keys = self.queue_set.keys();
        let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
        let reply = self
            .bounded(operation, limits, &FETCH, &keys, &arguments)
            .await?;
        let Fetched {
            mut deliveries,
            malformed,
        } = self.queue_set.parse_reply(reply);
        for message in malformed {
            match self.quarantine(&message).await {
                Ok(quarantined) => deliveries.extend(quarantined),
                Err(error) if deliveries.is_empty() => return Err(error),
                // The next call fails with it unless there are other messages.
                Err(error) => tracing::warn!(%error, "a malformed message blocks its queue"),
            }
        }
        Ok(deliveries)
    }

    /// Returns the limits of the next answer with messages.
    pub(crate) fn limits(&self) -> AnswerLimits {
        self.budget.limits()
    }

    /// Runs a script whose answer has messages and respects these limits.
    pub(crate) async fn bounded(
        &mut self,
        operation: Operation<'_>,
        limits: AnswerLimits,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<RedisReply, ServiceError> {
        self.watcher.set_response_timeout(limits.timeout);
        let begun = env::instant();
        let reply = self.watcher.script(operation, script, keys, arguments);
        let reply = reply.await;
        match &reply {
            Ok(reply) => self.budget.answered(reply.size(), begun.elapsed()),
            Err(error) => self.budget.failed(error, limits),
        }
        reply
    }

    /// Moves a malformed message from the end of its list to the quarantine
    /// hash; returns `None` if another worker has done so.
    async fn quarantine(
        &mut self,
        message: &MalformedMessage,
    ) -> Result<Option<Delivery>, ServiceError> {
        let operation = Operation::new("move a malformed message to", &message.quarantine);
        let tag = quarantine_tag(&env::uuid_simple(), &message.queue);
        let keys = [message.list.as_str(), message.quarantine.as_str()];
        let arguments = [tag.as_bytes(), &message.digest];
        let limits = self.limits();
        let raw = self.bounded(operation, limits, &QUARANTINE_MESSAGE, &keys, &arguments);
        Ok(raw.await?.data().map(|raw| delivery(tag, raw)))
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
    fn keys(&self) -> Vec<String> {
        let mut keys = vec![self.unacked_index.clone(), self.unacked.clone()];
        let steps = self.queues.first().map_or(0, |queue| queue.lists.len());
        for step in 0..steps {
            let lists = self.queues.iter().filter_map(|queue| queue.lists.get(step));
            keys.extend(lists.cloned());
        }
        keys
    }

    /// Returns the arguments of the script.
    fn arguments(&self, max: usize, limits: AnswerLimits, prefix: &str, first: u64) -> Vec<String> {
        let round_robin = match self.order {
            QueueOrder::RoundRobin => "1",
            QueueOrder::Sorted | QueueOrder::Priority => "0",
        };
        let mut arguments = vec![
            max.to_string(),
            limits.bytes.to_string(),
            round_robin.to_owned(),
            prefix.to_owned(),
            first.to_string(),
            self.queues.len().to_string(),
        ];
        for queue in &self.queues {
            arguments.extend([queue.name.clone(), queue.entry_suffix.clone()]);
        }
        arguments
    }

    /// Parses the reply of the script, and prepares the order of the next call.
    fn parse_reply(&mut self, reply: RedisReply) -> Fetched {
        let mut parts = reply.list().into_iter().map(RedisReply::list);
        let (taken, malformed) = (parts.next(), parts.next());
        let (deliveries, last_served) = parse_deliveries(taken.unwrap_or_default());
        let malformed = self.parse_malformed(malformed.unwrap_or_default());
        let last_malformed = malformed.last().map(|message| message.queue_index);
        self.rotate(last_served.or(last_malformed));
        Fetched {
            deliveries,
            malformed,
        }
    }

    fn parse_malformed(&self, replies: Vec<RedisReply>) -> Vec<MalformedMessage> {
        let mut replies = replies.into_iter();
        let mut malformed = Vec::new();
        while let (Some(key), Some(digest)) = (replies.next(), replies.next()) {
            // The lists begin with key 3.
            let Some(list) = usize::try_from(key.number() - 3).ok() else {
                continue;
            };
            let queue_index = list % self.queues.len();
            let queue = &self.queues[queue_index];
            let list = queue.lists.get(list / self.queues.len());
            if let (Some(list), Some(digest)) = (list, digest.data()) {
                malformed.push(MalformedMessage {
                    queue_index,
                    queue: queue.name.clone(),
                    list: list.clone(),
                    quarantine: queue.quarantine.clone(),
                    digest,
                });
            }
        }
        malformed
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
fn parse_deliveries(replies: Vec<RedisReply>) -> (Vec<Delivery>, Option<usize>) {
    let mut replies = replies.into_iter();
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
