//! The rpc result backend: results are messages to the queue of whoever asked.

mod inbox;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use celery_protocol::{Headers, Message, Properties, ResultDocument, ResultTree, Serializer};
use celery_runtime::{
    BoxFuture, Broker, Capabilities, Mailbox, Publication, Record, ResultBackend, ServiceError,
    ServiceErrorKind, Subscription,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use inbox::{Inbox, ReplySlot};

/// Celery's `rpc://`: a worker sends each state of a task to the queue that
/// the task's sender reads, and nothing is stored anywhere.
///
/// - Only the process that sent a task can have its result. There are no
///   groups, and no chords.
/// - The queue is opened before the first task is sent, and disappears with
///   this client. What is sent to it while its connection is down is lost: wait
///   with a timeout.
/// - Every waiting task shares the one queue. A result that nobody has read is
///   kept until it was read or [`unread_limit`](Self::unread_limit) newer ones
///   have come.
///
/// It is made of the messages of any broker, which it shares with the app.
/// Cloning is cheap; clones share the queue.
#[derive(Clone)]
pub struct RpcBackend {
    broker: Arc<dyn Broker>,
    /// The name of the reply queue.
    queue: String,
    expires: Duration,
    serializer: Serializer,
    delivery_mode: u8,
    shared: Arc<RpcInner>,
}

/// What clones have in common.
struct RpcInner {
    inbox: Arc<Inbox>,
    reader: tokio::sync::Mutex<Option<ReaderTask>>,
    /// Results that were sent to somebody who was gone.
    undelivered: AtomicU64,
}

const DEFAULT_EXPIRY: Duration = Duration::from_secs(86_400);

const DEFAULT_UNREAD_LIMIT: usize = 100_000;

impl RpcInner {
    fn new(unread_limit: usize) -> Self {
        Self {
            inbox: Arc::new(Inbox::new(unread_limit)),
            reader: tokio::sync::Mutex::default(),
            undelivered: AtomicU64::new(0),
        }
    }
}

/// The task that reads the reply queue; it ends with its connection.
struct ReaderTask(JoinHandle<()>);

impl Drop for ReaderTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RpcBackend {
    /// A backend on the broker of the app. The queue for its replies gets a
    /// random name; nothing is opened before the first task is sent.
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Self {
            broker,
            queue: Uuid::new_v4().to_string(),
            expires: DEFAULT_EXPIRY,
            serializer: Serializer::Json,
            delivery_mode: 1,
            shared: Arc::new(RpcInner::new(DEFAULT_UNREAD_LIMIT)),
        }
    }

    /// How long the reply queue stays when nobody reads it, Celery's
    /// `result_expires`; a day by default, and where it is `None`.
    #[must_use]
    pub fn result_expires(self, expires: Option<Duration>) -> Self {
        Self {
            expires: expires.unwrap_or(DEFAULT_EXPIRY),
            ..self
        }
    }

    /// The serializer of results that are sent; JSON by default.
    #[must_use]
    pub fn serializer(self, serializer: Serializer) -> Self {
        Self { serializer, ..self }
    }

    /// Results survive a restart of the broker, as with Celery's
    /// `result_persistent`.
    #[must_use]
    pub fn persistent(self) -> Self {
        Self {
            delivery_mode: 2,
            ..self
        }
    }

    /// How many results are kept that nobody has read; 100,000 by default.
    #[must_use]
    pub fn unread_limit(self, results: usize) -> Self {
        Self {
            shared: Arc::new(RpcInner::new(results)),
            ..self
        }
    }

    /// How many results were for nobody: they were not read before they had to
    /// make room for others, could not be read, or were sent to somebody who
    /// was gone.
    pub fn dropped(&self) -> u64 {
        let RpcInner {
            inbox, undelivered, ..
        } = &*self.shared;
        inbox.dropped() + undelivered.load(Ordering::Relaxed)
    }
}

impl ResultBackend for RpcBackend {
    fn store<'a>(&'a self, record: Record<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.send_reply(record))
    }

    fn prepare<'a>(&'a self, _ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.open_reply_queue())
    }

    fn fetch<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<ResultDocument<'static>>>, ServiceError>> {
        Box::pin(async move {
            self.sync_replies().await?;
            Ok(ids
                .iter()
                .map(|id| self.shared.inbox.document(id))
                .collect())
        })
    }

    fn wait<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<ResultDocument<'static>, ServiceError>> {
        Box::pin(async move {
            self.open_reply_queue().await?;
            match self.shared.inbox.wait_for(id) {
                ReplySlot::Ready(document) => Ok(*document),
                ReplySlot::Pending(document) => self.receive_reply(document).await,
            }
        })
    }

    fn forget<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            self.shared.inbox.forget(ids);
            Ok(())
        })
    }

    fn store_group<'a>(&'a self, group: &'a ResultTree) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move { Err(groups_unsupported("store", &group.id)) })
    }

    fn fetch_group<'a>(
        &'a self,
        group_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ResultTree>, ServiceError>> {
        Box::pin(async move { Err(groups_unsupported("read", group_id)) })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    fn reply_to(&self) -> Option<String> {
        Some(self.queue.clone())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.reader.lock().await.take();
            self.shared.inbox.fail(&self.error(
                ServiceErrorKind::Closed,
                "the backend was closed".to_owned(),
            ));
        })
    }
}

impl fmt::Debug for RpcBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RpcBackend").field(&self.queue).finish()
    }
}

impl RpcBackend {
    /// Sends a document to whoever asked for it.
    async fn send_reply(&self, record: Record<'_>) -> Result<(), ServiceError> {
        let Some(reply_to) = record.reply_to else {
            return Ok(());
        };
        let document = record.document;
        let body = document.encode(self.serializer).map_err(|error| {
            let object = format!("the result of task {}", document.task_id);
            ServiceError::new(ServiceErrorKind::Invalid, "send", object, error.to_string())
        })?;
        let mut properties = Properties::of(self.serializer);
        properties.correlation_id = Some(
            record
                .correlation_id
                .unwrap_or(&document.task_id)
                .to_owned(),
        );
        properties.priority = Some(0);
        properties.delivery_mode = Some(self.delivery_mode);
        let message = Message::new(Headers::empty(), properties, body);
        match self.publish(message, reply_to).await {
            Err(error) if error.kind() == ServiceErrorKind::Unroutable => {
                self.shared.undelivered.fetch_add(1, Ordering::Relaxed);
                tracing::debug!("nobody reads the result of task {}", document.task_id);
                Ok(())
            }
            sent => sent,
        }
    }

    async fn publish(&self, message: Message, queue: &str) -> Result<(), ServiceError> {
        let batch = [Publication::to_queue(message, queue)];
        self.broker.publish(&batch).await.pop().unwrap_or(Ok(()))
    }

    /// Makes sure that the reply queue is there and is read.
    async fn open_reply_queue(&self) -> Result<(), ServiceError> {
        let mut reader = self.shared.reader.lock().await;
        if reader.is_some() && self.shared.inbox.is_open() {
            return Ok(());
        }
        let replies = self
            .broker
            .subscribe(&Mailbox::named(self.queue.as_str(), self.expires))
            .await?;
        self.shared.inbox.open();
        let reading = read_replies(replies, Arc::clone(&self.shared.inbox));
        *reader = Some(ReaderTask(tokio::spawn(reading)));
        Ok(())
    }

    /// Waits until everything has been read that was sent before: a message
    /// to ourselves comes after all of it.
    async fn sync_replies(&self) -> Result<(), ServiceError> {
        self.open_reply_queue().await?;
        let id = Uuid::new_v4().to_string();
        let came_back = self.shared.inbox.expect_marker(&id);
        let mut properties = Properties::default();
        properties.correlation_id = Some(id);
        properties.delivery_mode = Some(1);
        let marker = Message::new(Headers::empty(), properties, Vec::new());
        self.publish(marker, &self.queue).await?;
        self.receive_reply(came_back).await
    }

    async fn receive_reply<T>(
        &self,
        reply: oneshot::Receiver<Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        reply.await.unwrap_or_else(|_| {
            let cause = "the reply queue is not read any more";
            Err(self.error(ServiceErrorKind::Disconnected, cause.to_owned()))
        })
    }

    fn error(&self, kind: ServiceErrorKind, cause: String) -> ServiceError {
        let object = format!("reply queue {}", self.queue);
        ServiceError::new(kind, "read", object, cause)
    }
}

/// Reads replies until the queue's connection breaks, which everybody who waits
/// is told.
async fn read_replies(mut replies: Box<dyn Subscription>, inbox: Arc<Inbox>) {
    loop {
        match replies.next().await {
            Ok(message) => inbox.handle_message(&message),
            Err(error) => return inbox.fail(&error),
        }
    }
}

fn groups_unsupported(operation: &'static str, group_id: &str) -> ServiceError {
    let cause = "results are messages here, and nothing is stored";
    let object = format!("group {group_id}");
    ServiceError::new(ServiceErrorKind::Unsupported, operation, object, cause)
        .with_remedy("use a result backend that every worker can read, such as redis://")
}
