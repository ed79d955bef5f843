//! Looking into the broker, whichever it is.

use celery_protocol::{Message, kombu};
use test_servers::Reply;

use super::{RedisExt, Setup, eventually};

impl Setup {
    pub(crate) fn is_on_redis(&self) -> bool {
        self.vhost.is_none()
    }

    /// How many messages wait in a queue.
    pub(crate) async fn depth(&self, queue: &str) -> usize {
        match &self.vhost {
            Some(vhost) => vhost.depth(queue).await,
            None => self.redis.depth(queue).try_into().unwrap(),
        }
    }

    /// The messages of a queue, the next one first.
    pub(crate) async fn messages(&self, queue: &str) -> Vec<Message> {
        if let Some(vhost) = &self.vhost {
            return vhost.messages(queue).await;
        }
        let Reply::Array(replies) = self.redis.command(&["LRANGE", queue, "0", "-1"]) else {
            panic!("{queue} is not a list");
        };
        let replies = replies.into_iter().rev();
        replies
            .map(|reply| match reply {
                Reply::Data(raw) => kombu::decode(&raw.into()).unwrap(),
                other => panic!("{queue} holds {other:?}"),
            })
            .collect()
    }

    /// Puts a message in kombu's envelope at the end of the queue `celery`.
    pub(crate) async fn push(&self, envelope: &[u8]) {
        match &self.vhost {
            Some(vhost) => {
                let message = kombu::decode(&envelope.to_vec().into()).unwrap();
                vhost.publish("celery", message).await;
            }
            None => self.redis.push("celery", envelope),
        }
    }

    /// The one message of `celery.dead`, as soon as it is there.
    pub(crate) async fn dead_letter(&self) -> Message {
        eventually("a message is kept", async || {
            self.messages("celery.dead").await.pop()
        })
        .await
    }

    /// Waits until this many messages are not in their queues any more, since
    /// it is not their time yet.
    pub(crate) async fn wait_for_delayed(&self, messages: usize) {
        eventually("messages wait for their time", async || {
            let delayed = match &self.vhost {
                Some(vhost) => vhost.delayed().await,
                None => self.redis.unacked().try_into().unwrap(),
            };
            (delayed == messages).then_some(())
        })
        .await;
    }

    /// How many tasks a worker that stopped has left for others: those that are
    /// not due wait elsewhere on RabbitMQ.
    pub(crate) async fn unfinished(&self) -> usize {
        match &self.vhost {
            Some(vhost) => vhost.depth("celery").await + vhost.delayed().await,
            None => self.redis.depth("celery").try_into().unwrap(),
        }
    }

    /// No worker holds anything any more.
    pub(crate) async fn assert_no_unacked(&self) {
        let Some(vhost) = &self.vhost else {
            return self.redis.assert_no_unacked();
        };
        eventually("nothing is held", async || {
            let queues = vhost.queues().await;
            queues.values().all(|one| one.unacked == 0).then_some(())
        })
        .await;
    }

    /// The same, and nothing waits in the tasks' queues: all was done.
    pub(crate) async fn assert_drained(&self) {
        let Some(vhost) = &self.vhost else {
            self.redis.assert_no_unacked();
            return assert_eq!(self.redis.depth("celery"), 0);
        };
        eventually("nothing is left", async || {
            let queues = vhost.queues().await;
            let left = queues.iter().filter(|(name, content)| {
                content.unacked > 0 || content.ready > 0 && !name.ends_with(".dead")
            });
            (left.count() == 0).then_some(())
        })
        .await;
    }
}

/// What tests ask of messages.
pub(crate) trait MessageExt {
    /// A header that is a text; nothing if there is none.
    fn text(&self, header: &str) -> String;

    /// The task's id.
    fn id(&self) -> String;
}

impl MessageExt for Message {
    fn text(&self, header: &str) -> String {
        let found = self.headers.find(header).unwrap();
        found.map_or_else(String::new, |raw| raw.decode().unwrap_or_default())
    }

    fn id(&self) -> String {
        self.text("id")
    }
}
