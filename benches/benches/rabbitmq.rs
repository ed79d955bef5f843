//! Messages per second over a private RabbitMQ on this machine: this library compared with a plain
//! lapin loop with the same server settings, and with aio-celery.
//!
//! Server and clients share the cores with other programs, so only ratios are meaningful. The cases
//! alternate round by round, and the table shows medians. Criterion is not used because it measures
//! one case after the other.
//!
//! A round of publishing ends when all messages are in the queue.

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use benches::rates::{Rates, print_table};
use bytes::Bytes;
use celery::{App, Config, Task};
use celery_broker_amqp::{AmqpBroker, AmqpOptions};
use celery_protocol::{Headers, Message, Properties, TaskHeaders};
use celery_runtime::{Broker, ConsumeOptions, Publication, Queue, Settlement};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;
use test_servers::{PYTHON, RABBITMQ_SERVER, RabbitServer};

/// The number of messages of a round.
const MESSAGES: usize = 10_000;

/// The number of messages of a round with aio-celery, as in the first example of its README.
const AIO_MESSAGES: usize = 50_000;

/// The environment variable with the number of single sends of a round. If it is set,
/// nothing else is measured.
const SENDS: &str = "CELERY_BENCH_SENDS";

const DEFAULT_SENDS: usize = 20_000;

const SEND_ROUNDS: usize = 5;

/// The number of sends whose times are measured one at a time.
const LONE_SENDS: usize = 1_000;

const ROUNDS: usize = 7;

const AIO_ROUNDS: usize = 3;

/// The maximum number of unconfirmed messages.
const WINDOW: usize = 1000;

/// The prefetch count.
const PREFETCH: u16 = 256;

/// The size of a message's body in bytes.
const BODY_SIZE: usize = 700;

const QUEUE: &str = "bench";

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add")
    .params(&["x", "y"])
    .queue(QUEUE)
    .ignore_result();

#[tokio::main]
async fn main() {
    if RabbitServer::program().is_none() {
        println!("skipped: no rabbitmq-server on PATH or in {RABBITMQ_SERVER}");
        return;
    }
    let server = RabbitServer::start();
    let bench = Bench {
        url: server.url(),
        queue: QueueMonitor::open(&server.url()).await,
    };
    bench.compare_single_sends().await;
    if env::var_os(SENDS).is_some() {
        return;
    }
    bench.compare_publishing().await;
    bench.compare_consuming().await;
    bench.compare_aio_celery().await;
}

struct Bench {
    url: String,
    queue: QueueMonitor,
}

impl Bench {
    /// Compares calls of a task, with [`WINDOW`] of them in flight, and one at a time.
    async fn compare_single_sends(&self) {
        let sends = env::var(SENDS).ok().and_then(|sends| sends.parse().ok());
        let sends = sends.unwrap_or(DEFAULT_SENDS);
        let mut plain = Rates::new("plain lapin");
        let mut ours = Rates::new("this library");
        for _ in 0..SEND_ROUNDS {
            plain.add(sends, self.publish_plain(sends, true).await);
            ours.add(sends, self.send_singles(sends).await);
        }
        let title = format!("{sends} single sends, {WINDOW} in flight, with confirms");
        print_table(&title, &[plain, ours]);
        let mut plain = Rates::new("plain lapin");
        let mut ours = Rates::new("this library");
        for _ in 0..SEND_ROUNDS {
            plain.add(1, self.publish_plain_alone().await);
            ours.add(1, self.send_alone().await);
        }
        print_table("one send at a time, by the median time", &[plain, ours]);
    }

    async fn send_singles(&self, sends: usize) -> Duration {
        self.queue.recreate().await;
        let app = App::new(Arc::new(self.broker(true))).with_config(Config::new());
        let client = app.client();
        client.apply(ADD.s((0, 0))).await.expect("accepted");
        let start = Instant::now();
        let calls = (1..sends as i64).map(|number| {
            let client = client.clone();
            async move { client.apply(ADD.s((number, number))).await }
        });
        let mut sent = futures_util::stream::iter(calls).buffer_unordered(WINDOW);
        while let Some(sent) = sent.next().await {
            sent.expect("accepted");
        }
        self.queue.wait_for(sends).await;
        let time = start.elapsed();
        app.close().await;
        time
    }

    /// Returns the median time of a send.
    async fn send_alone(&self) -> Duration {
        self.queue.recreate().await;
        let app = App::new(Arc::new(self.broker(true))).with_config(Config::new());
        let client = app.client();
        let mut times = Vec::with_capacity(LONE_SENDS);
        for number in 0..LONE_SENDS as i64 {
            let start = Instant::now();
            client
                .apply(ADD.s((number, number)))
                .await
                .expect("accepted");
            times.push(start.elapsed());
        }
        app.close().await;
        median(times)
    }

    /// Returns the median time of a publication.
    async fn publish_plain_alone(&self) -> Duration {
        self.queue.recreate().await;
        let channel = channel(&self.url).await;
        let options = ConfirmSelectOptions::default();
        channel.confirm_select(options).await.expect("confirms");
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let (properties, body) = (plain_properties(), vec![b'x'; BODY_SIZE]);
        let mut times = Vec::with_capacity(LONE_SENDS);
        for _ in 0..LONE_SENDS {
            let start = Instant::now();
            let sent =
                channel.basic_publish("".into(), QUEUE.into(), options, &body, properties.clone());
            sent.await.expect("sent").await.expect("confirmed");
            times.push(start.elapsed());
        }
        median(times)
    }

    async fn compare_publishing(&self) {
        for (mode, confirms) in [("with confirms", true), ("without confirms", false)] {
            let mut plain = Rates::new("plain lapin");
            let mut ours = Rates::new("this library");
            for _ in 0..ROUNDS {
                plain.add(MESSAGES, self.publish_plain(MESSAGES, confirms).await);
                ours.add(MESSAGES, self.publish_ours(confirms).await);
            }
            let title = format!("publish {MESSAGES} messages of {BODY_SIZE} bytes, {mode}");
            print_table(&title, &[plain, ours]);
        }
    }

    async fn compare_consuming(&self) {
        let mut plain = Rates::new("plain lapin");
        let mut ours = Rates::new("this library");
        for _ in 0..ROUNDS {
            self.publish_ours(true).await;
            plain.add(MESSAGES, self.consume_plain().await);
            self.publish_ours(true).await;
            ours.add(MESSAGES, self.consume_ours().await);
        }
        let title = format!("consume and acknowledge {MESSAGES} messages of {BODY_SIZE} bytes");
        print_table(&title, &[plain, ours]);
    }

    async fn compare_aio_celery(&self) {
        let Some(python) = env::var_os(PYTHON) else {
            println!("skipped: aio-celery: {PYTHON} is not set; `cargo xtask bench` sets it");
            return;
        };
        let mut theirs = Rates::new("aio-celery");
        let mut confirmed = Rates::new("this library, with confirms");
        let mut unconfirmed = Rates::new("this library, without confirms");
        for _ in 0..AIO_ROUNDS {
            theirs.add(AIO_MESSAGES, self.publish_aio(&python).await);
            confirmed.add(AIO_MESSAGES, self.call(true).await);
            unconfirmed.add(AIO_MESSAGES, self.call(false).await);
        }
        let title = format!("call a task {AIO_MESSAGES} times");
        print_table(&title, &[theirs, confirmed, unconfirmed]);
    }

    async fn publish_plain(&self, messages: usize, confirms: bool) -> Duration {
        self.queue.recreate().await;
        let channel = channel(&self.url).await;
        if confirms {
            let options = ConfirmSelectOptions::default();
            channel.confirm_select(options).await.expect("confirms");
        }
        let options = BasicPublishOptions {
            mandatory: confirms,
            ..BasicPublishOptions::default()
        };
        let (properties, body) = (plain_properties(), vec![b'x'; BODY_SIZE]);
        let mut unconfirmed = std::collections::VecDeque::new();
        let start = Instant::now();
        for _ in 0..messages {
            let confirm = channel
                .basic_publish("".into(), QUEUE.into(), options, &body, properties.clone())
                .await
                .expect("sent");
            if confirms {
                unconfirmed.push_back(confirm);
            }
            if unconfirmed.len() >= WINDOW {
                unconfirmed
                    .pop_front()
                    .expect("one")
                    .await
                    .expect("confirmed");
            }
        }
        for confirm in unconfirmed {
            confirm.await.expect("confirmed");
        }
        self.queue.wait_for(messages).await;
        start.elapsed()
    }

    async fn publish_ours(&self, confirms: bool) -> Duration {
        self.queue.recreate().await;
        let broker = self.broker(confirms);
        // One call keeps about as many messages unconfirmed as the plain loop.
        let batch = vec![publication(); MESSAGES];
        broker.depth(&Queue::new(QUEUE)).await.expect("connected");
        let start = Instant::now();
        for result in broker.publish(&batch).await {
            result.expect("accepted");
        }
        self.queue.wait_for(MESSAGES).await;
        let time = start.elapsed();
        broker.close().await;
        time
    }

    async fn consume_plain(&self) -> Duration {
        let channel = channel(&self.url).await;
        let qos = BasicQosOptions::default();
        channel.basic_qos(PREFETCH, qos).await.expect("qos");
        let start = Instant::now();
        let options = BasicConsumeOptions::default();
        let none = FieldTable::default();
        let consumer = channel.basic_consume(QUEUE.into(), "".into(), options, none);
        let mut deliveries = consumer.await.expect("consuming").take(MESSAGES);
        while let Some(delivery) = deliveries.next().await {
            let tag = delivery.expect("a delivery").delivery_tag;
            let ack = channel.basic_ack(tag, BasicAckOptions::default());
            ack.await.expect("acknowledged");
        }
        start.elapsed()
    }

    async fn consume_ours(&self) -> Duration {
        let broker = self.broker(true);
        let start = Instant::now();
        let options = ConsumeOptions::new(vec![Queue::new(QUEUE)], PREFETCH);
        let consumer = broker.consume(&options).await.expect("consuming");
        let mut count = 0;
        while count < MESSAGES {
            let deliveries = consumer.receive(PREFETCH.into()).await.expect("deliveries");
            count += deliveries.len();
            let acks = deliveries
                .into_iter()
                .map(|delivery| Settlement::Ack(delivery.tag));
            let acks: Vec<_> = acks.collect();
            for settled in consumer.settle(&acks).await {
                settled.expect("acknowledged");
            }
        }
        let time = start.elapsed();
        broker.close().await;
        time
    }

    async fn publish_aio(&self, python: &std::ffi::OsStr) -> Duration {
        self.queue.recreate().await;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/aio_publish.py");
        let mut command = Command::new(python);
        command.args([script, &self.url, &AIO_MESSAGES.to_string(), QUEUE]);
        let printed = tokio::task::spawn_blocking(move || command.output());
        self.queue.wait_for(AIO_MESSAGES).await;
        let end = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970");
        let output = printed.await.expect("no panic").expect("Python runs");
        let begin = String::from_utf8_lossy(&output.stdout).trim().parse();
        let Ok(begin) = begin else {
            panic!("{}", String::from_utf8_lossy(&output.stderr));
        };
        end.saturating_sub(Duration::from_secs_f64(begin))
    }

    /// Calls a task with a client in batches.
    async fn call(&self, confirms: bool) -> Duration {
        self.queue.recreate().await;
        let app = App::new(Arc::new(self.broker(confirms))).with_config(Config::new());
        let client = app.client();
        app.broker()
            .depth(&Queue::new(QUEUE))
            .await
            .expect("connected");
        let start = Instant::now();
        for batch in 0..AIO_MESSAGES / WINDOW {
            let calls = (0..WINDOW).map(|number| {
                let number = (batch * WINDOW + number) as i64;
                ADD.s((number, number))
            });
            for sent in client.apply_all(calls).await {
                sent.expect("accepted");
            }
        }
        self.queue.wait_for(AIO_MESSAGES).await;
        let time = start.elapsed();
        app.close().await;
        time
    }

    fn broker(&self, confirms: bool) -> AmqpBroker {
        let transport_options = json!({"confirm_publish": confirms});
        let options = AmqpOptions::parse(&self.url).and_then(|options| {
            options.transport_options(transport_options.as_object().expect("an object"))
        });
        AmqpBroker::new(options.expect("the URL is valid"))
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Counts the messages in the queue.
struct QueueMonitor(Channel);

impl QueueMonitor {
    async fn open(url: &str) -> Self {
        Self(channel(url).await)
    }

    /// Deletes and declares the queue.
    async fn recreate(&self) {
        let deleted = self
            .0
            .queue_delete(QUEUE.into(), QueueDeleteOptions::default());
        deleted.await.expect("deleted");
        self.count().await;
    }

    async fn wait_for(&self, messages: usize) {
        while self.count().await < messages {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn count(&self) -> usize {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let none = FieldTable::default();
        let queue = self.0.queue_declare(QUEUE.into(), options, none).await;
        queue.expect("declared").message_count() as usize
    }
}

async fn channel(url: &str) -> Channel {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(url, properties)
        .await
        .expect("connected");
    // The channel keeps the connection open.
    connection.create_channel().await.expect("a channel")
}

fn publication() -> Publication {
    let mut headers = TaskHeaders::new("tasks.add", "4ea7b1b5-8e8b-4a3d-a2ea-2d0e2a2c7b4f");
    headers.argsrepr = Some("(2, 3)".into());
    headers.kwargsrepr = Some("{}".into());
    let mut properties = Properties::default();
    properties.correlation_id = Some("4ea7b1b5-8e8b-4a3d-a2ea-2d0e2a2c7b4f".to_owned());
    properties.priority = Some(0);
    let body = Bytes::from(vec![b'x'; BODY_SIZE]);
    let message = Message::new(Headers::from_task(headers), properties, body);
    Publication::to_queue(message, QUEUE)
}

/// Returns the properties and headers of [`publication`] for lapin.
fn plain_properties() -> BasicProperties {
    use lapin::types::AMQPValue::{FieldArray, LongInt, LongString, Void};

    let id = "4ea7b1b5-8e8b-4a3d-a2ea-2d0e2a2c7b4f";
    let mut headers = FieldTable::default();
    for (name, text) in [
        ("lang", "rust"),
        ("task", "tasks.add"),
        ("id", id),
        ("root_id", id),
        ("argsrepr", "(2, 3)"),
        ("kwargsrepr", "{}"),
    ] {
        headers.insert(name.into(), LongString(text.into()));
    }
    for name in [
        "shadow",
        "eta",
        "expires",
        "group",
        "group_index",
        "parent_id",
        "origin",
        "ignore_result",
        "stamped_headers",
    ] {
        headers.insert(name.into(), Void);
    }
    for name in ["retries", "replaced_task_nesting"] {
        headers.insert(name.into(), LongInt(0));
    }
    headers.insert("timelimit".into(), FieldArray(vec![Void, Void].into()));
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_delivery_mode(2)
        .with_priority(0)
        .with_correlation_id(id.into())
        .with_headers(headers)
}
