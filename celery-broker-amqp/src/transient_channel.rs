//! The channel for declarations and for moving messages.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::connection::AmqpConnection;
use crate::transient_slot::TransientSlot;

/// The timeout of closing a transient channel. A server that does not answer must not
/// block later declarations.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The time for which RabbitMQ may count a closed channel towards the user's limit.
const COUNTED_AFTER_CLOSE: Duration = Duration::from_millis(50);

/// A channel of which a broker has one at a time, on either of its connections: users may
/// have a limit of channels. Dropping it leaves it open for the next use.
pub(crate) struct TransientChannel {
    pub(crate) channel: Channel,
    connection: u64,
    /// `None` after the drop.
    slot: Option<OwnedMutexGuard<TransientSlot>>,
    /// Whether the drop leaves the channel open, which it does by default. Otherwise
    /// RabbitMQ requeues the unsettled deliveries of the channel.
    pub(crate) is_reusable: bool,
    runtime: Handle,
}

impl TransientChannel {
    /// Waits until the broker has no other one, and opens it.
    pub(crate) async fn open(connection: &AmqpConnection) -> lapin::Result<Self> {
        let mut slot = Arc::clone(&connection.transient).lock_owned().await;
        let channel = match slot.kept.take() {
            Some((number, channel))
                if number == connection.number && channel.status().connected() =>
            {
                channel
            }
            kept => {
                if let Some((_, channel)) = kept {
                    close(&mut slot, &channel).await;
                }
                if let Some(closed_at) = slot.closed_at {
                    tokio::time::sleep_until(closed_at + COUNTED_AFTER_CLOSE).await;
                }
                connection.open_channel().await?
            }
        };
        Ok(Self {
            channel,
            connection: connection.number,
            slot: Some(slot),
            is_reusable: true,
            runtime: connection.runtime.clone(),
        })
    }
}

impl Drop for TransientChannel {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else {
            return;
        };
        let channel = self.channel.clone();
        if !channel.status().connected() {
            slot.closed_at = Some(Instant::now());
        } else if self.is_reusable {
            slot.kept = Some((self.connection, channel));
        } else {
            self.runtime
                .spawn(async move { close(&mut slot, &channel).await });
        }
    }
}

async fn close(slot: &mut TransientSlot, channel: &Channel) {
    let closed = channel.close(200, "".into());
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    slot.closed_at = Some(Instant::now());
}
