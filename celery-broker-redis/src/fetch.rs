//! Taking messages from queues on a connection that is told about new ones.

use std::sync::LazyLock;

use celery_runtime::{Delivery, ServiceError};

use crate::config::{Layout, QueueOrder};
use crate::delivery::delivery;
use crate::entry::Entry;
use crate::key_watcher::Watch;
use crate::link::{Attempt, Link, Reply, Script};

static FETCH: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/fetch.lua")));

/// Takes messages from queues in a fair order.
#[derive(Debug)]
pub(crate) struct Fetcher {
    watch: Watch,
    sources: Sources,
}

#[derive(Debug)]
struct Sources {
    order: QueueOrder,
    /// In the order in which they are looked at next.
    queues: Vec<Source>,
    unacked_index: String,
    unacked: String,
}

/// One queue, with everything that the script has to know about it.
#[derive(Debug)]
struct Source {
    name: String,
    lists: Vec<String>,
    holding: String,
    entry_end: String,
}

impl Fetcher {
    pub(crate) async fn connect(
        link: &Link,
        attempt: Attempt<'_>,
        queues: &[String],
    ) -> Result<Self, ServiceError> {
        let layout = &link.options().layout;
        let mut queues: Vec<_> = queues
            .iter()
            .map(|queue| Source::new(layout, queue))
            .collect();
        if layout.order == QueueOrder::Sorted {
            queues.sort_by(|one, other| one.name.cmp(&other.name));
        }
        let sources = Sources {
            order: layout.order,
            queues,
            unacked_index: layout.unacked_index(),
            unacked: layout.unacked(),
        };
        let watch = Watch::connect(link, attempt).await?;
        Ok(Self { watch, sources })
    }

    /// Takes up to `most` messages, or none if there are none. The tags are
    /// `prefix` and numbers from `first` on.
    pub(crate) async fn fetch(
        &mut self,
        attempt: Attempt<'_>,
        most: usize,
        prefix: &str,
        first: u64,
    ) -> Result<Vec<Delivery>, ServiceError> {
        let sources = &self.sources;
        let in_turns: &[u8] = match sources.order {
            QueueOrder::RoundRobin => b"1",
            QueueOrder::Sorted | QueueOrder::Priority => b"0",
        };
        let numbers = [most as u64, first, sources.queues.len() as u64].map(|n| n.to_string());
        let [most, first, count] = numbers.each_ref().map(String::as_bytes);
        let mut arguments = vec![most, in_turns, prefix.as_bytes(), first, count];
        for queue in &sources.queues {
            arguments.extend([queue.name.as_bytes(), queue.entry_end.as_bytes()]);
        }
        let keys = sources.keys();
        let reply = self
            .watch
            .script(attempt, &FETCH, &keys, &arguments)
            .await?;
        let (deliveries, served) = read(reply);
        self.sources.rotate(served);
        Ok(deliveries)
    }

    /// Waits until it is worth looking again.
    pub(crate) async fn changed(&mut self) {
        self.watch.changed().await;
    }

    /// Something was delivered.
    pub(crate) fn found(&mut self) {
        self.watch.found();
    }
}

impl Sources {
    /// All lists of one priority before those of the next, as kombu orders them.
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
        keys.extend(self.queues.iter().map(|queue| queue.holding.as_str()));
        keys
    }

    /// The queue that was served last comes last the next time, so that a call
    /// for one message at a time is fair too.
    fn rotate(&mut self, served: Option<usize>) {
        if let (QueueOrder::RoundRobin, Some(served)) = (self.order, served)
            && served < self.queues.len()
        {
            self.queues.rotate_left(served + 1);
        }
    }
}

impl Source {
    fn new(layout: &Layout, queue: &str) -> Self {
        Self {
            name: queue.to_owned(),
            lists: layout.lists(queue).collect(),
            holding: layout.holding(queue),
            entry_end: Entry::end(queue),
        }
    }
}

/// The deliveries, and the place of the queue that was served last.
fn read(reply: Reply) -> (Vec<Delivery>, Option<usize>) {
    let mut replies = reply.list().into_iter();
    let mut deliveries = Vec::with_capacity(replies.len() / 3);
    let mut served = None;
    while let (Some(tag), Some(queue), Some(raw)) = (replies.next(), replies.next(), replies.next())
    {
        let (Some(tag), Some(raw)) = (tag.text(), raw.data()) else {
            continue;
        };
        deliveries.push(delivery(tag, raw));
        served = usize::try_from(queue.number() - 1).ok();
    }
    (deliveries, served)
}
