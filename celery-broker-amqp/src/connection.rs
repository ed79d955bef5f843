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

/// How long a connection that did not answer has to show that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection as it was made.
pub(crate) struct AmqpConnection {
    connection: Connection,
    /// How long an answer may take.
    response_timeout: Duration,
    blocked: watch::Receiver<Option<String>>,
    /// An answer did not come, so that it has to be asked before it is used.
    suspect: AtomicBool,
    event_task: JoinHandle<()>,
    /// For what has to be brought to its end when its caller is gone.
    pub(crate) runtime: Handle,
    /// What is known to exist on the server.
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

    /// A new channel.
    pub(crate) async fn open_channel(&self) -> lapin::Result<Channel> {
        self.await_response(self.connection.create_channel()).await
    }

    /// What the server answers, within the time that it has.
    pub(crate) async fn await_response<T>(
        &self,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> lapin::Result<T> {
        let answer = with_timeout(self.response_timeout, answer).await;
        if matches!(&answer, Err(error) if is_timeout(error)) {
            self.mark_suspect();
        }
        answer
    }

    /// Somebody waited in vain: the connection has to show that it is there
    /// before it is used again.
    pub(crate) fn mark_suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    pub(crate) async fn close(&self) {
        // One that does not answer is dropped all the same.
        let _ = self
            .await_response(self.connection.close(200, "".into()))
            .await;
    }

    pub(crate) fn watch_blocked(&self) -> watch::Receiver<Option<String>> {
        self.blocked.clone()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    fn blocked_reason(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Waits while the server takes nothing: what is given to it then is taken
    /// later, when its sender may have given up or sent it again.
    pub(crate) async fn wait_until_unblocked(&self) {
        let mut blocked = self.blocked.clone();
        // An error means that the connection is gone, which shows soon.
        let _ = blocked.wait_for(Option::is_none).await;
    }

    pub(crate) async fn is_usable(&self) -> bool {
        if !self.is_connected() {
            return false;
        }
        // A server that blocks publishers is there and says nothing.
        if !self.suspect.load(Ordering::Relaxed) || self.blocked_reason().is_some() {
            return true;
        }
        let probe = tokio::time::timeout(PROBE_TIMEOUT, self.connection.create_channel()).await;
        let answered = matches!(probe, Ok(Ok(_)));
        if answered {
            self.suspect.store(false, Ordering::Relaxed);
        }
        answered
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

/// Passes on what the server says about the connection.
async fn watch_events(
    events: impl futures_util::Stream<Item = Event>,
    blocked: watch::Sender<Option<String>>,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                let notice = format!("RabbitMQ takes no messages ({reason})");
                tracing::warn!("{notice}");
                blocked.send_replace(Some(notice));
            }
            Event::ConnectionUnblocked => {
                tracing::info!("RabbitMQ takes messages again");
                blocked.send_replace(None);
            }
            // The connection is gone, and so is whatever blocked it.
            Event::Error(_) => {
                blocked.send_replace(None);
            }
            _ => {}
        }
    }
}
