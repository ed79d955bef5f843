//! Private queues for replies.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use celery_protocol::Message;
use celery_runtime::{BoxFuture, ServiceError, Subscription};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::broker::Shared;
use crate::fanout::read_message;
use crate::link::{Attempt, Script};
use crate::wait::Watch;

static REPLY: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/reply.lua")));

/// Replies taken ahead of the reader.
const BACKLOG: usize = 64;

/// The replies in one list, which dies with its time to live.
#[derive(Debug)]
pub(crate) struct ReplySubscription {
    replies: mpsc::Receiver<Result<Message, ServiceError>>,
    /// Taking and handing on are two steps; a task of its own makes the second
    /// one happen also when the reader is dropped in between.
    reader: JoinHandle<()>,
}

impl ReplySubscription {
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        name: &str,
        expires: Duration,
    ) -> Result<Self, ServiceError> {
        let object = format!("reply queue {name}");
        let attempt = Attempt::new("open", &object);
        let watch = Watch::connect(&shared.link, attempt).await?;
        let (sender, replies) = mpsc::channel(BACKLOG);
        let mut reader = Reader {
            shared: Arc::clone(shared),
            watch,
            list: shared.link.options().layout.key(name),
            expires: expires.max(Duration::from_millis(1)),
            object: object.clone(),
            sender,
        };
        // Whoever replies from now on finds a list with a time to live.
        let first = reader.take(0).await?;
        debug_assert!(first.is_empty(), "none was asked for");
        Ok(Self {
            replies,
            reader: tokio::spawn(reader.run()),
        })
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

/// The list goes by itself.
impl Drop for ReplySubscription {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Reader {
    shared: Arc<Shared>,
    watch: Watch,
    list: String,
    expires: Duration,
    object: String,
    sender: mpsc::Sender<Result<Message, ServiceError>>,
}

impl Reader {
    async fn run(mut self) {
        let failure = loop {
            if let Err(error) = self.turn().await {
                break error;
            }
        };
        let _ = self.sender.send(Err(failure)).await;
    }

    /// Takes no more than there is room for, so that replies wait on the server.
    async fn turn(&mut self) -> Result<(), ServiceError> {
        let link = self.shared.link.clone();
        let sender = self.sender.clone();
        let Ok(room) = sender
            .reserve_many(BACKLOG.min(sender.capacity()).max(1))
            .await
        else {
            return std::future::pending().await;
        };
        let replies = self.take(room.len()).await?;
        if replies.is_empty() {
            drop(room);
            // The time to live is renewed while we wait.
            tokio::select! {
                () = self.watch.changed() => {}
                () = tokio::time::sleep(self.expires / 3) => {}
                () = link.closed() => {
                    return Err(link.closed_error(Attempt::new("receive from", &self.object)));
                }
            }
            return Ok(());
        }
        self.watch.found();
        for (permit, reply) in room.zip(replies) {
            permit.send(Ok(reply));
        }
        Ok(())
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
}
