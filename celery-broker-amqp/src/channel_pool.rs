//! The pool of channels for publishing on one connection.

use std::sync::{Arc, Mutex};

use lapin::Channel;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sync::lock;

/// The maximum number of channels, and so of batches in flight, per connection.
const MAX_CHANNELS: usize = 16;

/// The idle channels for publishing, and the permits that bound their number.
#[derive(Debug)]
pub(crate) struct ConfirmChannelPool {
    idle: Mutex<Vec<Channel>>,
    permits: Arc<Semaphore>,
}

impl Default for ConfirmChannelPool {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_CHANNELS)),
        }
    }
}

impl ConfirmChannelPool {
    /// Waits for the permit to use a channel.
    pub(crate) async fn acquire_permit(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Removes and returns an idle channel, which may be closed by now.
    pub(crate) fn pop(&self) -> Option<Channel> {
        lock(&self.idle).pop()
    }

    /// Returns a channel to the pool.
    pub(crate) fn push(&self, channel: Channel) {
        lock(&self.idle).push(channel);
    }
}
