//! Mailboxes for replies: lists of one reader alone.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use celery_protocol::Message;
use celery_runtime::{Binding, BoxFuture, Mailbox, ServiceError, Subscription};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::fanout::read_message;
use crate::key_watcher::Watch;
use crate::link::{Attempt, Script};
use crate::shared::Shared;

static REPLY: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/mailbox_fetch.lua")));

static BIND: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/mailbox_bind.lua")));

static LEAVE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/mailbox_close.lua")));

/// Replies taken ahead of the reader.
const BACKLOG: usize = 64;

/// How often a binding is written again: it lasts far longer, but somebody may
/// have emptied the database.
const REBIND: Duration = Duration::from_secs(60);

/// kombu's shortest life of a binding.
const BINDING_LIFETIME: Duration = Duration::from_secs(3600);

/// The replies in one list, which dies with its time to live.
#[derive(Debug)]
pub(crate) struct ReplySubscription {
    /// Taking and handing on are two steps; a task of its own makes the second
    /// one happen also when the reader is dropped in between. It ends with this
    /// receiver, after it has closed the mailbox.
    replies: mpsc::Receiver<Result<Message, ServiceError>>,
}

impl ReplySubscription {
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        mailbox: &Mailbox,
    ) -> Result<Self, ServiceError> {
        let object = format!("mailbox {}", mailbox.name);
        let attempt = Attempt::new("open", &object);
        let watch = Watch::connect(&shared.link, attempt).await?;
        let (sender, replies) = mpsc::channel(BACKLOG);
        let layout = &shared.link.options().layout;
        let address = mailbox
            .binding
            .as_ref()
            .map(|binding| Address::new(shared, binding, &mailbox.name));
        let mut reader = Reader {
            watch,
            list: layout.list_for(&mailbox.name, None),
            expires: mailbox.expires.max(Duration::from_millis(1)),
            address,
            rebind: Instant::now(),
            object: object.clone(),
            sender,
            shared: Arc::clone(shared),
        };
        // Whoever replies from now on finds a list with a time to live.
        let first = reader.take(0).await?;
        debug_assert!(first.is_empty(), "none was asked for");
        // A binding has no time to live. Made over there, it also goes when the
        // opener is dropped now.
        let (bound, ready) = oneshot::channel();
        tokio::spawn(reader.run(bound));
        match ready.await {
            Ok(bound) => bound.map(|()| Self { replies }),
            Err(_) => Err(shared.link.closed_error(attempt)),
        }
    }
}

impl Subscription for ReplySubscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Message, ServiceError>> {
        Box::pin(async move {
            match self.replies.recv().await {
                Some(reply) => reply,
                // The reader has told why it ended; there is nothing to add.
                None => std::future::pending().await,
            }
        })
    }
}

/// The binding of a mailbox to a direct exchange, by which others find it.
struct Address {
    bindings: String,
    deadlines: String,
    member: String,
    exchange: String,
}

impl Address {
    fn new(shared: &Shared, binding: &Binding, queue: &str) -> Self {
        let layout = &shared.link.options().layout;
        let exchange = binding.exchange.name.clone();
        Self {
            bindings: layout.bindings(&exchange),
            deadlines: layout.deadlines(),
            member: layout.binding_member(&binding.routing_key, "", queue),
            exchange,
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    watch: Watch,
    list: String,
    expires: Duration,
    address: Option<Address>,
    rebind: Instant,
    object: String,
    sender: mpsc::Sender<Result<Message, ServiceError>>,
}

/// What one turn of a reader ended with.
enum Turn {
    Again,
    /// Nobody reads any more.
    Left,
}

impl Reader {
    async fn run(mut self, ready: oneshot::Sender<Result<(), ServiceError>>) {
        let bound = self.bind().await;
        let is_bound = bound.is_ok();
        // Fails only where the reader is gone.
        if ready.send(bound).is_err() || !is_bound {
            return self.leave().await;
        }
        let failure = loop {
            match self.turn().await {
                Ok(Turn::Again) => {}
                Ok(Turn::Left) => return self.leave().await,
                Err(error) => break error,
            }
        };
        let _ = self.sender.send(Err(failure)).await;
        self.leave().await;
    }

    /// Takes no more than there is room for, so that replies wait on the server.
    async fn turn(&mut self) -> Result<Turn, ServiceError> {
        let link = self.shared.link.clone();
        let sender = self.sender.clone();
        let most = BACKLOG.min(sender.capacity()).max(1);
        let Ok(room) = sender.reserve_many(most).await else {
            return Ok(Turn::Left);
        };
        if self.rebind <= Instant::now() {
            self.bind().await?;
        }
        let replies = self.take(room.len()).await?;
        if replies.is_empty() {
            drop(room);
            // The time to live is renewed while we wait.
            tokio::select! {
                () = self.watch.changed() => {}
                () = tokio::time::sleep(self.expires / 3) => {}
                () = sender.closed() => return Ok(Turn::Left),
                () = link.closed() => {
                    return Err(link.closed_error(Attempt::new("receive from", &self.object)));
                }
            }
            return Ok(Turn::Again);
        }
        self.watch.found();
        for (permit, reply) in room.zip(replies) {
            permit.send(Ok(reply));
        }
        Ok(Turn::Again)
    }

    async fn take(&mut self, most: usize) -> Result<Vec<Message>, ServiceError> {
        let attempt = Attempt::new("receive from", &self.object);
        let numbers = [most as u128, self.expires.as_millis()].map(|number| number.to_string());
        let [most, expires] = numbers.each_ref().map(String::as_bytes);
        let taken = self
            .watch
            .script(attempt, &REPLY, &[&self.list], &[most, expires])
            .await?;
        let replies = taken.list().into_iter().filter_map(|reply| reply.data());
        Ok(replies
            .filter_map(|reply| read_message(&reply, &self.object))
            .collect())
    }

    /// Says where the mailbox is. Not on the watching connection, which would
    /// then be told of every change to the bindings.
    async fn bind(&mut self) -> Result<(), ServiceError> {
        self.rebind = Instant::now() + REBIND;
        let Some(address) = &self.address else {
            return Ok(());
        };
        let lasts = BINDING_LIFETIME.max(2 * self.expires);
        let keys = [address.bindings.as_str(), &address.deadlines];
        let lasts = lasts.as_millis().to_string();
        let arguments = [address.member.as_str(), &address.exchange, &lasts].map(str::as_bytes);
        let attempt = Attempt::new("bind", &self.object);
        let link = &self.shared.link;
        link.script(attempt, &BIND, &keys, &arguments)
            .await
            .map(drop)
    }

    /// Where this fails the list dies by itself, and the binding is swept.
    async fn leave(mut self) {
        let expires = self.expires.as_millis().to_string();
        let mut keys = vec![self.list.as_str()];
        let mut arguments = vec![expires.as_bytes()];
        if let Some(address) = &self.address {
            keys.extend([address.bindings.as_str(), &address.deadlines]);
            arguments.extend([address.member.as_bytes(), address.exchange.as_bytes()]);
        }
        let attempt = Attempt::new("close", &self.object);
        // This connection still works when the broker was closed.
        let left = self.watch.script(attempt, &LEAVE, &keys, &arguments).await;
        let left = match left {
            Err(error) if error.is_transient() => {
                let link = &self.shared.link;
                link.script(attempt, &LEAVE, &keys, &arguments).await
            }
            left => left,
        };
        if let Err(error) = left {
            tracing::debug!(%error, "a mailbox is left to its time to live");
        }
    }
}
