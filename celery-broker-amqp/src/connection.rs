//! One connection to RabbitMQ.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ErrorKind, Event};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::declaration_cache::DeclarationCache;
use crate::error::{is_timeout, reply_code, with_timeout};
use crate::lanes::{LaneConnection, Lanes, Targets};
use crate::options::PublisherConfirms;
use crate::queue_lookups::QueueLookups;
use crate::transient_slot::SharedTransientSlot;

/// The number of channels that the server closes before the connection is replaced.
const MAX_REFUSED_CHANNELS: usize = 64;

/// One established connection with its channels and known declarations. It does
/// not reconnect.
pub(crate) struct AmqpConnection {
    connection: Connection,
    /// The timeout of the server's responses.
    pub(crate) response_timeout: Duration,
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
    /// The look-ups of queues in flight.
    pub(crate) lookups: QueueLookups,
    /// The channels for publishing.
    pub(crate) lanes: Lanes,
    /// The channel for requests that the server may refuse. Requests are sent in series,
    /// so that an error of the channel belongs to its request.
    pub(crate) transient: SharedTransientSlot,
    /// Identifies the connection.
    pub(crate) number: u64,
    /// The number of failures of channels that the server has closed. lapin gives the
    /// error of such a channel to the next one with its number.
    refused_channels: AtomicUsize,
}

impl AmqpConnection {
    pub(crate) fn new(
        connection: Connection,
        response_timeout: Duration,
        confirms: PublisherConfirms,
        targets: Arc<Targets>,
        transient: SharedTransientSlot,
    ) -> Self {
        static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
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
            lookups: QueueLookups::default(),
            lanes: Lanes::new(confirms, targets),
            transient,
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            refused_channels: AtomicUsize::new(0),
        }
    }

    /// Opens a channel.
    pub(crate) async fn open_channel(&self) -> lapin::Result<Channel> {
        loop {
            let opened = self.await_response(self.connection.create_channel()).await;
            match &opened {
                Err(error) if matches!(error.kind(), ErrorKind::ChannelsLimitReached) => {
                    self.refused_channels
                        .fetch_max(usize::MAX / 2, Ordering::Relaxed);
                }
                // RabbitMQ refuses no channel without closing the connection: the error is
                // that of an earlier channel with the same number.
                Err(error)
                    if reply_code(error).is_some() && self.is_connected() && !self.is_worn() =>
                {
                    continue;
                }
                _ => {}
            }
            return opened;
        }
    }

    /// Reports whether the connection is to be replaced, before its channel numbers
    /// run out. The channels that are open stay open.
    fn is_worn(&self) -> bool {
        let channel_max = usize::from(self.connection.configuration().channel_max());
        let limit = MAX_REFUSED_CHANNELS.min(channel_max / 2).max(1);
        self.refused_channels.load(Ordering::Relaxed) >= limit
    }

    /// Waits for a response of the server. After a timeout the connection is probed
    /// before its next use.
    pub(crate) async fn await_response<T>(
        &self,
        response: impl Future<Output = lapin::Result<T>>,
    ) -> lapin::Result<T> {
        let response = with_timeout(self.response_timeout, response).await;
        match &response {
            Ok(_) => {}
            Err(error) if is_timeout(error) => self.mark_suspect(),
            Err(error) => self.note_failure(error),
        }
        response
    }

    /// Closes the connection, and ignores a server that does not respond.
    pub(crate) async fn close(&self) {
        let _ = self
            .await_response(self.connection.close(200, "".into()))
            .await;
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    fn blocked_reason(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Reports whether the connection can be used, if it answers.
    pub(crate) fn is_usable(&self) -> bool {
        self.is_connected() && !self.is_worn()
    }

    /// Reports whether the connection is to be probed before its next use. A server that
    /// blocks publishers is alive and sends no responses.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed) && self.blocked_reason().is_none()
    }

    /// Records that the connection has answered a probe.
    pub(crate) fn clear_suspect(&self) {
        self.suspect.store(false, Ordering::Relaxed);
    }
}

impl LaneConnection for AmqpConnection {
    fn open_channel(&self, confirms: PublisherConfirms) -> BoxFuture<'_, lapin::Result<Channel>> {
        Box::pin(async move {
            let channel = self.open_channel().await?;
            if confirms == PublisherConfirms::On {
                let confirm = channel.confirm_select(ConfirmSelectOptions::default());
                self.await_response(confirm).await?;
            }
            Ok(channel)
        })
    }

    fn note_failure(&self, error: &lapin::Error) {
        if reply_code(error).is_some() && self.is_connected() {
            self.refused_channels.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn mark_suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    fn watch_blocked(&self) -> watch::Receiver<Option<String>> {
        self.blocked.clone()
    }

    fn spawn(&self, lane: BoxFuture<'static, ()>) {
        self.runtime.spawn(lane);
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
