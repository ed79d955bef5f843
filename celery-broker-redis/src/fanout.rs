//! Receiving what is broadcast.

use std::sync::Arc;

use bytes::Bytes;
use celery_protocol::{Message, kombu};
use celery_runtime::{Binding, BoxFuture, ServiceError, Subscription};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::link::{Attempt, PubSubCommand, PubSubControl, PubSubMessage, PubSubMessages};
use crate::shared::Shared;
use crate::topic::matches_topic_pattern;

/// Broadcasts that wait for a slow reader; more are dropped, as a broadcast may
/// be.
const BROADCAST_BUFFER: usize = 1024;

/// What is broadcast to one exchange.
#[derive(Debug)]
pub(crate) struct FanoutSubscription {
    messages: mpsc::Receiver<Result<Message, ServiceError>>,
    /// Reads the connection also while nobody asks, and asks whether it lives.
    reader: JoinHandle<()>,
}

impl FanoutSubscription {
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        binding: &Binding,
    ) -> Result<Self, ServiceError> {
        let (exchange, pattern) = (&*binding.exchange.name, &*binding.routing_key);
        let object = format!("exchange {exchange}");
        let attempt = Attempt::new("subscribe to", &object);
        let (mut channels, messages) = shared.link.pubsub(attempt).await?;
        let names = channel_patterns(shared, exchange, pattern);
        channels
            .change(attempt, PubSubCommand::SubscribePatterns, &names)
            .await?;
        let (sender, receiver) = mpsc::channel(BROADCAST_BUFFER);
        let reader = FanoutReader {
            shared: Arc::clone(shared),
            channel_prefix: format!("{}/", shared.channel(exchange, "")),
            pattern: pattern.to_owned(),
            object,
            sender,
        };
        Ok(Self {
            messages: receiver,
            reader: tokio::spawn(reader.run(channels, messages)),
        })
    }
}

impl Subscription for FanoutSubscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            match self.messages.recv().await {
                Some(message) => message,
                // The reader has told why it ended; there is nothing to add.
                None => std::future::pending().await,
            }
        })
    }
}

impl Drop for FanoutSubscription {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct FanoutReader {
    shared: Arc<Shared>,
    channel_prefix: String,
    pattern: String,
    object: String,
    sender: mpsc::Sender<Result<Message, ServiceError>>,
}

impl FanoutReader {
    async fn run(self, mut channels: PubSubControl, mut messages: PubSubMessages) {
        let attempt = Attempt::new("receive from", &self.object);
        let link = &self.shared.link;
        let mut pings = tokio::time::interval(link.options().limits.health_check);
        pings.tick().await;
        let failure = loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.forward(&message),
                    None => break channels.ended(attempt),
                },
                _ = pings.tick() => if let Err(error) = channels.ping(attempt).await {
                    break error;
                },
                () = link.closed() => break link.closed_error(attempt),
            }
        };
        // Waits for room: this one must not be dropped.
        let _ = self.sender.send(Err(failure)).await;
    }

    fn forward(&self, published: &PubSubMessage) {
        let Some(message) = decode_message(&published.payload, &self.object) else {
            return;
        };
        let key = match published.channel.strip_prefix(&self.channel_prefix) {
            Some(key) => key,
            None => &message.properties.delivery_info.routing_key,
        };
        if !matches_topic_pattern(&self.pattern, key) {
            return;
        }
        if self.sender.try_send(Ok(message)).is_err() {
            tracing::warn!(
                object = self.object,
                "a broadcast is dropped: the reader is too slow"
            );
        }
    }
}

/// The patterns of Redis for a pattern of AMQP. Redis's `*` goes over dots too,
/// so that what arrives is matched once more.
fn channel_patterns(shared: &Shared, exchange: &str, pattern: &str) -> Vec<String> {
    let whole = escape_glob(&shared.channel(exchange, ""));
    if !shared.link.options().layout.fanout_patterns {
        return vec![whole];
    }
    match pattern {
        "" | "#" => vec![format!("{whole}/*"), whole],
        pattern => {
            // `a.#` matches `a` too.
            let loose = escape_glob(pattern)
                .replace(".#", "*")
                .replace("#.", "*")
                .replace('#', "*");
            vec![format!("{whole}/{}", loose.replace("\\*", "*"))]
        }
    }
}

/// Without the letters that mean something in Redis's patterns.
fn escape_glob(name: &str) -> String {
    let mut escape_glob = String::with_capacity(name.len());
    for character in name.chars() {
        if "*?[]\\".contains(character) {
            escape_glob.push('\\');
        }
        escape_glob.push(character);
    }
    escape_glob
}

/// Reads the payload of a reply or broadcast; what is no message is passed over.
pub(crate) fn decode_message(payload: &Bytes, from: &str) -> Option<Message> {
    match kombu::decode(payload) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::warn!(%error, from, "what was received is no message");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{RedisBroker, RedisOptions};

    fn patterns(options: &serde_json::Value, pattern: &str) -> Vec<String> {
        let options = options.as_object().expect("an object");
        let options = RedisOptions::parse("redis://h/2", options).expect("options");
        channel_patterns(RedisBroker::new(options).shared(), "ev[1]", pattern)
    }

    #[tokio::test]
    async fn patterns_are_kombus_channels() {
        assert_eq!(patterns(&json!({}), "worker.*"), ["/2.ev\\[1\\]/worker.*"]);
        assert_eq!(
            patterns(&json!({}), "#"),
            ["/2.ev\\[1\\]/*", "/2.ev\\[1\\]"]
        );
        assert_eq!(patterns(&json!({}), "a.#"), ["/2.ev\\[1\\]/a*"]);
        let options = json!({"global_keyprefix": "p:", "fanout_prefix": false});
        assert_eq!(patterns(&options, "a"), ["p:ev\\[1\\]/a"]);
        assert_eq!(
            patterns(&json!({"fanout_patterns": false}), "a"),
            ["/2.ev\\[1\\]"]
        );
    }
}
