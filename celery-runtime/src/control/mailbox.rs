//! Sends commands and receives the replies: [`ControlMailbox`].

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery_protocol::{ControlRequest, ReplyAddress};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::app::inner::AppInner;
use crate::boundary::{Broker, ServiceError, ServiceErrorKind, Store, Subscription};
use crate::config::Config;
use crate::control::error::ControlError;
use crate::control::router::{CollectedReplies, ReplyRouter};
use crate::env;
use crate::env::Clock;
use crate::logical_clock::LogicalClock;
use crate::revocation::store_revocations;

/// The connection that all clones of a [`Control`](crate::control::Control) share.
#[derive(Debug)]
pub(crate) struct ControlMailbox {
    broker: Arc<dyn Broker>,
    store: Option<Arc<dyn Store>>,
    config: Arc<Config>,
    clock: Clock,
    logical_clock: LogicalClock,
    /// The mailbox for replies; opened by the first call that needs it.
    mailbox: Mutex<Option<OpenMailbox>>,
}

/// An open mailbox and the task that reads it.
#[derive(Debug)]
struct OpenMailbox {
    /// The routing key to which workers send replies.
    id: String,
    router: Arc<ReplyRouter>,
    reader: JoinHandle<()>,
}

impl ControlMailbox {
    pub(crate) fn new(app: &AppInner) -> Self {
        Self {
            broker: Arc::clone(&app.broker),
            store: app.store.clone(),
            config: Arc::clone(&app.config),
            clock: app.clock.clone(),
            logical_clock: app.logical_clock.clone(),
            mailbox: Mutex::default(),
        }
    }

    /// Stores durable revocations of these tasks for the time `ttl`.
    pub(crate) async fn store_revoked(
        &self,
        ids: &[String],
        ttl: Duration,
    ) -> Result<(), ControlError> {
        let failed = |cause| ControlError::Store {
            command: "revoke".to_owned(),
            cause,
        };
        let Some(store) = self.store.as_deref() else {
            return Err(failed(ServiceError::new(
                ServiceErrorKind::Unsupported,
                "store",
                "revoked tasks",
                "there is no store that clients and workers share",
            )));
        };
        let storing = store_revocations(store, ids, ttl);
        self.within("store", "revoked tasks", storing)
            .await
            .map_err(failed)
    }

    /// Sends a request that expires after `ttl`.
    pub(crate) async fn send(
        &self,
        mut request: ControlRequest,
        ttl: Duration,
    ) -> Result<(), ControlError> {
        request.clock = self.logical_clock.forward();
        request.expires = unix_time(self.clock.now() + ttl);
        let command = request.method.clone();
        let message = match request.write() {
            Ok(message) => message,
            Err(cause) => return Err(ControlError::Encode { command, cause }),
        };
        let exchange = self.config.control.requests();
        let sent = self.broker.broadcast(&exchange, "", &message);
        self.within("broadcast to", &exchange.name, sent)
            .await
            .map(drop)
            .map_err(|cause| ControlError::Send { command, cause })
    }

    /// Sends a request and collects the replies until `wait` is over or there are
    /// `limit`.
    pub(crate) async fn call(
        &self,
        mut request: ControlRequest,
        wait: Duration,
        limit: Option<usize>,
    ) -> Result<CollectedReplies, ControlError> {
        let command = request.method.clone();
        let failed = |cause| ControlError::Receive {
            command: command.clone(),
            cause,
        };
        let (id, router) = self.open().await.map_err(failed)?;
        let ticket = env::uuid();
        let mut pending = router.register(&ticket, limit);
        request.ticket = Some(ticket);
        let replies = self.config.control.replies().name;
        request.reply_to = Some(ReplyAddress::new(replies, id));
        self.send(request, wait).await?;
        match timeout(wait, pending.done()).await {
            Ok(Err(cause)) => Err(failed(cause)),
            // Later replies are ignored.
            Ok(Ok(())) | Err(_) => Ok(pending.collected()),
        }
    }

    /// Returns the open mailbox for replies, or opens one. Each has a new name, since
    /// the broker may not have detected the lost connection of the last one yet.
    async fn open(&self) -> Result<(String, Arc<ReplyRouter>), ServiceError> {
        let id = env::uuid();
        let address = self.config.control.reply_mailbox(&id);
        let opening = async {
            let mut mailbox = self.mailbox.lock().await;
            if let Some(open) = mailbox.as_ref().filter(|one| one.router.is_open()) {
                return Ok((open.id.clone(), Arc::clone(&open.router)));
            }
            let replies = self.broker.subscribe(&address).await?;
            let router = Arc::new(ReplyRouter::new(self.logical_clock.clone()));
            let reader = env::spawn(read(replies, Arc::clone(&router)));
            let answer = (id.clone(), Arc::clone(&router));
            *mailbox = Some(OpenMailbox { id, router, reader });
            Ok(answer)
        };
        // The timeout includes the wait for the lock while another call opens it.
        self.within("open mailbox", &address.name, opening).await
    }

    /// Limits an operation to the configured timeout.
    async fn within<T>(
        &self,
        operation: &'static str,
        object: &str,
        future: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        let deadline = self.config.operation_timeout;
        timeout(deadline, future).await.unwrap_or_else(|_| {
            let blocked_reason = self.broker.blocked_reason();
            Err(ServiceError::no_answer_for(
                operation,
                object,
                deadline,
                blocked_reason,
            ))
        })
    }
}

impl Drop for OpenMailbox {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Routes replies until the mailbox is lost, and then ends all calls.
async fn read(mut replies: Box<dyn Subscription>, router: Arc<ReplyRouter>) {
    loop {
        match replies.next().await {
            Ok(message) => router.deliver(&message),
            Err(error) => return router.fail(&error),
        }
    }
}

fn unix_time(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64()
}
