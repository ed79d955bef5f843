//! Tests of deferred messages, which wait in the broker until they are due.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use celery_broker_amqp::{AmqpBroker, AmqpOptions};
use celery_protocol::Message;
use celery_runtime::{
    Broker, Consumer, Delivery, Exchange, Publication, Queue, QueueEnd, QueueType, Settlement,
};

use crate::support::{
    TestVhost, ack_all, all, consumer, id, ids, message, numbers, publish_one, receive,
    receive_one, send, settle, to, wait_until, within,
};

async fn defer(consumer: &dyn Consumer, deliveries: &[Delivery], until: SystemTime) {
    let defers = deliveries
        .iter()
        .map(|one| Settlement::Defer(one.tag.clone(), until));
    settle(consumer, &defers.collect::<Vec<_>>()).await;
}

fn from_now(delay: Duration) -> SystemTime {
    SystemTime::now() + delay
}

const SHORT_DELAY: Duration = Duration::from_millis(1_300);
const ONE_HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn thousand_deferred_messages_return_once_and_on_time() {
    const COUNT: usize = 1_000;
    let mut latenesses = Vec::new();
    for (levels, queue) in [
        (QueueType::Classic, Queue::new("classic")),
        (QueueType::Classic, Queue::new("quorum").quorum()),
        (QueueType::Quorum, Queue::new("classic")),
        (QueueType::Quorum, Queue::new("quorum").quorum()),
    ] {
        let test_vhost = TestVhost::create();
        let options = AmqpOptions::parse(&test_vhost.url).unwrap();
        let broker = AmqpBroker::new(options.delayed_queue_type(levels));
        send(&broker, &queue, &numbers(0..COUNT)).await;
        let consumer = consumer(&broker, &[&queue], COUNT as u16).await;
        let taken = receive(&*consumer, COUNT).await;
        let due = from_now(Duration::from_secs(2));
        let started = Instant::now();
        defer(&*consumer, &taken, due).await;
        let deferred = started.elapsed();

        publish_one(&broker, to(&queue.name, "now")).await.unwrap();
        let now = receive_one(&*consumer).await;
        assert_eq!(id(&now), "now");
        assert!(SystemTime::now() < due, "the deferred messages delayed it");
        ack_all(&*consumer, &[now]).await;

        let mut expected: BTreeSet<_> = numbers(0..COUNT).into_iter().collect();
        while !expected.is_empty() {
            let back = within("receive", consumer.receive(COUNT)).await.unwrap();
            assert!(SystemTime::now() >= due, "early");
            for one in &back {
                assert!(expected.remove(&id(one)), "{} came twice", id(one));
            }
            ack_all(&*consumer, &back).await;
        }
        let late = SystemTime::now().duration_since(due).unwrap();
        println!(
            "{}, levels {levels:?}: {COUNT} were deferred within {deferred:?}, the latest was {late:?} late",
            queue.name
        );
        latenesses.push((levels, late));
        wait_until("nothing is left", async || {
            test_vhost.counts(&queue.name) == (0, 0)
        })
        .await;
    }
    for (levels, late) in latenesses {
        // A quorum queue dead-letters 32 messages at a time, and waits for each
        // batch to be written to disk.
        let limit = match levels {
            QueueType::Quorum => Duration::from_secs(3),
            _ => Duration::from_millis(1_500),
        };
        assert!(late < limit, "{late:?} late with levels {levels:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deferred_messages_do_not_count_against_the_prefetch() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &numbers(0..40)).await;
    let consumer = consumer(&broker, &[&queue], 4).await;
    for _ in 0..40 {
        let taken = receive_one(&*consumer).await;
        defer(&*consumer, &[taken], from_now(ONE_HOUR)).await;
    }
    publish_one(&broker, to("q", "now")).await.unwrap();
    assert_eq!(id(&receive_one(&*consumer).await), "now");
    assert_eq!(test_vhost.counts("q"), (0, 1));
    // An hour is 111000010000 in binary seconds: its highest level is 11.
    let waiting = Queue::new("celery_delayed_11");
    assert_eq!(broker.depth(&waiting).await.unwrap(), 40);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_can_be_deferred_repeatedly() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q.high"));
    send(&broker, &queue, &["1"]).await;
    let consumer = consumer(&broker, &[&queue], 4).await;
    let first = receive_one(&*consumer).await;
    let sent = message(&first).clone();
    let mut delivery = first;
    for delay in [
        SHORT_DELAY,
        SHORT_DELAY,
        Duration::from_millis(350),
        Duration::from_millis(350),
    ] {
        let due = from_now(delay);
        defer(&*consumer, &[delivery], due).await;
        delivery = receive_one(&*consumer).await;
        assert!(SystemTime::now() >= due, "early");
        // It looks like a message that was not deferred.
        let back = message(&delivery);
        assert_eq!(back.body, sent.body);
        assert_eq!(back.properties, sent.properties);
        assert_eq!(task_headers(back), task_headers(&sent));
        assert!(!delivery.redelivered && delivery.delivery_count.is_none());
    }
}

/// Returns the names of a message's headers without RabbitMQ's dead-letter ones.
fn task_headers(message: &Message) -> Vec<String> {
    let headers = message.headers.to_map().unwrap();
    let mut names: Vec<_> = headers
        .iter()
        .filter_map(|(name, _)| name.as_str().map(str::to_owned))
        .filter(|name| !name.contains("death"))
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queues_with_a_common_name_suffix_get_their_own_messages() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues = ["high", "x.high", "y.x.high", "0.high", "x"].map(Queue::new);
    let all: Vec<_> = queues.iter().collect();
    for queue in &queues {
        send(&broker, queue, &[queue.name.as_str()]).await;
    }
    let consumer = consumer(&broker, &all, 4).await;
    let taken = receive(&*consumer, queues.len()).await;
    defer(&*consumer, &taken, from_now(SHORT_DELAY)).await;
    let back = receive(&*consumer, queues.len()).await;
    for one in &back {
        assert_eq!(id(one), *one.queue);
    }
    for queue in &queues {
        assert_eq!(broker.depth(queue).await.unwrap(), 0, "{}", queue.name);
    }
}

/// A queue may have any name, including one that looks like a pattern.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queue_named_like_a_pattern_gets_only_its_own_messages() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues = ["jobs.*", "jobs.high", "#"].map(Queue::new);
    for queue in &queues {
        send(&broker, queue, &[queue.name.as_str()]).await;
        let consumer = consumer(&broker, &[queue], 4).await;
        let taken = receive_one(&*consumer).await;
        defer(&*consumer, &[taken], from_now(SHORT_DELAY)).await;
        within("close", consumer.close()).await.unwrap();
    }
    for queue in &queues {
        let consumer = consumer(&broker, &[queue], 0).await;
        assert_eq!(id(&receive_one(&*consumer).await), queue.name);
        within("close", consumer.close()).await.unwrap();
    }
    // Closing the consumers has requeued the messages.
    for queue in &queues {
        wait_until("one each", async || broker.depth(queue).await.unwrap() > 0).await;
        assert_eq!(broker.depth(queue).await.unwrap(), 1, "{}", queue.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queue_with_a_long_name_defers_messages() {
    let test_vhost = TestVhost::create();
    let name = "long.".repeat(40);
    let (broker, queue) = (test_vhost.broker(), Queue::new(name));
    send(&broker, &queue, &["1", "2"]).await;
    let consumer = consumer(&broker, &[&queue], 4).await;
    let taken = receive(&*consumer, 2).await;
    let due = from_now(SHORT_DELAY);
    defer(&*consumer, &taken, due).await;
    let back = receive(&*consumer, 2).await;
    assert!(SystemTime::now() >= due, "early");
    ack_all(&*consumer, &back).await;
    wait_until("nothing is left", async || {
        test_vhost.counts(&queue.name) == (0, 0)
    })
    .await;
}

/// Deferred messages do not count as unsettled deliveries.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queue_with_a_long_name_is_not_blocked_by_deferred_messages() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("long.".repeat(40)));
    send(&broker, &queue, &numbers(0..4)).await;
    let consumer = consumer(&broker, &[&queue], 4).await;
    let taken = receive(&*consumer, 4).await;
    defer(&*consumer, &taken, from_now(ONE_HOUR)).await;
    publish_one(&broker, to(&queue.name, "now")).await.unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(3), consumer.receive(1)).await;
    let taken = taken.expect("deferred messages block the others").unwrap();
    assert_eq!(ids(&taken), ["now"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_that_is_due_or_due_soon_is_redelivered_locally() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &numbers(0..3)).await;
    for prefetch in [0, 4] {
        let consumer = consumer(&broker, &[&queue], prefetch).await;
        let taken = receive(&*consumer, 3).await;
        let started = Instant::now();
        defer(&*consumer, &taken[..1], SystemTime::UNIX_EPOCH).await;
        defer(&*consumer, &taken[1..], from_now(Duration::from_millis(60))).await;
        let back = receive(&*consumer, 3).await;
        assert!(started.elapsed() >= Duration::from_millis(60), "early");
        assert_eq!(ids(&back), ids(&taken));
        within("close", consumer.close()).await.unwrap();
        wait_until("they are requeued", async || {
            test_vhost.counts("q") == (3, 0)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deferred_message_survives_its_consumer() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &["1"]).await;
    let first = consumer(&broker, &[&queue], 4).await;
    let due = from_now(SHORT_DELAY);
    defer(&*first, &[receive_one(&*first).await], due).await;
    within("close", first.close()).await.unwrap();
    within("close", broker.close()).await;
    drop(first);
    let broker = test_vhost.broker();
    let second = consumer(&broker, &[&queue], 4).await;
    assert_eq!(id(&receive_one(&*second).await), "1");
    assert!(SystemTime::now() >= due, "early");
}

/// A deleted queue loses its binding for deferred messages. It must be bound again,
/// or deferred messages never return.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_deferred_after_queue_was_redeclared_returns() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queue = Queue::new("q");
    let first = consumer(&broker, &[&queue], 4).await;
    send(&broker, &queue, &["1"]).await;
    defer(
        &*first,
        &[receive_one(&*first).await],
        from_now(SHORT_DELAY),
    )
    .await;
    assert_eq!(id(&receive_one(&*first).await), "1");
    raw.delete("q").await;
    within("the end", first.receive(1)).await.unwrap_err();
    drop(first);

    // A worker starts a new consumer after that.
    let second = consumer(&broker, &[&queue], 4).await;
    for delay in [SHORT_DELAY, Duration::from_millis(350)] {
        publish_one(&broker, to("q", "2")).await.unwrap();
        defer(&*second, &[receive_one(&*second).await], from_now(delay)).await;
        let back = tokio::time::timeout(Duration::from_secs(5), receive_one(&*second)).await;
        assert_eq!(id(&back.expect("the message returns")), "2", "{delay:?}");
    }
}

/// The message is deferred before the queue is deleted.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_deferred_before_queue_was_deleted_reaches_the_new_queue() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queue = Queue::new("q");
    let first = consumer(&broker, &[&queue], 4).await;
    send(&broker, &queue, &["1"]).await;
    defer(
        &*first,
        &[receive_one(&*first).await],
        from_now(SHORT_DELAY),
    )
    .await;
    raw.delete("q").await;
    drop(first);
    let second = consumer(&broker, &[&queue], 4).await;
    let back = tokio::time::timeout(Duration::from_secs(8), receive_one(&*second)).await;
    assert_eq!(id(&back.expect("the message returns")), "1");
}

/// The queue of a level is deleted on the server.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deleted_delay_queue_is_declared_again() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queue = Queue::new("q");
    send(&broker, &queue, &["1"]).await;
    let consumer = consumer(&broker, &[&queue], 4).await;
    let mut delivery = receive_one(&*consumer).await;
    for deleted in [None, Some("celery_delayed_0")] {
        if let Some(level) = deleted {
            raw.delete(level).await;
        }
        // 1.45 s passes both a level and a queue for tenths, whatever time has
        // elapsed.
        let defers = [Settlement::Defer(
            delivery.tag.clone(),
            from_now(Duration::from_millis(1_450)),
        )];
        // The first attempt may fail because of the missing queue.
        let deferred = async || all(consumer.settle(&defers).await).is_ok();
        let attempts = tokio::time::timeout(
            Duration::from_secs(5),
            wait_until("it is deferred", deferred),
        );
        attempts
            .await
            .unwrap_or_else(|_| panic!("cannot be deferred without {deleted:?}"));
        let back = tokio::time::timeout(Duration::from_secs(5), receive_one(&*consumer)).await;
        delivery = back.unwrap_or_else(|_| panic!("lost without {deleted:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn native_delay_is_used_for_topic_exchange_of_quorum_queue() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queue = Queue::new("q")
        .bound_to(Exchange::topic("feeds"), "feed")
        .quorum();
    let consumer = consumer(&broker, &[&queue], 4).await;
    let mut sent = crate::support::task("1");
    let due = from_now(Duration::from_millis(2_500));
    sent.headers
        .set("eta", celery_protocol::time::format(due).into())
        .unwrap();
    let publication =
        Publication::to_exchange(sent, "feeds", "feed").declare_queue(queue.clone().into());
    let started = Instant::now();
    publish_one(&broker, publication).await.unwrap();

    let delivery = receive_one(&*consumer).await;

    // The whole seconds are spent in the broker.
    assert!(
        started.elapsed() >= Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    let info = &message(&delivery).properties.delivery_info;
    assert_eq!(
        (info.exchange.as_str(), info.routing_key.as_str()),
        ("feeds", "feed")
    );
    // The rest of the delay is deferred for the same queue.
    defer(
        &*consumer,
        &[delivery],
        from_now(Duration::from_millis(400)),
    )
    .await;
    assert_eq!(id(&receive_one(&*consumer).await), "1");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn concurrent_defer_requeue_and_ack_settle_every_message() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &numbers(0..300)).await;
    let consumer = consumer(&broker, &[&queue], 100).await;
    let mut done = Vec::new();
    while done.len() < 300 {
        let taken = within("receive", consumer.receive(20)).await.unwrap();
        let batch: Vec<_> = taken
            .iter()
            .enumerate()
            .map(|(number, one)| match (number % 4, one.redelivered) {
                (1, false) => {
                    Settlement::Defer(one.tag.clone(), from_now(Duration::from_millis(250)))
                }
                (2, false) => Settlement::Requeue(one.tag.clone(), QueueEnd::Head),
                _ => {
                    done.push(id(one));
                    Settlement::Ack(one.tag.clone())
                }
            })
            .collect();
        let (first, second) = batch.split_at(batch.len() / 2);
        let (first, second) = tokio::join!(consumer.settle(first), consumer.settle(second));
        all(first).unwrap();
        all(second).unwrap();
    }
    done.sort_by_key(|id| id.parse::<usize>().unwrap());
    assert_eq!(done, numbers(0..300));
    wait_until("nothing is left", async || test_vhost.counts("q") == (0, 0)).await;
}
