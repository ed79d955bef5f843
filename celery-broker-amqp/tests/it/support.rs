//! Helpers of the tests.

use std::sync::Arc;
use std::time::Duration;

use celery_broker_amqp::{AmqpBroker, AmqpOptions};
use celery_protocol::{Embed, Message, Serializer, TaskHeaders, encode_body};
use celery_runtime::{
    Broker, ConsumeOptions, Consumer, Content, Delivery, Publication, Queue, ServiceError,
    Settlement,
};
use lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use test_servers::RabbitServer;

pub(crate) use test_support::{
    TIMEOUT, all, id, ids, message_id, receive, receive_one, wait_until, within,
};

/// A new virtual host on the server that the tests share.
pub(crate) struct TestVhost {
    pub(crate) url: String,
    pub(crate) vhost: String,
}

impl TestVhost {
    pub(crate) fn create() -> Self {
        let vhost = blocking(|| RabbitServer::shared().fresh_vhost());
        let url = RabbitServer::shared().vhost_url(&vhost);
        Self { url, vhost }
    }

    pub(crate) fn broker(&self) -> AmqpBroker {
        broker_at(&self.url)
    }

    /// Returns the sorted rows of a listing of `rabbitmqctl`.
    pub(crate) fn rows(&self, listing: &str, columns: &[&str]) -> Vec<Vec<String>> {
        let head = [listing, "-p", &self.vhost];
        sorted(RabbitServer::shared(), &[&head, columns].concat())
    }

    /// Returns these columns of the connections in this virtual host.
    pub(crate) fn connections(&self, columns: &[&str]) -> Vec<Vec<String>> {
        vhost_rows("list_connections", &self.vhost, columns)
    }

    /// Returns these columns of the channels in this virtual host.
    pub(crate) fn channels(&self, columns: &[&str]) -> Vec<Vec<String>> {
        vhost_rows("list_channels", &self.vhost, columns)
    }

    /// Returns the consumers of queues other than due queues, whose name is the first of
    /// the columns.
    pub(crate) fn consumers(&self, columns: &[&str]) -> Vec<Vec<String>> {
        let mut rows = self.rows("list_consumers", columns);
        rows.retain(|row| !row[0].starts_with("celery_due."));
        rows
    }

    /// Returns the numbers of ready and unacknowledged messages of a queue.
    pub(crate) fn counts(&self, queue: &str) -> (u64, u64) {
        let columns = ["name", "messages_ready", "messages_unacknowledged"];
        let rows = self.rows("list_queues", &columns);
        let row = rows.iter().find(|row| row[0] == queue);
        let row = row.unwrap_or_else(|| panic!("queue {queue} does not exist: {rows:?}"));
        (row[1].parse().unwrap(), row[2].parse().unwrap())
    }

    /// Connects a plain AMQP client.
    pub(crate) async fn raw(&self) -> RawClient {
        RawClient::connect(&self.url).await
    }
}

fn vhost_rows(listing: &str, vhost: &str, columns: &[&str]) -> Vec<Vec<String>> {
    let words = [&[listing, "vhost"], columns].concat();
    sorted(RabbitServer::shared(), &words)
        .into_iter()
        .filter(|row| row[0] == vhost)
        .map(|row| row[1..].to_vec())
        .collect()
}

/// Removes the type `classic`, which RabbitMQ 4 adds to the arguments of queues without a type.
pub(crate) fn without_default_type(mut queues: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let argument = "{\"x-queue-type\",\"classic\"}";
    for cell in queues.iter_mut().flatten() {
        *cell = cell
            .replace(&format!(", {argument}"), "")
            .replace(&format!(",{argument}"), "")
            .replace(argument, "");
    }
    queues
}

pub(crate) fn sorted(server: &RabbitServer, words: &[&str]) -> Vec<Vec<String>> {
    let mut rows = blocking(|| server.list(words));
    rows.sort();
    rows
}

/// Runs blocking work without blocking the runtime.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// A plain AMQP client: a channel and its connection.
pub(crate) struct RawClient {
    pub(crate) channel: Channel,
    _connection: Connection,
}

impl RawClient {
    pub(crate) async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await;
        let connection = connection.unwrap();
        Self {
            channel: connection.create_channel().await.unwrap(),
            _connection: connection,
        }
    }

    pub(crate) async fn delete(&self, queue: &str) {
        let options = QueueDeleteOptions::default();
        self.channel
            .queue_delete(queue.into(), options)
            .await
            .unwrap();
    }

    pub(crate) async fn declare(&self, queue: &str, arguments: FieldTable) {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declared = self.channel.queue_declare(queue.into(), options, arguments);
        declared.await.unwrap();
    }

    /// Fetches and acknowledges the next message.
    pub(crate) async fn take(&self, queue: &str) -> Option<lapin::message::Delivery> {
        let options = BasicGetOptions { no_ack: true };
        let taken = self.channel.basic_get(queue.into(), options).await.unwrap();
        taken.map(|message| message.delivery)
    }
}

pub(crate) fn broker_at(url: &str) -> AmqpBroker {
    AmqpBroker::new(AmqpOptions::parse(url).unwrap())
}

/// Returns the message of a task with this id.
pub(crate) fn task(id: &str) -> Message {
    let body = encode_body(Serializer::Json, &(2, 3), &(), &Embed::default()).unwrap();
    let headers = TaskHeaders::new("tasks.add", id.to_owned());
    let mut message = Message::task(headers, Serializer::Json, body);
    message.properties.delivery_mode = Some(2);
    message
}

pub(crate) fn to(queue: &str, id: &str) -> Publication {
    Publication::to_queue(task(id), queue)
}

/// Returns a publication that declares its queue first.
pub(crate) fn to_declared(queue: &Arc<Queue>, id: &str) -> Publication {
    to(&queue.name, id).declare_queue(Arc::clone(queue))
}

/// Publishes one message.
pub(crate) async fn publish_one(
    broker: &dyn Broker,
    publication: Publication,
) -> Result<(), ServiceError> {
    let batch = [publication];
    within("publish", broker.publish(&batch)).await.remove(0)
}

/// Declares the queue and publishes a task for each id.
pub(crate) async fn send(broker: &dyn Broker, queue: &Queue, ids: &[impl AsRef<str>]) {
    within("declare", broker.declare(queue)).await.unwrap();
    let batch: Vec<_> = ids.iter().map(|id| to(&queue.name, id.as_ref())).collect();
    for answer in within("publish", broker.publish(&batch)).await {
        answer.unwrap();
    }
}

pub(crate) fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// Declares queues and starts a consumer of them.
pub(crate) async fn consumer(
    broker: &dyn Broker,
    queues: &[&Queue],
    prefetch: u16,
) -> Arc<dyn Consumer> {
    for queue in queues {
        within("declare", broker.declare(queue)).await.unwrap();
    }
    let queues = queues.iter().map(|queue| (*queue).clone()).collect();
    let options = ConsumeOptions::new(queues, prefetch);
    within("consume", broker.consume(&options)).await.unwrap()
}

pub(crate) async fn settle(consumer: &dyn Consumer, batch: &[Settlement]) {
    all(within("settle", consumer.settle(batch)).await).unwrap();
}

pub(crate) async fn ack_all(consumer: &dyn Consumer, deliveries: &[Delivery]) {
    let acks = deliveries
        .iter()
        .map(|one| Settlement::Ack(one.tag.clone()));
    settle(consumer, &acks.collect::<Vec<_>>()).await;
}

pub(crate) fn message(delivery: &Delivery) -> &Message {
    match &delivery.content {
        Content::Message(message) => message,
        Content::Malformed { error, .. } => panic!("malformed: {error}"),
    }
}

pub(crate) fn table(pairs: &[(&str, lapin::types::AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// Creates a user with all permissions in the virtual host and returns its URL.
pub(crate) fn create_user(test_vhost: &TestVhost, name: &str) -> String {
    let control = |words: &[&str]| blocking(|| RabbitServer::shared().control(words));
    control(&["add_user", name, "word"]);
    let vhost = &test_vhost.vhost;
    control(&["set_permissions", "-p", vhost, name, ".*", ".*", ".*"]);
    let login = format!("{name}:word@");
    test_vhost.url.replace("guest:guest@", &login)
}

/// Publishes a message, and waits until the broker knows that publishing is
/// blocked.
pub(crate) async fn block_publishing(broker: &AmqpBroker) {
    let publication = [to("missing", "blocked")];
    let _ = tokio::time::timeout(Duration::from_millis(100), broker.publish(&publication)).await;
    wait_until("the reason is known", async || {
        broker.blocked_reason().is_some()
    })
    .await;
}

/// Raises or clears the memory alarm of a server.
pub(crate) async fn set_memory_alarm(server: &RabbitServer, raised: bool) {
    let limit = if raised { "0.00001" } else { "0.6" };
    blocking(|| server.control(&["set_vm_memory_high_watermark", limit]));
    // The server checks its memory periodically.
    wait_until("the server notices", async || {
        let alarms = blocking(|| server.control(&["eval", "rabbit_alarm:get_alarms()."]));
        alarms.contains("memory") == raised
    })
    .await;
}

/// A random number generator with a fixed seed.
pub(crate) struct TestRng(u64);

impl TestRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }
}
