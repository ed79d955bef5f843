//! Subscriptions to fanout and topic exchanges, which are pub/sub channels.

use std::sync::Arc;

use bytes::Bytes;
use celery_protocol::{Message, kombu};
use celery_runtime::{Binding, BoxFuture, ServiceError, Subscription, env, topic_matches};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::client::{Operation, PubSubCommand, PubSubControl, PubSubMessage, PubSubMessages};
use crate::shared::Shared;

/// The number of broadcasts that are buffered for a slow subscriber. Further
/// ones are dropped, as broadcasts are not reliable.
const BROADCAST_BUFFER: usize = 1024;

/// A subscription to the broadcasts of one exchange.
#[derive(Debug)]
pub(crate) struct FanoutSubscription {
    messages: mpsc::Receiver<Result<Message, ServiceError>>,
    /// Reads the connection and checks its health while no call waits for a
    /// message.
    reader: JoinHandle<()>,
}

impl FanoutSubscription {
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        binding: &Binding,
    ) -> Result<Self, ServiceError> {
        let (exchange, pattern) = (&*binding.exchange.name, &*binding.routing_key);
        let object = format!("exchange {exchange}");
        let operation = Operation::new("subscribe to", &object);
        let (mut channels, messages) = shared.client.pubsub(operation).await?;
        let names = channel_patterns(shared, exchange, pattern);
        channels
            .change(operation, PubSubCommand::SubscribePatterns, &names)
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
            reader: env::spawn(reader.run(channels, messages)),
        })
    }
}

impl Subscription for FanoutSubscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            match self.messages.recv().await {
                Some(message) => message,
                // The reader has already sent the error that ended it.
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

/// The task that reads the connection.
struct FanoutReader {
    shared: Arc<Shared>,
    channel_prefix: String,
    pattern: String,
    object: String,
    sender: mpsc::Sender<Result<Message, ServiceError>>,
}

impl FanoutReader {
    async fn run(self, mut channels: PubSubControl, mut messages: PubSubMessages) {
        let operation = Operation::new("receive from", &self.object);
        let client = &self.shared.client;
        let mut pings = tokio::time::interval(client.options().limits.health_check);
        pings.tick().await;
        let failure = loop {
            // Messages come before health checks: a connection that receives is
            // alive.
            tokio::select! {
                biased;
                () = client.closed() => break client.closed_error(operation),
                message = messages.next() => match message {
                    Some(message) => self.forward(&message),
                    None => break channels.ended(operation),
                },
                _ = pings.tick() => if let Err(error) = channels.ping(operation).await {
                    break error;
                },
            }
        };
        // Waits for buffer space: the error must not be dropped.
        let _ = self.sender.send(Err(failure)).await;
    }

    /// Decodes a message and buffers it if its routing key matches.
    fn forward(&self, published: &PubSubMessage) {
        let Some(message) = decode_message(&published.payload, &self.object) else {
            return;
        };
        let key = match published.channel.strip_prefix(&self.channel_prefix) {
            Some(key) => key,
            None => &message.properties.delivery_info.routing_key,
        };
        if !topic_matches(&self.pattern, key) {
            return;
        }
        if self.sender.try_send(Ok(message)).is_err() {
            tracing::warn!(
                object = self.object,
                "broadcast dropped: the subscriber is too slow"
            );
        }
    }
}

/// Returns the Redis patterns for an AMQP pattern. In Redis `*` also matches
/// dots, so [`FanoutReader::forward`] matches each message again.
fn channel_patterns(shared: &Shared, exchange: &str, pattern: &str) -> Vec<String> {
    let whole = escape_glob(&shared.channel(exchange, ""));
    if !shared.client.options().layout.fanout_patterns {
        return vec![whole];
    }
    match pattern {
        "" | "#" => vec![format!("{whole}/*"), whole],
        pattern => {
            // `a.#` also matches `a`.
            let loose = escape_glob(pattern)
                .replace(".#", "*")
                .replace("#.", "*")
                .replace('#', "*");
            vec![format!("{whole}/{}", loose.replace("\\*", "*"))]
        }
    }
}

/// Escapes the characters that are special in Redis patterns.
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

/// Decodes the payload of a reply or broadcast. Logs a payload that is not a
/// message and returns `None`.
pub(crate) fn decode_message(payload: &Bytes, from: &str) -> Option<Message> {
    match kombu::decode(payload) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::warn!(%error, from, "ignoring a payload that is not a message");
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
    async fn amqp_patterns_become_channel_patterns_of_kombu() {
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
