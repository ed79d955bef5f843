//! Virtual hosts of RabbitMQ: [`Vhost`].

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use celery::App;
use celery_protocol::Message;
use celery_runtime::{ConsumeOptions, Publication, Queue};
use test_servers::RabbitServer;

use super::{blocking, within};

/// A virtual host of its own on the node that all tests share.
pub(crate) struct Vhost {
    name: String,
    observer: OnceLock<App>,
}

/// The messages of a queue, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueCounts {
    /// Messages to be delivered.
    pub(crate) ready: u64,
    /// Messages delivered to a consumer and not yet acknowledged.
    pub(crate) unacked: u64,
}

impl Vhost {
    pub(super) fn new() -> Self {
        Self {
            name: RabbitServer::shared().fresh_vhost(),
            observer: OnceLock::new(),
        }
    }

    pub(crate) fn url(&self) -> String {
        RabbitServer::shared().vhost_url(&self.name)
    }

    /// An app that inspects this virtual host.
    fn observer(&self) -> &App {
        self.observer
            .get_or_init(|| celery::connect(self.url()).unwrap())
    }

    /// Returns the counts of every queue. The command takes half a second.
    pub(crate) async fn queues(&self) -> BTreeMap<String, QueueCounts> {
        let code = QUEUES.replace("VHOST", &self.name);
        let found = blocking(move || RabbitServer::shared().control(&["eval", &code])).await;
        found.split('{').skip(1).map(read_queue).collect()
    }

    /// Returns the number of open connections.
    pub(crate) async fn connections(&self) -> usize {
        let code = format!(
            "length(rabbit_connection_tracking:list(<<\"{}\">>)).",
            self.name
        );
        let count = blocking(move || RabbitServer::shared().control(&["eval", &code])).await;
        count.trim().parse().unwrap()
    }

    /// Returns the number of delayed messages.
    pub(crate) async fn delayed(&self) -> usize {
        let levels = (0..28).map(|level| format!("celery_delayed_{level}"));
        let tenths = (1..10).map(|tenth| format!("celery_due_{tenth}00ms"));
        let mut delayed = 0;
        for queue in levels.chain(tenths) {
            delayed += self.depth(&queue).await;
        }
        delayed
    }

    /// Returns the number of ready messages in a queue; 0 if it does not exist.
    pub(crate) async fn depth(&self, queue: &str) -> usize {
        let broker = self.observer().broker();
        let depth = broker.depth(&Queue::new(queue)).await.unwrap();
        usize::try_from(depth).unwrap()
    }

    /// Puts a message at the end of a queue, which is declared if it is missing.
    pub(crate) async fn publish(&self, queue: &str, message: Message) {
        let publication =
            Publication::to_queue(message, queue).declare_queue(Arc::new(Queue::new(queue)));
        let broker = self.observer().broker();
        let mut answers = broker.publish(&[publication]).await;
        answers.pop().unwrap().unwrap();
    }

    /// Returns the messages of a queue, the next one first, without consuming them.
    pub(crate) async fn messages(&self, queue: &str) -> Vec<Message> {
        let depth = self.depth(queue).await;
        if depth == 0 {
            return Vec::new();
        }
        let all = u16::try_from(depth).unwrap();
        let options = ConsumeOptions::new(vec![Queue::new(queue)], all);
        let consumer = self.observer().broker().consume(&options).await.unwrap();
        let mut messages = Vec::new();
        while messages.len() < depth {
            let deliveries = consumer.receive(depth - messages.len());
            let deliveries = within("the messages are delivered", deliveries)
                .await
                .unwrap();
            messages.extend(deliveries.into_iter().map(|one| match one.content {
                celery_runtime::Content::Message(message) => message,
                celery_runtime::Content::Malformed { error, .. } => panic!("{queue}: {error}"),
            }));
        }
        // RabbitMQ requeues unsettled messages.
        consumer.close().await.unwrap();
        messages
    }
}

/// Counts the messages of every queue. `list_queues` reports values of quorum
/// queues that are some seconds old.
const QUEUES: &str = r#"
[begin
    {ok, Ready, _} = rabbit_amqqueue:stat(Q),
    Unacked = case amqqueue:get_type(Q) of
        rabbit_quorum_queue ->
            Query = fun rabbit_fifo:query_messages_checked_out/1,
            case ra:local_query(amqqueue:get_pid(Q), Query) of
                {ok, {_, Messages}, _} -> Messages;
                % The queue is being created, so that it is not known to be empty.
                _ -> 1
            end;
        _ ->
            [{_, Messages}] = rabbit_amqqueue:info(Q, [messages_unacknowledged]),
            Messages
    end,
    {_, _, _, Name} = amqqueue:get_name(Q),
    {Name, Ready, Unacked}
end || Q <- rabbit_amqqueue:list(<<"VHOST">>)]."#;

/// Reads `<<"name">>,0,0}`, which may be broken into lines.
fn read_queue(text: &str) -> (String, QueueCounts) {
    let name = text.split('"').nth(1).unwrap().to_owned();
    let (_, numbers) = text.rsplit_once(">>").unwrap();
    let mut numbers = numbers
        .split(|one: char| !one.is_ascii_digit())
        .filter_map(|one| one.parse().ok());
    let (ready, unacked) = (numbers.next().unwrap(), numbers.next().unwrap());
    (name, QueueCounts { ready, unacked })
}
