//! Connections that receive what is published.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use celery_runtime::{ServiceError, ServiceErrorKind};
use futures_util::{Stream, StreamExt};
use redis::aio::PubSubSink;
use tokio::time::timeout;

use super::{Attempt, Link};

impl Link {
    /// A new connection for pub/sub: the half that subscribes, and the half
    /// that receives.
    ///
    /// # Errors
    ///
    /// When there is no connection.
    pub async fn pubsub(
        &self,
        attempt: Attempt<'_>,
    ) -> Result<(PubSubControl, PubSubMessages), ServiceError> {
        if self.is_closed() {
            return Err(self.closed_error(attempt));
        }
        let opened = self.inner.connector.pubsub().await;
        let (sink, stream) = opened
            .map_err(|error| attempt.unconnected(self, &error))?
            .split();
        let channels = PubSubControl {
            sink,
            link: self.clone(),
        };
        let stream = Box::pin(stream);
        Ok((channels, PubSubMessages { stream }))
    }
}

/// Says what a pub/sub connection receives. Nothing here waits longer than the
/// response timeout.
pub struct PubSubControl {
    sink: PubSubSink,
    link: Link,
}

/// What is done to a subscription.
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
    /// Changes what is received, and waits until the server confirmed it.
    ///
    /// # Errors
    ///
    /// When the connection broke, or the server does not answer or refuses.
    pub async fn change(
        &mut self,
        attempt: Attempt<'_>,
        change: PubSubCommand,
        names: &[String],
    ) -> Result<(), ServiceError> {
        let sink = &mut self.sink;
        let limit = self.link.options().limits.response;
        let answer = timeout(limit, async {
            match change {
                PubSubCommand::Subscribe => sink.subscribe(names).await,
                PubSubCommand::Unsubscribe => sink.unsubscribe(names).await,
                PubSubCommand::SubscribePatterns => sink.psubscribe(names).await,
            }
        });
        match answer.await {
            Ok(answer) => answer.map_err(|error| attempt.failed(&self.link, &error)),
            Err(_) => Err(attempt.no_answer(&self.link, limit)),
        }
    }

    /// Asks whether the server still answers.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn ping(&mut self, attempt: Attempt<'_>) -> Result<(), ServiceError> {
        let limit = self.link.options().limits.response;
        match timeout(limit, self.sink.ping::<redis::Value>()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(attempt.failed(&self.link, &error)),
            Err(_) => Err(attempt.no_answer(&self.link, limit)),
        }
    }

    /// The error of a connection whose messages ended.
    pub fn ended(&self, attempt: Attempt<'_>) -> ServiceError {
        attempt.error(
            &self.link,
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

/// What is received on a pub/sub connection.
pub struct PubSubMessages {
    stream: Pin<Box<dyn Stream<Item = redis::Msg> + Send>>,
}

/// One message that was published.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PubSubMessage {
    /// The channel.
    pub channel: String,
    /// What was published.
    pub payload: Bytes,
}

impl PubSubMessages {
    /// Waits for the next message; `None` when the connection ended.
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
