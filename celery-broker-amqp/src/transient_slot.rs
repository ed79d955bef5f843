//! The one transient channel that a broker has, on either of its connections.

use std::sync::Arc;

use lapin::Channel;
use tokio::time::Instant;

/// Locked while the transient channel is used.
pub(crate) type SharedTransientSlot = Arc<tokio::sync::Mutex<TransientSlot>>;

/// The transient channel while nothing uses it.
#[derive(Debug, Default)]
pub(crate) struct TransientSlot {
    /// The channel that the last use has left open, with the number of its connection.
    pub(crate) kept: Option<(u64, Channel)>,
    /// When a transient channel was closed last.
    pub(crate) closed_at: Option<Instant>,
}
