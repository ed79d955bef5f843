//! Waiting for published results on one pub/sub connection.

use std::collections::HashMap;
use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use celery_broker_redis::client::{
    Operation, PubSubCommand, PubSubControl, PubSubMessage, RedisClient,
};
use celery_runtime::{ServiceError, ServiceErrorKind, env};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The interval of pings. A connection that is open but dead is detected after
/// this time plus the response timeout.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The time after which a connection without subscriptions is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The limit of requests that are processed together.
const MAX_REQUEST_BATCH: usize = 1000;

/// The limit of messages that are passed on before the requests that wait.
const MAX_MESSAGE_RUN: usize = 1000;

/// Subscribes to keys for any number of waiting calls. It connects for the
/// first subscription. When the connection breaks, all subscriptions fail, and
/// the next one connects again.
#[derive(Debug)]
pub(crate) struct ResultListener {
    client: RedisClient,
    running: Mutex<Option<RunningListener>>,
}

/// The running task and its request channel.
#[derive(Debug)]
struct RunningListener {
    requests: mpsc::UnboundedSender<ListenerRequest>,
    task: JoinHandle<()>,
}

/// A request to the task. There are as many as waiting calls, so their channel
/// needs no bound.
enum ListenerRequest {
    Subscribe {
        key: String,
        confirmed: oneshot::Sender<Result<watch::Receiver<Option<Bytes>>, ServiceError>>,
    },
    Unsubscribe(String),
}

/// A subscription to the documents that are published for one key.
#[derive(Debug)]
pub(crate) struct ResultSubscription {
    key: String,
    newest: watch::Receiver<Option<Bytes>>,
    requests: mpsc::UnboundedSender<ListenerRequest>,
    client: RedisClient,
}

impl ResultListener {
    pub(crate) fn new(client: RedisClient) -> Self {
        Self {
            client,
            running: Mutex::default(),
        }
    }

    /// Subscribes to a key; returns after the server has confirmed it.
    pub(crate) async fn subscribe(
        &self,
        operation: Operation<'_>,
        key: &str,
    ) -> Result<ResultSubscription, ServiceError> {
        let (confirmed, answer) = oneshot::channel();
        let requests = self.request(ListenerRequest::Subscribe {
            key: key.to_owned(),
            confirmed,
        });
        let newest = match answer.await {
            Ok(newest) => newest?,
            Err(_) => return Err(disconnected(operation, &self.client)),
        };
        Ok(ResultSubscription {
            key: key.to_owned(),
            newest,
            requests,
            client: self.client.clone(),
        })
    }

    /// Sends a request to the running task, or to a new one.
    fn request(&self, request: ListenerRequest) -> mpsc::UnboundedSender<ListenerRequest> {
        let mut running = self.lock();
        let unsent = match &*running {
            Some(current) => match current.requests.send(request) {
                Ok(()) => return current.requests.clone(),
                Err(unsent) => unsent.0,
            },
            None => request,
        };
        let (requests, received) = mpsc::unbounded_channel();
        let _ = requests.send(unsent);
        let task = env::spawn(ListenerTask::new(self.client.clone(), received).run());
        *running = Some(RunningListener {
            requests: requests.clone(),
            task,
        });
        requests
    }

    fn lock(&self) -> MutexGuard<'_, Option<RunningListener>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ResultListener {
    fn drop(&mut self) {
        if let Some(running) = self.lock().take() {
            running.task.abort();
        }
    }
}

impl ResultSubscription {
    /// Waits for a document that was published since the last call, and returns
    /// the newest.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self, operation: Operation<'_>) -> Result<Bytes, ServiceError> {
        loop {
            if self.newest.changed().await.is_err() {
                return Err(disconnected(operation, &self.client));
            }
            if let Some(bytes) = self.newest.borrow_and_update().clone() {
                return Ok(bytes);
            }
        }
    }
}

impl Drop for ResultSubscription {
    fn drop(&mut self) {
        // Before the request: the task counts the remaining receivers when it
        // processes it.
        self.newest = watch::Sender::new(None).subscribe();
        let key = std::mem::take(&mut self.key);
        // Sending fails only if the task has ended, and its subscriptions with
        // it.
        let _ = self.requests.send(ListenerRequest::Unsubscribe(key));
    }
}

/// Returns the error of a subscription whose task has ended.
fn disconnected(operation: Operation<'_>, client: &RedisClient) -> ServiceError {
    if client.is_closed() {
        return client.closed_error(operation);
    }
    operation.error(
        client,
        ServiceErrorKind::Disconnected,
        "the connection was lost",
    )
}

/// The task that owns the connection.
struct ListenerTask {
    client: RedisClient,
    requests: mpsc::UnboundedReceiver<ListenerRequest>,
    /// Dropping a sender fails the subscriptions to its key.
    keys: HashMap<String, watch::Sender<Option<Bytes>>>,
    idle_since: Instant,
}

const OPERATION: Operation<'static> = Operation::new("listen for", "results");

impl ListenerTask {
    fn new(client: RedisClient, requests: mpsc::UnboundedReceiver<ListenerRequest>) -> Self {
        Self {
            client,
            requests,
            keys: HashMap::new(),
            idle_since: env::instant(),
        }
    }

    async fn run(mut self) {
        let (mut channels, mut messages) = match self.client.pubsub(OPERATION).await {
            Ok(connection) => connection,
            Err(error) => return self.reject_pending(&error),
        };
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let mut passed_on = 0;
        loop {
            // Messages come before requests: passing one on takes no I/O, while a
            // steady flow of requests would delay results. After a run of messages
            // it is the turn of the requests, which a steady flow of messages would
            // delay. Pings come last, since the other branches also detect a broken
            // connection.
            let outcome = tokio::select! {
                biased;
                () = self.client.closed() => return,
                () = ready(()), if passed_on >= MAX_MESSAGE_RUN => {
                    passed_on = 0;
                    let waiting = std::iter::from_fn(|| self.requests.try_recv().ok());
                    batch.extend(waiting.take(MAX_REQUEST_BATCH));
                    self.update_subscriptions(&mut channels, std::mem::take(&mut batch)).await
                }
                message = messages.next() => match message {
                    Some(message) => {
                        passed_on += 1;
                        self.dispatch(message);
                        Ok(())
                    }
                    None => Err(channels.ended(OPERATION)),
                },
                _ = self.requests.recv_many(&mut batch, MAX_REQUEST_BATCH) => {
                    self.update_subscriptions(&mut channels, std::mem::take(&mut batch)).await
                }
                _ = heartbeat.tick() => {
                    if self.keys.is_empty() && self.idle_since.elapsed() >= IDLE_TIMEOUT {
                        return;
                    }
                    channels.ping(OPERATION).await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!("{error}");
                return;
            }
        }
    }

    /// Fails the pending subscriptions because the connection could not be
    /// opened.
    fn reject_pending(&mut self, error: &ServiceError) {
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            if let ListenerRequest::Subscribe { confirmed, .. } = request {
                let _ = confirmed.send(Err(error.clone()));
            }
        }
    }

    /// Passes a message to the subscriptions of its channel.
    fn dispatch(&self, message: PubSubMessage) {
        if let Some(key) = self.keys.get(&message.channel) {
            key.send_replace(Some(message.payload));
        }
    }

    /// Processes a batch of requests with at most two commands.
    async fn update_subscriptions(
        &mut self,
        channels: &mut PubSubControl,
        batch: Vec<ListenerRequest>,
    ) -> Result<(), ServiceError> {
        let mut subscribing = Vec::new();
        let mut added = Vec::new();
        let mut unused = Vec::new();
        for request in batch {
            match request {
                ListenerRequest::Subscribe { key, confirmed } => {
                    let sender = self.keys.entry(key.clone()).or_insert_with(|| {
                        added.push(key);
                        watch::Sender::new(None)
                    });
                    subscribing.push((confirmed, sender.subscribe()));
                }
                ListenerRequest::Unsubscribe(key) => unused.push(key),
            }
        }
        if !added.is_empty() {
            channels
                .change(OPERATION, PubSubCommand::Subscribe, &added)
                .await?;
        }
        for (confirmed, newest) in subscribing {
            // A caller that was cancelled meanwhile is removed below, or by its
            // `Unsubscribe`.
            let _ = confirmed.send(Ok(newest));
        }
        // Other calls may wait for the same key.
        unused.extend(added);
        unused.retain(|key| {
            self.keys
                .get(key)
                .is_some_and(|key| key.receiver_count() == 0)
        });
        for key in &unused {
            self.keys.remove(key);
        }
        if self.keys.is_empty() {
            self.idle_since = env::instant();
        }
        if unused.is_empty() {
            return Ok(());
        }
        channels
            .change(OPERATION, PubSubCommand::Unsubscribe, &unused)
            .await
    }
}
