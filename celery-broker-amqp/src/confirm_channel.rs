//! The channel that carries one batch of messages.

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::AmqpConnection;
use crate::options::PublisherConfirms;

/// A channel that carries one batch at a time, in confirm mode unless
/// `confirm_publish` is off. It returns to its pool on [`release`](Self::release).
pub(crate) struct ConfirmChannel<'a> {
    pub(crate) channel: Channel,
    connection: &'a AmqpConnection,
    confirms: PublisherConfirms,
    /// `None` once `drop` has moved it to the task that awaits the confirms.
    permit: Option<OwnedSemaphorePermit>,
    released: bool,
}

impl<'a> ConfirmChannel<'a> {
    /// Takes an idle channel or opens one, once the pool grants a permit.
    pub(crate) async fn acquire(
        connection: &'a AmqpConnection,
        confirms: PublisherConfirms,
    ) -> lapin::Result<Self> {
        let permit = connection.confirm_channels.acquire_permit().await;
        let idle = connection.confirm_channels.pop();
        let channel = match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => connection.open_confirm_channel(confirms).await?,
        };
        Ok(Self {
            channel,
            connection,
            confirms,
            permit: Some(permit),
            released: false,
        })
    }

    /// Returns the channel after every message of the batch has its outcome.
    pub(crate) fn release(mut self) {
        self.released = true;
        self.return_to_pool();
    }

    fn return_to_pool(&self) {
        if self.channel.status().connected() {
            self.connection.confirm_channels.push(self.channel.clone());
        }
    }
}

/// Keeps the channel open when a batch is cancelled, for example by a timeout of
/// the caller. Messages that RabbitMQ has not read yet would otherwise arrive on a
/// closed channel, which makes RabbitMQ close the connection. With confirms, a
/// spawned task waits for the outstanding ones before it frees the permit.
/// Without confirms, the channel returns to the pool at once, because the next
/// batch cannot mistake a confirm for its own.
impl Drop for ConfirmChannel<'_> {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        self.connection.mark_suspect();
        if self.confirms == PublisherConfirms::Off {
            return self.return_to_pool();
        }
        let (channel, permit) = (self.channel.clone(), self.permit.take());
        // The task ends with the connection at the latest.
        self.connection.runtime.spawn(async move {
            let _ = channel.wait_for_confirms().await;
            drop(permit);
        });
    }
}

impl AmqpConnection {
    /// Opens a channel for publishing.
    async fn open_confirm_channel(&self, confirms: PublisherConfirms) -> lapin::Result<Channel> {
        let channel = self.open_channel().await?;
        if confirms == PublisherConfirms::On {
            let confirm = channel.confirm_select(ConfirmSelectOptions::default());
            self.await_response(confirm).await?;
        }
        Ok(channel)
    }
}
