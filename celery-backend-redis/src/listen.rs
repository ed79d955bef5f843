//! Waiting for announcements: one pub/sub connection for all who wait.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use celery_broker_redis::link::{Attempt, Change, Channels, Link, Published};
use celery_runtime::{ServiceError, ServiceErrorKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often the server is asked whether it is still there. A connection that
/// is open and dead is noticed after this and the response timeout.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A connection that nobody waits on any more is kept this long.
const IDLE: Duration = Duration::from_secs(30);

/// Requests that are carried out together.
const BATCH: usize = 1000;

/// Subscribes to keys on behalf of many. It connects for the first of them; when
/// the connection breaks, all who wait are told, and the next one begins anew.
#[derive(Debug)]
pub(crate) struct Listener {
    link: Link,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    requests: mpsc::UnboundedSender<Request>,
    task: JoinHandle<()>,
}

/// Requests are as many as there are waiters, so their queue needs no bound.
enum Request {
    Join {
        key: String,
        joined: oneshot::Sender<Result<watch::Receiver<Option<Bytes>>, ServiceError>>,
    },
    Leave(String),
}

/// What is announced under one key, from the subscription on.
#[derive(Debug)]
pub(crate) struct Announced {
    key: String,
    newest: watch::Receiver<Option<Bytes>>,
    requests: mpsc::UnboundedSender<Request>,
    link: Link,
}

impl Listener {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            link,
            running: Mutex::default(),
        }
    }

    /// Returns when the server has confirmed the subscription.
    pub(crate) async fn subscribe(
        &self,
        attempt: Attempt<'_>,
        key: &str,
    ) -> Result<Announced, ServiceError> {
        let (joined, answer) = oneshot::channel();
        let requests = self.request(Request::Join {
            key: key.to_owned(),
            joined,
        });
        let newest = match answer.await {
            Ok(newest) => newest?,
            Err(_) => return Err(broken(attempt, &self.link)),
        };
        Ok(Announced {
            key: key.to_owned(),
            newest,
            requests,
            link: self.link.clone(),
        })
    }

    /// Hands a request to the running task, or to a new one.
    fn request(&self, request: Request) -> mpsc::UnboundedSender<Request> {
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
        let task = tokio::spawn(Task::new(self.link.clone(), received).run());
        *running = Some(Running {
            requests: requests.clone(),
            task,
        });
        requests
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(running) = self.lock().take() {
            running.task.abort();
        }
    }
}

impl Announced {
    /// The newest announcement since the last call; those in between are
    /// skipped.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self, attempt: Attempt<'_>) -> Result<Bytes, ServiceError> {
        loop {
            if self.newest.changed().await.is_err() {
                return Err(broken(attempt, &self.link));
            }
            if let Some(bytes) = self.newest.borrow_and_update().clone() {
                return Ok(bytes);
            }
        }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        // Before the request: whoever carries it out counts who still listens.
        self.newest = watch::Sender::new(None).subscribe();
        let key = std::mem::take(&mut self.key);
        // A task that has ended has no subscriptions left to end.
        let _ = self.requests.send(Request::Leave(key));
    }
}

fn broken(attempt: Attempt<'_>, link: &Link) -> ServiceError {
    if link.is_closed() {
        return link.closed_error(attempt);
    }
    attempt.error(link, ServiceErrorKind::Disconnected, "the connection broke")
}

/// The task that owns the connection.
struct Task {
    link: Link,
    requests: mpsc::UnboundedReceiver<Request>,
    /// Dropping a sender tells its waiters that the connection broke.
    keys: HashMap<String, watch::Sender<Option<Bytes>>>,
    idle_since: Instant,
}

const ATTEMPT: Attempt<'static> = Attempt::new("listen for", "results");

impl Task {
    fn new(link: Link, requests: mpsc::UnboundedReceiver<Request>) -> Self {
        Self {
            link,
            requests,
            keys: HashMap::new(),
            idle_since: Instant::now(),
        }
    }

    async fn run(mut self) {
        let (mut channels, mut messages) = match self.link.pubsub(ATTEMPT).await {
            Ok(connection) => connection,
            Err(error) => return self.refuse(&error),
        };
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            let outcome = tokio::select! {
                message = messages.next() => match message {
                    Some(message) => {
                        self.announce(message);
                        Ok(())
                    }
                    None => Err(channels.ended(ATTEMPT)),
                },
                _ = self.requests.recv_many(&mut batch, BATCH) => {
                    self.change(&mut channels, std::mem::take(&mut batch)).await
                }
                _ = heartbeat.tick() => {
                    if self.keys.is_empty() && self.idle_since.elapsed() >= IDLE {
                        return;
                    }
                    channels.ping(ATTEMPT).await
                }
                () = self.link.closed() => return,
            };
            if let Err(error) = outcome {
                tracing::debug!("{error}");
                return;
            }
        }
    }

    /// Answers all who asked meanwhile with the reason why nobody listens.
    fn refuse(&mut self, error: &ServiceError) {
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            if let Request::Join { joined, .. } = request {
                let _ = joined.send(Err(error.clone()));
            }
        }
    }

    fn announce(&self, message: Published) {
        if let Some(key) = self.keys.get(&message.channel) {
            key.send_replace(Some(message.payload));
        }
    }

    async fn change(
        &mut self,
        channels: &mut Channels,
        batch: Vec<Request>,
    ) -> Result<(), ServiceError> {
        let mut joining = Vec::new();
        let mut added = Vec::new();
        let mut left = Vec::new();
        for request in batch {
            match request {
                Request::Join { key, joined } => {
                    let sender = self.keys.entry(key.clone()).or_insert_with(|| {
                        added.push(key);
                        watch::Sender::new(None)
                    });
                    joining.push((joined, sender.subscribe()));
                }
                Request::Leave(key) => left.push(key),
            }
        }
        if !added.is_empty() {
            channels.change(ATTEMPT, Change::Subscribe, &added).await?;
        }
        for (joined, newest) in joining {
            // Whoever gave up meanwhile is counted out below or by his `Leave`.
            let _ = joined.send(Ok(newest));
        }
        // Somebody else may wait for the same key.
        left.extend(added);
        left.retain(|key| {
            self.keys
                .get(key)
                .is_some_and(|key| key.receiver_count() == 0)
        });
        for key in &left {
            self.keys.remove(key);
        }
        if self.keys.is_empty() {
            self.idle_since = Instant::now();
        }
        if left.is_empty() {
            return Ok(());
        }
        channels.change(ATTEMPT, Change::Unsubscribe, &left).await
    }
}
