//! Pub/sub connections.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use celery_runtime::{ServiceError, ServiceErrorKind};
use futures_util::{Stream, StreamExt};
use redis::aio::PubSubSink;
use tokio::time::timeout;

use super::{Operation, RedisClient};

impl RedisClient {
    /// Opens a pub/sub connection: one half controls the subscriptions, the
    /// other receives messages.
    ///
    /// # Errors
    ///
    /// If the connection cannot be opened.
    pub async fn pubsub(
        &self,
        operation: Operation<'_>,
    ) -> Result<(PubSubControl, PubSubMessages), ServiceError> {
        if self.is_closed() {
            return Err(self.closed_error(operation));
        }
        let opened = self.inner.connector.pubsub().await;
        let (sink, stream) = opened
            .map_err(|error| operation.unconnected(self, &error))?
            .split();
        let channels = PubSubControl {
            sink,
            client: self.clone(),
        };
        let stream = Box::pin(stream);
        Ok((channels, PubSubMessages { stream }))
    }
}

/// Controls the subscriptions of a pub/sub connection. No call takes longer
/// than the response timeout.
pub struct PubSubControl {
    sink: PubSubSink,
    client: RedisClient,
}

/// A command that changes subscriptions.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the commands of pub/sub that are used"
)]
pub enum PubSubCommand {
    /// `SUBSCRIBE`.
    Subscribe,
    /// `UNSUBSCRIBE`.
    Unsubscribe,
    /// `PSUBSCRIBE`.
    SubscribePatterns,
}

impl PubSubControl {
    /// Changes the subscriptions, and waits until the server has confirmed it.
    ///
    /// # Errors
    ///
    /// If the connection is broken, or the server does not answer or rejects
    /// the command.
    pub async fn change(
        &mut self,
        operation: Operation<'_>,
        change: PubSubCommand,
        names: &[String],
    ) -> Result<(), ServiceError> {
        let sink = &mut self.sink;
        let limit = self.client.options().limits.response;
        let answer = timeout(limit, async {
            match change {
                PubSubCommand::Subscribe => sink.subscribe(names).await,
                PubSubCommand::Unsubscribe => sink.unsubscribe(names).await,
                PubSubCommand::SubscribePatterns => sink.psubscribe(names).await,
            }
        });
        match answer.await {
            Ok(answer) => answer.map_err(|error| operation.failed(&self.client, &error)),
            Err(_) => Err(operation.no_answer(&self.client, limit)),
        }
    }

    /// Checks that the server answers.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub async fn ping(&mut self, operation: Operation<'_>) -> Result<(), ServiceError> {
        let limit = self.client.options().limits.response;
        match timeout(limit, self.sink.ping::<redis::Value>()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(operation.failed(&self.client, &error)),
            Err(_) => Err(operation.no_answer(&self.client, limit)),
        }
    }

    /// Returns the error of a connection whose messages have ended.
    pub fn ended(&self, operation: Operation<'_>) -> ServiceError {
        operation.error(
            &self.client,
            ServiceErrorKind::Disconnected,
            "the connection was closed",
        )
    }
}

impl fmt::Debug for PubSubControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PubSubControl").finish_non_exhaustive()
    }
}

/// The messages of a pub/sub connection.
pub struct PubSubMessages {
    stream: Pin<Box<dyn Stream<Item = redis::Msg> + Send>>,
}

/// A published message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PubSubMessage {
    /// The channel.
    pub channel: String,
    /// The content.
    pub payload: Bytes,
}

impl PubSubMessages {
    /// Waits for the next message; returns `None` when the connection has
    /// ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<PubSubMessage> {
        let message = self.stream.next().await?;
        Some(PubSubMessage {
            channel: message.get_channel_name().to_owned(),
            payload: Bytes::copy_from_slice(message.get_payload_bytes()),
        })
    }
}

impl fmt::Debug for PubSubMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PubSubMessages").finish_non_exhaustive()
    }
}
