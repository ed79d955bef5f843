//! The channel that one batch is published on.

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::AmqpConnection;
use crate::options::PublisherConfirms;

/// A channel for one batch.
pub(crate) struct ConfirmChannel<'a> {
    pub(crate) channel: Channel,
    connection: &'a AmqpConnection,
    confirms: PublisherConfirms,
    /// Taken when the lane ends.
    permit: Option<OwnedSemaphorePermit>,
    finished: bool,
}

impl<'a> ConfirmChannel<'a> {
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
            finished: false,
        })
    }

    pub(crate) fn release(mut self) {
        self.finished = true;
        self.return_to_pool();
    }

    fn return_to_pool(&self) {
        if self.channel.status().connected() {
            self.connection.confirm_channels.push(self.channel.clone());
        }
    }
}

/// Dropped before its end, as when the caller's time is up, the channel stays
/// open while anything is on its way: messages that RabbitMQ has not read yet
/// would arrive on a channel that is closed, which ends the connection. With
/// confirmations their end is known; without them the next batch takes the
/// channel over, since there is nothing that it could mistake for its own.
impl Drop for ConfirmChannel<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.connection.mark_suspect();
        if self.confirms == PublisherConfirms::Off {
            return self.return_to_pool();
        }
        let (channel, permit) = (self.channel.clone(), self.permit.take());
        // Ends with the connection at the latest.
        self.connection.runtime.spawn(async move {
            let _ = channel.wait_for_confirms().await;
            drop(permit);
        });
    }
}

impl AmqpConnection {
    async fn open_confirm_channel(&self, confirms: PublisherConfirms) -> lapin::Result<Channel> {
        let channel = self.open_channel().await?;
        if confirms == PublisherConfirms::On {
            let confirm = channel.confirm_select(ConfirmSelectOptions::default());
            self.await_response(confirm).await?;
        }
        Ok(channel)
    }
}
