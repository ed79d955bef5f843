//! One connection to RabbitMQ.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::{Channel, Connection, Event};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::channel_pool::ConfirmChannelPool;
use crate::declaration_cache::DeclarationCache;
use crate::error::{is_timeout, with_timeout};

/// The timeout of the probe that checks a suspect connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// One established connection with its channels and known declarations. It does
/// not reconnect.
pub(crate) struct AmqpConnection {
    connection: Connection,
    /// The timeout of the server's responses.
    response_timeout: Duration,
    /// Why the server has blocked publishing, while it does.
    blocked: watch::Receiver<Option<String>>,
    /// A response timed out, so that the connection is probed before its next use.
    suspect: AtomicBool,
    /// Runs `watch_events`. Aborted on drop.
    event_task: JoinHandle<()>,
    /// Runs the work that must finish when its caller is cancelled.
    pub(crate) runtime: Handle,
    /// The queues and exchanges that are known to exist on the server.
    pub(crate) declarations: DeclarationCache,
    /// The channels for publishing.
    pub(crate) confirm_channels: ConfirmChannelPool,
}

impl AmqpConnection {
    pub(crate) fn new(connection: Connection, response_timeout: Duration) -> Self {
        let (notice, blocked) = watch::channel(None);
        let event_task = tokio::spawn(watch_events(connection.events_listener(), notice));
        Self {
            connection,
            response_timeout,
            blocked,
            suspect: AtomicBool::new(false),
            event_task,
            runtime: Handle::current(),
            declarations: DeclarationCache::default(),
            confirm_channels: ConfirmChannelPool::default(),
        }
    }

    /// Opens a channel.
    pub(crate) async fn open_channel(&self) -> lapin::Result<Channel> {
        self.await_response(self.connection.create_channel()).await
    }

    /// Waits for a response of the server. After a timeout the connection is probed
    /// before its next use.
    pub(crate) async fn await_response<T>(
        &self,
        response: impl Future<Output = lapin::Result<T>>,
    ) -> lapin::Result<T> {
        let response = with_timeout(self.response_timeout, response).await;
        if matches!(&response, Err(error) if is_timeout(error)) {
            self.mark_suspect();
        }
        response
    }

    /// Makes the next use of the connection probe it first.
    pub(crate) fn mark_suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    /// Closes the connection, and ignores a server that does not respond.
    pub(crate) async fn close(&self) {
        let _ = self
            .await_response(self.connection.close(200, "".into()))
            .await;
    }

    /// Returns a receiver of the reason why the server has blocked publishing.
    pub(crate) fn watch_blocked(&self) -> watch::Receiver<Option<String>> {
        self.blocked.clone()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    fn blocked_reason(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Waits while the server blocks publishing. A message that is sent meanwhile
    /// would be accepted later, when its sender may have given up or sent it again.
    pub(crate) async fn wait_until_unblocked(&self) {
        let mut blocked = self.blocked.clone();
        // An error means that the connection is closed; the next request reports it.
        let _ = blocked.wait_for(Option::is_none).await;
    }

    /// Reports whether the connection is open, and probes it if it is suspect.
    pub(crate) async fn is_usable(&self) -> bool {
        if !self.is_connected() {
            return false;
        }
        // A server that blocks publishers is alive and sends no responses.
        if !self.suspect.load(Ordering::Relaxed) || self.blocked_reason().is_some() {
            return true;
        }
        let probe = tokio::time::timeout(PROBE_TIMEOUT, self.connection.create_channel()).await;
        let is_alive = matches!(probe, Ok(Ok(_)));
        if is_alive {
            self.suspect.store(false, Ordering::Relaxed);
        }
        is_alive
    }
}

impl Drop for AmqpConnection {
    fn drop(&mut self) {
        self.event_task.abort();
    }
}

impl fmt::Debug for AmqpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConnection")
            .field("connected", &self.is_connected())
            .field("blocked", &self.blocked_reason())
            .finish_non_exhaustive()
    }
}

/// Records whether the server blocks publishing on the connection.
async fn watch_events(
    events: impl futures_util::Stream<Item = Event>,
    blocked: watch::Sender<Option<String>>,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                let notice = format!("RabbitMQ blocks publishing ({reason})");
                tracing::warn!("connection: {notice}");
                blocked.send_replace(Some(notice));
            }
            Event::ConnectionUnblocked => {
                tracing::info!("connection: RabbitMQ accepts messages again");
                blocked.send_replace(None);
            }
            // A closed connection is not blocked.
            Event::Error(_) => {
                blocked.send_replace(None);
            }
            _ => {}
        }
    }
}
