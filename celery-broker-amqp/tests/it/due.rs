//! Tests of due queues, which hold deferred messages that are due.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use celery_broker_amqp::{AmqpBroker, AmqpOptions};
use celery_runtime::{
    Broker, ConsumeOptions, Consumer, Delivery, Exchange, Mailbox, Queue, ServiceErrorKind,
    Settlement,
};
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
};
use lapin::types::FieldTable;
use test_servers::{Fault, Proxy, RabbitServer};

use crate::support::{
    RawClient, TestVhost, ack_all, block_publishing, blocking, broker_at, consumer, create_user,
    id, ids, message, numbers, publish_one, receive, receive_one, send, set_memory_alarm, settle,
    to, wait_until, within, without_default_type,
};

const DELAY: Duration = Duration::from_millis(1_300);
const LIMIT: usize = 3;
const DUE_QUEUE: &str = "celery_due.q";

async fn defer(consumer: &dyn Consumer, deliveries: &[Delivery], delay: Duration) {
    let until = SystemTime::now() + delay;
    let defers = deliveries
        .iter()
        .map(|one| Settlement::Defer(one.tag.clone(), until));
    settle(consumer, &defers.collect::<Vec<_>>()).await;
}

fn limited(name: &str, overflow: &str) -> Queue {
    Queue::new(name)
        .argument("x-max-length", LIMIT as i64)
        .argument("x-overflow", overflow)
}

/// Sends messages to the queue, whose limit counts ready messages: those beyond the
/// prefetch of its consumer.
async fn fill(test_vhost: &TestVhost, broker: &AmqpBroker, queue: &Queue) -> Vec<String> {
    let waiting = numbers(100..100 + 2 * LIMIT);
    send(broker, queue, &waiting[..LIMIT]).await;
    wait_until("the consumer has its prefetch", async || {
        test_vhost.counts(&queue.name) == (0, LIMIT as u64)
    })
    .await;
    send(broker, queue, &waiting[LIMIT..]).await;
    waiting
}

/// Returns a consumer with a prefetch of the limit that has deferred as many messages.
async fn deferring_consumer(
    broker: &AmqpBroker,
    queue: &Queue,
    delay: Duration,
) -> std::sync::Arc<dyn Consumer> {
    send(broker, queue, &numbers(0..LIMIT)).await;
    let consumer = consumer(broker, &[queue], LIMIT as u16).await;
    let taken = receive(&*consumer, LIMIT).await;
    defer(&*consumer, &taken, delay).await;
    consumer
}

fn sorted_ids(deliveries: &[Delivery]) -> BTreeSet<String> {
    deliveries.iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deferred_messages_of_full_queue_are_received_when_due() {
    for overflow in ["reject-publish", "drop-head"] {
        let test_vhost = TestVhost::create();
        let (broker, queue) = (test_vhost.broker(), limited("q", overflow));
        let consumer = deferring_consumer(&broker, &queue, DELAY).await;
        let waiting = fill(&test_vhost, &broker, &queue).await;

        let taken = receive(&*consumer, 2 * LIMIT).await;

        let expected: BTreeSet<_> = numbers(0..LIMIT)
            .into_iter()
            .chain(waiting[..LIMIT].to_vec())
            .collect();
        assert_eq!(sorted_ids(&taken), expected, "{overflow}");
        for one in &taken {
            assert_eq!(*one.queue, *"q");
            assert!(!one.redelivered, "{one:?}");
        }
        // It was full until now.
        assert_eq!(test_vhost.counts("q"), (LIMIT as u64, LIMIT as u64));
        assert_eq!(test_vhost.counts(DUE_QUEUE), (0, LIMIT as u64));
        ack_all(&*consumer, &taken).await;
        let rest = receive(&*consumer, LIMIT).await;
        ack_all(&*consumer, &rest).await;
        wait_until("nothing is left", async || {
            test_vhost.counts("q") == (0, 0) && test_vhost.counts(DUE_QUEUE) == (0, 0)
        })
        .await;
    }
}

/// The consumer moves due messages when it closes, unless that drops any.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn due_messages_of_full_queue_stay_after_last_close() {
    for overflow in ["reject-publish", "drop-head"] {
        let test_vhost = TestVhost::create();
        let (broker, queue) = (test_vhost.broker(), limited("q", overflow));
        let first = deferring_consumer(&broker, &queue, DELAY).await;
        // Messages that return to a full queue with `drop-head` replace others.
        let held = match overflow {
            "drop-head" => {
                send(&broker, &queue, &numbers(100..103)).await;
                let held = receive(&*first, LIMIT).await;
                ack_all(&*first, &held).await;
                first.interrupt();
                send(&broker, &queue, &numbers(100..103)).await;
                LIMIT as u64
            }
            _ => {
                fill(&test_vhost, &broker, &queue).await;
                2 * LIMIT as u64
            }
        };
        wait_until("they are due", async || {
            let (ready, unacked) = test_vhost.counts(DUE_QUEUE);
            ready + unacked == LIMIT as u64
        })
        .await;

        within("close", first.close()).await.unwrap();

        assert_eq!(test_vhost.counts(DUE_QUEUE), (LIMIT as u64, 0));
        assert_eq!(test_vhost.counts("q"), (held, 0));
        let second = consumer(&broker, &[&queue], 10).await;
        let taken = receive(&*second, LIMIT + held as usize).await;
        let taken = sorted_ids(&taken);
        assert!(numbers(0..LIMIT).iter().all(|id| taken.contains(id)));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deleted_queue_leaves_its_due_messages() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let first = deferring_consumer(&broker, &queue, DELAY).await;
    test_vhost.raw().await.delete("q").await;
    within("the end", first.receive(1)).await.unwrap_err();
    wait_until("they are due", async || {
        let (ready, unacked) = test_vhost.counts(DUE_QUEUE);
        ready + unacked == LIMIT as u64
    })
    .await;

    drop(first);

    wait_until("the consumer has ended", async || {
        test_vhost.counts(DUE_QUEUE) == (LIMIT as u64, 0)
            && test_vhost
                .rows("list_consumers", &["queue_name"])
                .is_empty()
    })
    .await;
    let queues = test_vhost.rows("list_queues", &["name"]);
    assert!(!queues.contains(&vec!["q".to_owned()]), "{queues:?}");
    let second = consumer(&broker, &[&queue], 4).await;
    let taken = receive(&*second, LIMIT).await;
    assert_eq!(sorted_ids(&taken), numbers(0..LIMIT).into_iter().collect());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn full_queue_does_not_hold_up_deferred_messages_of_others() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let (full, other) = (limited("q", "reject-publish"), Queue::new("other"));
    let first = deferring_consumer(&broker, &full, DELAY).await;
    fill(&test_vhost, &broker, &full).await;
    within("close", first.close()).await.unwrap();
    let second = deferring_consumer(&broker, &other, DELAY).await;

    let taken = receive(&*second, LIMIT).await;

    assert_eq!(sorted_ids(&taken), numbers(0..LIMIT).into_iter().collect());
    wait_until("the others are due", async || {
        test_vhost.counts(DUE_QUEUE) == (LIMIT as u64, 0)
    })
    .await;
    let refused = publish_one(&broker, to("q", "more")).await.unwrap_err();
    assert_eq!(refused.kind(), ServiceErrorKind::Refused, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn due_messages_are_moved_when_the_last_reader_closes() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let consumer = deferring_consumer(&broker, &queue, DELAY).await;
    wait_until("they are due", async || {
        test_vhost.counts(DUE_QUEUE) == (0, LIMIT as u64)
    })
    .await;

    within("close", consumer.close()).await.unwrap();

    assert_eq!(test_vhost.counts(DUE_QUEUE), (0, 0));
    assert_eq!(test_vhost.counts("q"), (LIMIT as u64, 0));
    let raw = test_vhost.raw().await;
    for _ in 0..LIMIT {
        let moved = raw.take("q").await.expect("it was moved");
        assert_eq!(moved.exchange.as_str(), "");
        let headers = moved.properties.headers().clone().unwrap_or_default();
        let names: Vec<_> = headers.inner().keys().map(|name| name.as_str()).collect();
        assert!(
            !names.iter().any(|name| name.contains("death")),
            "{names:?}"
        );
    }
}

/// A replaced consumer of a worker is dropped, and not closed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn due_messages_are_moved_when_the_last_reader_is_dropped() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let consumer = deferring_consumer(&broker, &queue, DELAY).await;
    wait_until("they are due", async || {
        test_vhost.counts(DUE_QUEUE) == (0, LIMIT as u64)
    })
    .await;

    drop(consumer);

    wait_until("they are moved", async || {
        test_vhost.counts(DUE_QUEUE) == (0, 0) && test_vhost.counts("q") == (LIMIT as u64, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn due_messages_stay_while_another_reader_is_there() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let first = deferring_consumer(&broker, &queue, DELAY).await;
    wait_until("they are due", async || {
        test_vhost.counts(DUE_QUEUE) == (0, LIMIT as u64)
    })
    .await;
    let second = consumer(&broker, &[&queue], 1).await;

    within("close", first.close()).await.unwrap();

    assert_eq!(test_vhost.counts("q"), (0, 0));
    for _ in 0..LIMIT {
        let taken = receive_one(&*second).await;
        ack_all(&*second, &[taken]).await;
    }
    wait_until("nothing is left", async || {
        test_vhost.counts(DUE_QUEUE) == (0, 0)
    })
    .await;
}

/// Starts a consumer of the queue that does not read the due queue, such as a Python
/// worker, and returns its deliveries.
async fn foreign_consumer(raw: &RawClient, queue: &str) -> lapin::Consumer {
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let consuming = raw.channel.basic_consume(
        queue.into(),
        "foreign".into(),
        options,
        FieldTable::default(),
    );
    consuming.await.unwrap()
}

/// Waits for the next delivery and returns the id of its task.
async fn foreign_id(consumer: &mut lapin::Consumer) -> String {
    let delivery = within("delivery", consumer.next()).await.unwrap().unwrap();
    let headers = delivery.properties.headers().clone().unwrap();
    let id = &headers.inner()["id"];
    id.as_long_string().unwrap().to_string()
}

/// A worker of Rust with room for one message, and a worker that reads only the queue.
async fn assert_moved_to_foreign_consumer(test_vhost: &TestVhost, url: &str) {
    let interval = Duration::from_millis(200);
    let options = AmqpOptions::parse(url).unwrap();
    let broker = AmqpBroker::new(options.due_check_interval(interval));
    let queue = Queue::new("q");
    send(&broker, &queue, &numbers(0..LIMIT)).await;
    let mailbox = Mailbox::of(Exchange::topic("e"), "#");
    let _mailbox = within("subscribe", broker.subscribe(&mailbox))
        .await
        .unwrap();
    let consumer = consumer(&broker, &[&queue], 1).await;
    for _ in 0..LIMIT {
        let taken = receive_one(&*consumer).await;
        defer(&*consumer, &[taken], DELAY).await;
    }
    send(&broker, &queue, &["held"]).await;
    let held = receive_one(&*consumer).await;
    let raw = test_vhost.raw().await;
    let mut foreign = foreign_consumer(&raw, "q").await;

    let mut seen = BTreeSet::new();
    while seen.len() < LIMIT - 1 {
        seen.insert(foreign_id(&mut foreign).await);
    }

    wait_until("one is with the consumer", async || {
        test_vhost.counts(DUE_QUEUE) == (0, 1)
    })
    .await;
    let taken = receive_one(&*consumer).await;
    seen.insert(id(&taken));
    assert_eq!(seen, numbers(0..LIMIT).into_iter().collect());
    ack_all(&*consumer, &[held, taken]).await;
    wait_until("nothing is left", async || {
        test_vhost.counts("q") == (0, 0) && test_vhost.counts(DUE_QUEUE) == (0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn due_messages_are_moved_while_another_consumer_reads_only_the_queue() {
    let test_vhost = TestVhost::create();
    assert_moved_to_foreign_consumer(&test_vhost, &test_vhost.url).await;
}

/// RabbitMQ closes the connection that exceeds the limit.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn due_messages_are_moved_with_four_channels() {
    let test_vhost = TestVhost::create();
    let url = create_user(&test_vhost, "four-channels");
    let limit = "{\"max-channels\": 4}";
    blocking(|| RabbitServer::shared().control(&["set_user_limits", "four-channels", limit]));
    assert_moved_to_foreign_consumer(&test_vhost, &url).await;
}

/// Earlier versions bound the task queue itself, with another word in the key.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_deferred_by_earlier_version_is_received() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let consumer = consumer(&broker, &[&queue], 4).await;
    let raw = test_vhost.raw().await;
    let exchange = "celery_parked";
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let topic = lapin::ExchangeKind::Topic;
    let none = FieldTable::default();
    let declared = raw
        .channel
        .exchange_declare(exchange.into(), topic, options, none.clone());
    declared.await.unwrap();
    let pattern = format!("{}q.celery_parked.*", "*.".repeat(28));
    let bound = raw.channel.queue_bind(
        "q".into(),
        exchange.into(),
        pattern.into(),
        QueueBindOptions::default(),
        none,
    );
    bound.await.unwrap();
    let key = format!("{}q.celery_parked.f3", "0.".repeat(28));
    let sent = raw.channel.basic_publish(
        exchange.into(),
        key.into(),
        BasicPublishOptions::default(),
        b"[[], {}, {}]",
        BasicProperties::default(),
    );
    sent.await.unwrap().await.unwrap();

    let taken = receive_one(&*consumer).await;

    let info = &message(&taken).properties.delivery_info;
    assert_eq!(
        (info.exchange.as_str(), info.routing_key.as_str()),
        ("", "q")
    );
    defer(&*consumer, &[taken], Duration::from_millis(300)).await;
    let back = receive_one(&*consumer).await;
    ack_all(&*consumer, &[back]).await;
    wait_until("nothing is left", async || {
        test_vhost.counts("q") == (0, 0) && test_vhost.counts(DUE_QUEUE) == (0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deferred_message_waits_in_consumer_that_may_not_declare() {
    let test_vhost = TestVhost::create();
    let queue = Queue::new("q");
    send(&test_vhost.broker(), &queue, &["soon", "later"]).await;
    let url = create_user(&test_vhost, "no-configure");
    let vhost = &test_vhost.vhost;
    let permissions = [
        "set_permissions",
        "-p",
        vhost,
        "no-configure",
        "^$",
        ".*",
        ".*",
    ];
    blocking(|| RabbitServer::shared().control(&permissions));
    let broker = broker_at(&url);
    let options = ConsumeOptions::new(vec![queue.clone()], 4);
    let consumer = within("consume", broker.consume(&options)).await.unwrap();
    let taken = receive(&*consumer, 2).await;

    defer(&*consumer, &taken[..1], Duration::from_millis(300)).await;
    defer(&*consumer, &taken[1..], Duration::from_secs(3_600)).await;

    let due = SystemTime::now() + Duration::from_millis(300);
    let back = receive_one(&*consumer).await;
    assert_eq!(id(&back), "soon");
    assert!(
        SystemTime::now() + Duration::from_millis(50) >= due,
        "early"
    );
    assert_eq!(test_vhost.counts("q"), (0, 2));
    let queues = test_vhost.rows("list_queues", &["name"]);
    assert_eq!(queues, [["q"]]);
    ack_all(&*consumer, &[back]).await;
    within("close", consumer.close()).await.unwrap();
    wait_until("the other is requeued", async || {
        test_vhost.counts("q") == (1, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queues_keep_their_arguments_beside_due_queues() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues = [
        Queue::new("q").max_priority(5),
        limited("limited", "reject-publish"),
        Queue::new("quorum").quorum(),
    ];
    for queue in &queues {
        within("declare", broker.declare(queue)).await.unwrap();
    }
    let columns = ["name", "durable", "arguments"];
    let before = without_default_type(test_vhost.rows("list_queues", &columns));

    let all: Vec<_> = queues.iter().collect();
    let consumer = consumer(&broker, &all, 4).await;
    send(&broker, &queues[0], &["1"]).await;
    defer(&*consumer, &[receive_one(&*consumer).await], DELAY).await;
    ack_all(&*consumer, &[receive_one(&*consumer).await]).await;

    let mut after = test_vhost.rows("list_queues", &columns);
    let due: Vec<_> = after
        .extract_if(.., |row| row[0].starts_with("celery_d"))
        .filter(|row| row[0].starts_with("celery_due."))
        .collect();
    assert_eq!(without_default_type(after), before);
    let row = |name: &str| due.iter().find(|row| row[0] == name).expect(name);
    assert!(
        row(DUE_QUEUE)[2].contains("{\"x-max-priority\",5}"),
        "{due:?}"
    );
    assert!(
        !row("celery_due.limited")[2].contains("max-length"),
        "{due:?}"
    );
    for row in &due {
        assert_eq!(row[1], "true", "{row:?}");
        assert!(!row[2].contains("quorum"), "{row:?}");
    }
    assert_eq!(due.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn close_while_publishing_is_blocked_leaves_due_messages() {
    let server = blocking(RabbitServer::start);
    let broker = broker_at(&server.url());
    let consumer = deferring_consumer(&broker, &Queue::new("q"), DELAY).await;
    let counts = || {
        let rows = blocking(|| {
            server.list(&[
                "list_queues",
                "name",
                "messages_ready",
                "messages_unacknowledged",
            ])
        });
        let row = rows.into_iter().find(|row| row[0] == DUE_QUEUE);
        row.map(|row| (row[1].clone(), row[2].clone()))
    };
    let limit = LIMIT.to_string();
    wait_until("they are due", async || {
        counts() == Some(("0".to_owned(), limit.clone()))
    })
    .await;
    set_memory_alarm(&server, true).await;
    block_publishing(&broker).await;

    within("close", consumer.close()).await.unwrap();

    wait_until("they are back", async || {
        counts() == Some((limit.clone(), "0".to_owned()))
    })
    .await;
    set_memory_alarm(&server, false).await;
}

/// The message is published, and its confirm does not arrive; or it arrives late.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn due_message_without_confirm_stays_in_the_due_queue() {
    let port = RabbitServer::shared().port();
    for (fault, is_copied) in [
        (Fault::HoldRequest, false),
        (Fault::SwallowAnswer, true),
        (Fault::Cut, true),
    ] {
        let test_vhost = TestVhost::create();
        let network = Proxy::to(port);
        let url = test_vhost
            .url
            .replace(&port.to_string(), &network.port().to_string());
        let (broker, queue) = (broker_at(&url), Queue::new("q"));
        send(&broker, &queue, &["moved-task"]).await;
        let consumer = consumer(&broker, &[&queue], 1).await;
        let taken = receive_one(&*consumer).await;
        defer(&*consumer, &[taken], DELAY).await;
        wait_until("it is due", async || test_vhost.counts(DUE_QUEUE) == (0, 1)).await;
        let injected = network.on_request("moved-task", fault);

        within("close", consumer.close()).await.unwrap();

        assert!(injected.has_request(), "{fault:?}");
        wait_until("it stays", async || {
            test_vhost.counts(DUE_QUEUE) == (1, 0)
                && test_vhost.counts("q") == (u64::from(is_copied), 0)
        })
        .await;
        injected.release();
    }
}

/// A worker with changed queues interrupts its consumer and keeps it until the tasks of
/// its deliveries have ended.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn interrupted_consumer_requeues_deferred_deliveries_that_wait_in_it() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    for prefetch in [0, 4] {
        send(&broker, &queue, &numbers(0..3)).await;
        let first = consumer(&broker, &[&queue], prefetch).await;
        let taken = receive(&*first, 3).await;
        let soon = Duration::from_millis(60);
        defer(&*first, &taken[1..2], soon).await;

        first.interrupt();
        defer(&*first, &taken[2..], soon).await;

        let second = consumer(&broker, &[&queue], prefetch).await;
        let back = receive(&*second, 2).await;
        assert_eq!(sorted_ids(&back), ids(&taken[1..]).into_iter().collect());
        ack_all(&*second, &back).await;
        ack_all(&*first, &taken[..1]).await;
        within("close", second.close()).await.unwrap();
        wait_until("nothing is left", async || test_vhost.counts("q") == (0, 0)).await;
    }
}
