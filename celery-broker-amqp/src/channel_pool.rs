//! The pool of channels that messages are published on.

use std::sync::{Arc, Mutex};

use lapin::Channel;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sync::lock;

/// Batches on their way at the same time.
const MAX_CHANNELS: usize = 16;

/// The channels of a connection that messages are sent on.
#[derive(Debug)]
pub(crate) struct ConfirmChannelPool {
    idle: Mutex<Vec<Channel>>,
    free: Arc<Semaphore>,
}

impl Default for ConfirmChannelPool {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
            free: Arc::new(Semaphore::new(MAX_CHANNELS)),
        }
    }
}

impl ConfirmChannelPool {
    pub(crate) async fn acquire_permit(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.free).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    pub(crate) fn pop(&self) -> Option<Channel> {
        lock(&self.idle).pop()
    }

    pub(crate) fn push(&self, channel: Channel) {
        lock(&self.idle).push(channel);
    }
}
