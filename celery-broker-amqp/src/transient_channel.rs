//! The channel for declarations and for moving messages.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicQosOptions;
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::connection::AmqpConnection;
use crate::error::with_timeout;
use crate::lanes::LaneConnection;
use crate::transient_slot::TransientSlot;

/// The timeout of closing a transient channel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The timeout of the probe of a suspect connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

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
    /// Waits until the broker has no other one, and opens it. While the server blocks the
    /// connection it waits before that, so that the other connection is not held up.
    pub(crate) async fn open(connection: &AmqpConnection) -> lapin::Result<Self> {
        let mut blocked = connection.watch_blocked();
        let unblocked = async {
            // The sender is gone with the connection.
            let _ = blocked.wait_for(Option::is_none).await;
            Ok(())
        };
        with_timeout(connection.response_timeout, unblocked).await?;
        let slot = Arc::clone(&connection.transient).lock_owned().await;
        Self::open_in(slot, connection).await
    }

    async fn open_in(
        mut slot: OwnedMutexGuard<TransientSlot>,
        connection: &AmqpConnection,
    ) -> lapin::Result<Self> {
        let channel = match slot.kept.take() {
            Some((number, channel))
                if number == connection.number && channel.status().connected() =>
            {
                channel
            }
            kept => {
                let closed_at = slot.closed_at;
                if let Some((_, channel)) = kept {
                    // Also if this call is dropped.
                    slot.closed_at = Some(Instant::now());
                    close(&mut slot, &channel).await;
                }
                if let Some(closed_at) = slot.closed_at.max(closed_at) {
                    tokio::time::sleep_until(closed_at + COUNTED_AFTER_CLOSE).await;
                }
                slot.closed_at = Some(Instant::now());
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

    /// Reports whether the server answers on a suspect connection. Uses the transient
    /// channel unless it is in use.
    pub(crate) async fn probe(connection: &AmqpConnection) -> bool {
        let answers = async {
            let Ok(slot) = Arc::clone(&connection.transient).try_lock_owned() else {
                return connection.open_channel().await.map(drop);
            };
            let mut transient = Self::open_in(slot, connection).await?;
            transient.is_reusable = false;
            // The channel may have been open before.
            let options = BasicQosOptions::default();
            transient.channel.basic_qos(0, options).await?;
            transient.is_reusable = true;
            Ok(())
        };
        let is_alive = with_timeout(PROBE_TIMEOUT, answers).await.is_ok();
        if is_alive {
            connection.clear_suspect();
        }
        is_alive
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

/// Closes a channel. A server that does not answer must not block later declarations.
async fn close(slot: &mut TransientSlot, channel: &Channel) {
    let closed = channel.close(200, "".into());
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    slot.closed_at = Some(Instant::now());
}
