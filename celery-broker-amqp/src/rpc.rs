//! The rpc result backend: a worker publishes results to the reply queue of the
//! client.

mod inbox;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Headers, Message, Properties, ResultDocument, ResultTree, Serializer};
use celery_runtime::{
    BackendCapabilities, BoxFuture, Broker, Mailbox, Publication, ResultBackend, ResultRecord,
    ServiceError, ServiceErrorKind, Subscription,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use inbox::{Inbox, ReplySlot};

/// Celery's `rpc://` result backend: a worker publishes each state of a task to
/// the reply queue of the client, and stores nothing.
///
/// - Only the process that sent a task can read its result. Groups and chords
///   are not supported.
/// - The reply queue is declared before the first task is sent and is deleted
///   with this client. Replies that are published to it while its connection is
///   down are lost: wait with a timeout.
/// - All tasks of a client share one reply queue. An unread result is kept until
///   it is read or [`unread_limit`](Self::unread_limit) newer ones have arrived.
///
/// The backend works on any broker and shares the broker of the app. Cloning is
/// cheap; clones share the reply queue.
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

/// The state that clones of the backend share.
struct RpcInner {
    inbox: Arc<Inbox>,
    reader: tokio::sync::Mutex<Option<ReaderTask>>,
}

/// Celery's default of `result_expires`.
const DEFAULT_EXPIRY: Duration = Duration::from_secs(86_400);

const DEFAULT_UNREAD_LIMIT: usize = 100_000;

impl RpcInner {
    fn new(unread_limit: usize) -> Self {
        Self {
            inbox: Arc::new(Inbox::new(unread_limit)),
            reader: tokio::sync::Mutex::default(),
        }
    }
}

/// The tokio task that reads the reply queue until the connection breaks. Aborted
/// on drop.
struct ReaderTask(JoinHandle<()>);

impl Drop for ReaderTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RpcBackend {
    /// Creates a backend on the broker of the app. The reply queue gets a random
    /// name and is declared before the first task is sent.
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

    /// Sets the time after which RabbitMQ deletes an unused reply queue, Celery's
    /// `result_expires`. Defaults to one day, which `None` also means.
    #[must_use]
    pub fn result_expires(self, expires: Option<Duration>) -> Self {
        Self {
            expires: expires.unwrap_or(DEFAULT_EXPIRY),
            ..self
        }
    }

    /// Sets the serializer of the results that are published. Defaults to JSON.
    #[must_use]
    pub fn serializer(self, serializer: Serializer) -> Self {
        Self { serializer, ..self }
    }

    /// Publishes results as persistent messages, as Celery does with
    /// `result_persistent`. They are transient by default.
    #[must_use]
    pub fn persistent(self) -> Self {
        Self {
            delivery_mode: 2,
            ..self
        }
    }

    /// Sets the maximum number of unread results that are kept. Defaults to
    /// 100,000.
    #[must_use]
    pub fn unread_limit(self, results: usize) -> Self {
        Self {
            shared: Arc::new(RpcInner::new(results)),
            ..self
        }
    }

    /// Returns the number of received results that were evicted unread or could not be
    /// decoded.
    pub fn dropped(&self) -> u64 {
        self.shared.inbox.dropped()
    }
}

impl ResultBackend for RpcBackend {
    fn store<'a>(&'a self, record: ResultRecord<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
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

    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities::new()
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
    /// Publishes a document to the reply queue of the client.
    async fn send_reply(&self, record: ResultRecord<'_>) -> Result<(), ServiceError> {
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
        // The server drops the result of a client that is gone, as with Celery's workers.
        self.publish(Publication::to_queue(message, reply_to).not_mandatory())
            .await
    }

    async fn publish(&self, publication: Publication) -> Result<(), ServiceError> {
        let batch = [publication];
        self.broker.publish(&batch).await.pop().unwrap_or(Ok(()))
    }

    /// Ensures that the reply queue is declared and is being read.
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

    /// Waits until every reply that was published before this call has been
    /// read. The client publishes a marker to its own reply queue, which RabbitMQ
    /// delivers after all of them.
    async fn sync_replies(&self) -> Result<(), ServiceError> {
        self.open_reply_queue().await?;
        let id = Uuid::new_v4().to_string();
        let marker_received = self.shared.inbox.expect_marker(&id);
        let mut properties = Properties::default();
        properties.correlation_id = Some(id);
        properties.delivery_mode = Some(1);
        let marker = Message::new(Headers::empty(), properties, Vec::new());
        match self
            .publish(Publication::to_queue(marker, &*self.queue))
            .await
        {
            // A restarted server has lost the queue; it is declared again once the
            // reader has seen that.
            Err(error) if error.kind() == ServiceErrorKind::Unroutable => {
                let cause = "the reply queue does not exist any more";
                Err(self.error(ServiceErrorKind::Disconnected, cause.to_owned()))
            }
            Err(error) => Err(error),
            Ok(()) => self.receive_reply(marker_received).await,
        }
    }

    /// Waits for a reply, or for the error that stopped the reading.
    async fn receive_reply<T>(
        &self,
        reply: oneshot::Receiver<Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        reply.await.unwrap_or_else(|_| {
            let cause = "the reader of the reply queue has stopped";
            Err(self.error(ServiceErrorKind::Disconnected, cause.to_owned()))
        })
    }

    fn error(&self, kind: ServiceErrorKind, cause: String) -> ServiceError {
        let object = format!("reply queue {}", self.queue);
        ServiceError::new(kind, "read", object, cause)
    }
}

/// Reads replies until the connection breaks, and fails the pending calls with
/// that error.
async fn read_replies(mut replies: Box<dyn Subscription>, inbox: Arc<Inbox>) {
    loop {
        match replies.next().await {
            Ok(message) => inbox.handle_message(&message),
            Err(error) => return inbox.fail(&error),
        }
    }
}

fn groups_unsupported(operation: &'static str, group_id: &str) -> ServiceError {
    let cause = "the rpc backend publishes results as messages: nothing is stored";
    let object = format!("group {group_id}");
    ServiceError::new(ServiceErrorKind::Unsupported, operation, object, cause)
        .with_remedy("use a result backend that every worker can read, such as redis://")
}
