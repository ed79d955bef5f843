//! The state of the broker, on Redis and RabbitMQ alike.

use celery_protocol::{Message, kombu};
use test_servers::Reply;

use super::{RedisState, Setup, eventually};

impl Setup {
    /// Whether the broker is Redis.
    pub(crate) fn is_on_redis(&self) -> bool {
        self.vhost.is_none()
    }

    /// Returns the number of ready messages in a queue.
    pub(crate) async fn depth(&self, queue: &str) -> usize {
        match &self.vhost {
            Some(vhost) => vhost.depth(queue).await,
            None => self.redis.depth(queue).try_into().unwrap(),
        }
    }

    /// Returns the messages of a queue, the next one first, without consuming them.
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

    /// Puts a message, in kombu's envelope, at the end of the queue `celery`.
    pub(crate) async fn push(&self, envelope: &[u8]) {
        match &self.vhost {
            Some(vhost) => {
                let message = kombu::decode(&envelope.to_vec().into()).unwrap();
                vhost.publish("celery", message).await;
            }
            None => self.redis.push("celery", envelope),
        }
    }

    /// Waits for the one message of `celery.dead` and returns it.
    pub(crate) async fn dead_letter(&self) -> Message {
        eventually("a message is dead-lettered", async || {
            self.messages("celery.dead").await.pop()
        })
        .await
    }

    /// Waits until this many messages are delayed: out of their queues until they
    /// are due.
    pub(crate) async fn wait_for_delayed(&self, messages: usize) {
        eventually("messages are delayed", async || {
            let delayed = match &self.vhost {
                Some(vhost) => vhost.delayed().await,
                None => self.redis.unacked().try_into().unwrap(),
            };
            (delayed == messages).then_some(())
        })
        .await;
    }

    /// Returns the number of messages that a stopped worker has left, ready or
    /// delayed. Redis workers requeue delayed messages when they stop.
    pub(crate) async fn unfinished(&self) -> usize {
        match &self.vhost {
            Some(vhost) => vhost.depth("celery").await + vhost.delayed().await,
            None => self.redis.depth("celery").try_into().unwrap(),
        }
    }

    /// Asserts that no delivery is unacknowledged; waits for it on RabbitMQ.
    pub(crate) async fn assert_no_unacked(&self) {
        let Some(vhost) = &self.vhost else {
            return self.redis.assert_no_unacked();
        };
        eventually("all deliveries are acknowledged", async || {
            let queues = vhost.queues().await;
            queues.values().all(|one| one.unacked == 0).then_some(())
        })
        .await;
    }

    /// Asserts that no delivery is unacknowledged and no message is ready, except in
    /// dead-letter queues; waits for it on RabbitMQ.
    pub(crate) async fn assert_drained(&self) {
        let Some(vhost) = &self.vhost else {
            self.redis.assert_no_unacked();
            return assert_eq!(self.redis.depth("celery"), 0);
        };
        eventually("all queues are empty", async || {
            let queues = vhost.queues().await;
            let left = queues.iter().filter(|(name, content)| {
                content.unacked > 0 || content.ready > 0 && !name.ends_with(".dead")
            });
            (left.count() == 0).then_some(())
        })
        .await;
    }
}
