//! Reply mailboxes: lists with a single reader.

use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use celery_protocol::Message;
use celery_runtime::{Binding, BoxFuture, Mailbox, ServiceError, Subscription, env};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::client::{Operation, Script};
use crate::fanout::decode_message;
use crate::key_watcher::KeyWatcher;
use crate::shared::Shared;

static MAILBOX_FETCH: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/mailbox_fetch.lua")));

static MAILBOX_BIND: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/mailbox_bind.lua")));

static MAILBOX_CLOSE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/mailbox_close.lua")));

/// The number of replies that are fetched ahead of the subscriber.
const REPLY_BUFFER: usize = 64;

/// The interval at which the binding is renewed. It lasts far longer, but the
/// database may have been flushed.
const REBIND_INTERVAL: Duration = Duration::from_secs(60);

/// The minimum lifetime of a binding in kombu.
const MIN_BINDING_TTL: Duration = Duration::from_secs(3600);

/// A subscription to one mailbox list, which has a time to live.
#[derive(Debug)]
pub(crate) struct ReplySubscription {
    /// Filled by the task of [`ReplyReader`], so that a fetched reply is not
    /// lost if `next` is cancelled. The task ends when this receiver is
    /// dropped, after it has closed the mailbox.
    replies: mpsc::Receiver<Result<Message, ServiceError>>,
}

impl ReplySubscription {
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        mailbox: &Mailbox,
    ) -> Result<Self, ServiceError> {
        let object = format!("mailbox {}", mailbox.name);
        let operation = Operation::new("open", &object);
        let watcher = KeyWatcher::connect(&shared.client, operation).await?;
        let (sender, replies) = mpsc::channel(REPLY_BUFFER);
        let layout = &shared.client.options().layout;
        let binding = mailbox
            .binding
            .as_ref()
            .map(|binding| MailboxBinding::new(shared, binding, &mailbox.name));
        let mut reader = ReplyReader {
            watcher,
            list: layout.list_for(&mailbox.name, None),
            expires: mailbox.expires.max(Duration::from_millis(1)),
            binding,
            rebind_at: env::instant(),
            object: object.clone(),
            sender,
            shared: Arc::clone(shared),
        };
        // From now on senders find a list with a time to live.
        let first = reader.fetch(0).await?;
        debug_assert!(first.is_empty(), "0 replies were requested");
        // A binding has no time to live. The task makes it, so that it is also
        // removed if this future is dropped.
        let (bound, ready) = oneshot::channel();
        env::spawn(reader.run(bound));
        match ready.await {
            Ok(bound) => bound.map(|()| Self { replies }),
            Err(_) => Err(shared.client.closed_error(operation)),
        }
    }
}

impl Subscription for ReplySubscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            match self.replies.recv().await {
                Some(reply) => reply,
                // The reader has already sent the error that ended it.
                None => std::future::pending().await,
            }
        })
    }
}

/// The binding of a mailbox to a direct exchange.
struct MailboxBinding {
    bindings: String,
    deadlines: String,
    member: String,
    exchange: String,
}

impl MailboxBinding {
    fn new(shared: &Shared, binding: &Binding, queue: &str) -> Self {
        let layout = &shared.client.options().layout;
        let exchange = binding.exchange.name.clone();
        Self {
            bindings: layout.bindings(&exchange),
            deadlines: layout.binding_deadlines(),
            member: layout.binding_member(&binding.routing_key, "", queue),
            exchange,
        }
    }
}

/// The task that fetches replies and renews the time to live.
struct ReplyReader {
    shared: Arc<Shared>,
    watcher: KeyWatcher,
    list: String,
    expires: Duration,
    binding: Option<MailboxBinding>,
    rebind_at: Instant,
    object: String,
    sender: mpsc::Sender<Result<Message, ServiceError>>,
}

impl ReplyReader {
    /// Runs until an error or until the subscription is dropped.
    async fn run(mut self, ready: oneshot::Sender<Result<(), ServiceError>>) {
        let bound = self.bind().await;
        let is_bound = bound.is_ok();
        // Sending fails only if the subscription was dropped.
        if ready.send(bound).is_err() || !is_bound {
            return self.close().await;
        }
        let failure = loop {
            match self.poll_once().await {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return self.close().await,
                Err(error) => break error,
            }
        };
        let _ = self.sender.send(Err(failure)).await;
        self.close().await;
    }

    /// Fetches replies once, or waits for some. It fetches at most as many as
    /// the buffer has room for, so that further replies stay on the server.
    async fn poll_once(&mut self) -> Result<ControlFlow<()>, ServiceError> {
        let client = self.shared.client.clone();
        let sender = self.sender.clone();
        let max = REPLY_BUFFER.min(sender.capacity()).max(1);
        let Ok(room) = sender.reserve_many(max).await else {
            return Ok(ControlFlow::Break(()));
        };
        if self.rebind_at <= env::instant() {
            self.bind().await?;
        }
        let replies = self.fetch(room.len()).await?;
        if replies.is_empty() {
            drop(room);
            // The time to live is renewed by the next call. Every branch ends
            // the wait, so the order is free of starvation.
            tokio::select! {
                biased;
                () = sender.closed() => return Ok(ControlFlow::Break(())),
                () = client.closed() => {
                    return Err(client.closed_error(Operation::new("receive from", &self.object)));
                }
                () = self.watcher.changed() => {}
                () = tokio::time::sleep(self.expires / 3) => {}
            }
            return Ok(ControlFlow::Continue(()));
        }
        self.watcher.reset_poll_interval();
        for (permit, reply) in room.zip(replies) {
            permit.send(Ok(reply));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Takes up to `max` replies and renews the time to live of the list.
    async fn fetch(&mut self, max: usize) -> Result<Vec<Message>, ServiceError> {
        let operation = Operation::new("receive from", &self.object);
        let numbers = [max as u128, self.expires.as_millis()].map(|number| number.to_string());
        let [max, expires] = numbers.each_ref().map(String::as_bytes);
        let fetched = self
            .watcher
            .script(operation, &MAILBOX_FETCH, &[&self.list], &[max, expires])
            .await?;
        let replies = fetched.list().into_iter().filter_map(|reply| reply.data());
        Ok(replies
            .filter_map(|reply| decode_message(&reply, &self.object))
            .collect())
    }

    /// Writes the binding. It uses the pool and not the watching connection,
    /// which the server would then notify of every change to the bindings.
    async fn bind(&mut self) -> Result<(), ServiceError> {
        self.rebind_at = env::instant() + REBIND_INTERVAL;
        let Some(binding) = &self.binding else {
            return Ok(());
        };
        let ttl = MIN_BINDING_TTL.max(2 * self.expires);
        let keys = [binding.bindings.as_str(), &binding.deadlines];
        let ttl = ttl.as_millis().to_string();
        let arguments = [binding.member.as_str(), &binding.exchange, &ttl].map(str::as_bytes);
        let operation = Operation::new("bind", &self.object);
        let client = &self.shared.client;
        client
            .script(operation, &MAILBOX_BIND, &keys, &arguments)
            .await
            .map(drop)
    }

    /// Closes the mailbox. If that fails, the list expires and kombu removes
    /// the binding later.
    async fn close(mut self) {
        let expires = self.expires.as_millis().to_string();
        let mut keys = vec![self.list.as_str()];
        let mut arguments = vec![expires.as_bytes()];
        if let Some(binding) = &self.binding {
            keys.extend([binding.bindings.as_str(), &binding.deadlines]);
            arguments.extend([binding.member.as_bytes(), binding.exchange.as_bytes()]);
        }
        let operation = Operation::new("close", &self.object);
        // This connection still works after the broker was closed.
        let closed = self
            .watcher
            .script(operation, &MAILBOX_CLOSE, &keys, &arguments)
            .await;
        let closed = match closed {
            Err(error) if error.is_transient() => {
                let client = &self.shared.client;
                client
                    .script(operation, &MAILBOX_CLOSE, &keys, &arguments)
                    .await
            }
            closed => closed,
        };
        if let Err(error) = closed {
            tracing::debug!(%error, "cannot close mailbox; it expires later");
        }
    }
}
