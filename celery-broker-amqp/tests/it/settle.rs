//! Tests of settling: each settlement affects exactly its delivery.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use celery_protocol::Value;
use celery_runtime::{Broker, Delivery, Exchange, Queue, QueueEnd, Settlement};

use futures_util::future::FutureExt;
use test_servers::{Proxy, RabbitServer};

use crate::support::{
    TestRng, TestVhost, ack_all, all, broker_at, consumer, id, message, numbers, receive,
    receive_one, send, settle, wait_until, within,
};

/// Returns the queue and the id of a delivery.
fn identity(delivery: &Delivery) -> (String, String) {
    (delivery.queue.to_string(), id(delivery))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn acknowledged_messages_leave_the_queue() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &numbers(0..1000)).await;
    let consumer = consumer(&broker, &[&queue], 1000).await;
    let taken = receive(&*consumer, 1000).await;
    assert_eq!(test_vhost.counts("q"), (0, 1000));
    ack_all(&*consumer, &taken).await;
    wait_until("all are acknowledged", async || {
        test_vhost.counts("q") == (0, 0)
    })
    .await;
    // A repeated acknowledgement is ignored, and the channel stays open.
    ack_all(&*consumer, &taken).await;
    send(&broker, &queue, &["after"]).await;
    assert_eq!(id(&receive_one(&*consumer).await), "after");
}

/// Two queues share a channel and its tags. In whatever order their deliveries are
/// settled, exactly the unsettled ones are redelivered.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn settlements_in_any_order_remove_exactly_their_messages() {
    const PER_QUEUE: usize = 60;
    for seed in 0..6 {
        let mut rng = TestRng::new(seed);
        let test_vhost = TestVhost::create();
        let broker = test_vhost.broker();
        let queues = [Queue::new("one"), Queue::new("two").quorum()];
        for queue in &queues {
            send(&broker, queue, &numbers(0..PER_QUEUE)).await;
        }
        let first = consumer(&broker, &[&queues[0], &queues[1]], [0, 25][rng.below(2)]).await;
        let mut held: Vec<Delivery> = Vec::new();
        let mut settled_ids = BTreeSet::new();
        for _ in 0..15 {
            if held.len() < 30 && held.len() + settled_ids.len() < 2 * PER_QUEUE {
                held.extend(
                    within("receive", first.receive(1 + rng.below(10)))
                        .await
                        .unwrap(),
                );
            }
            let mut batch = Vec::new();
            for _ in 0..rng.below(held.len().min(12) + 1) {
                let one = held.swap_remove(rng.below(held.len()));
                settled_ids.insert(identity(&one));
                batch.push(match rng.below(5) {
                    0 => Settlement::Reject(one.tag),
                    _ => Settlement::Ack(one.tag),
                });
            }
            settle(&*first, &batch).await;
        }
        within("close", first.close()).await.unwrap();

        let second = consumer(&broker, &[&queues[0], &queues[1]], 200).await;
        let rest = receive(&*second, 2 * PER_QUEUE - settled_ids.len()).await;

        let redelivered: BTreeSet<_> = rest.iter().map(identity).collect();
        assert_eq!(redelivered.len(), rest.len(), "seed {seed}");
        assert!(redelivered.is_disjoint(&settled_ids), "seed {seed}");
        ack_all(&*second, &rest).await;
        for queue in &queues {
            wait_until("nothing is left", async || {
                test_vhost.counts(&queue.name) == (0, 0)
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn rejected_message_is_dead_lettered() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let dead = Queue::new("dead").bound_to(Exchange::direct("dead"), "q.dead");
    let queue = Queue::new("q")
        .argument("x-dead-letter-exchange", "dead")
        .argument("x-dead-letter-routing-key", "q.dead");
    within("declare", broker.declare(&dead)).await.unwrap();
    send(&broker, &queue, &["1"]).await;
    let consumer = consumer(&broker, &[&queue, &dead], 4).await;
    let delivery = receive_one(&*consumer).await;
    settle(&*consumer, &[Settlement::Reject(delivery.tag)]).await;

    let delivery = receive_one(&*consumer).await;

    assert_eq!((&*delivery.queue, id(&delivery).as_str()), ("dead", "1"));
    let headers = message(&delivery).headers.to_map().unwrap();
    let Some(Value::Array(deaths)) = headers.get("x-death") else {
        panic!("no x-death in {headers:?}");
    };
    let death = deaths[0].as_map().unwrap();
    let text = |name: &str| death.get(name).and_then(Value::as_str).map(str::to_owned);
    assert_eq!(text("reason").as_deref(), Some("rejected"));
    assert_eq!(text("queue").as_deref(), Some("q"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_requeued_at_the_tail_keeps_its_content() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let mut sent = crate::support::task("1");
    let properties = &mut sent.properties;
    properties.reply_to = Some("replies".to_owned());
    properties.expiration = Some("600000".to_owned());
    properties.priority = Some(3);
    properties.extra.insert("app_id", "app");
    properties
        .extra
        .insert("timestamp", Value::Int(1_700_000_000));
    let batch = [celery_runtime::Publication::to_queue(sent, "q")];
    send(&broker, &queue, &["0"]).await;
    broker.publish(&batch).await.remove(0).unwrap();
    let consumer = consumer(&broker, &[&queue], 4).await;
    let first = receive(&*consumer, 2).await;
    ack_all(&*consumer, &first[..1]).await;
    let tail = Settlement::Requeue(first[1].tag.clone(), QueueEnd::Tail);
    settle(&*consumer, &[tail]).await;

    let second = receive_one(&*consumer).await;

    let mut expected = message(&first[1]).properties.clone();
    expected.delivery_info.redelivered = true;
    assert_eq!(message(&second).properties, expected);
    assert_eq!(message(&second).body, message(&first[1]).body);
    assert_eq!(
        message(&second).headers.to_map().unwrap(),
        message(&first[1]).headers.to_map().unwrap()
    );
}

/// A delivery that cannot be published again must not prevent the acknowledgement
/// of the others.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn failed_defer_does_not_fail_the_rest_of_its_batch() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queue = Queue::new("q");
    // The name of a level is in use for an exchange of another type.
    raw.channel
        .exchange_declare(
            "celery_delayed_11".into(),
            lapin::ExchangeKind::Fanout,
            lapin::options::ExchangeDeclareOptions::default(),
            lapin::types::FieldTable::default(),
        )
        .await
        .unwrap();
    send(&broker, &queue, &["park", "ack"]).await;
    let consumer = consumer(&broker, &[&queue], 4).await;
    let taken = receive(&*consumer, 2).await;
    let later = SystemTime::now() + Duration::from_secs(3600);

    let batch = [
        Settlement::Defer(taken[0].tag.clone(), later),
        Settlement::Ack(taken[1].tag.clone()),
    ];
    let settled = within("settle", consumer.settle(&batch)).await;

    wait_until("the acknowledged message leaves the queue", async || {
        test_vhost.counts("q").1 <= 1
    })
    .await;
    // A permanent error ends a task for the worker: the acknowledged one would
    // never run.
    if let Err(error) = all(settled) {
        assert!(error.is_transient(), "{error}");
    }
}

/// A worker cancels a settlement after a timeout, and repeats it. RabbitMQ closes
/// the channel of a client that settles a delivery twice, and requeues everything
/// that the channel holds.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn cancelled_settlement_can_be_repeated() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &numbers(0..6)).await;
    let consumer = consumer(&broker, &[&queue], 10).await;
    let taken = receive(&*consumer, 6).await;
    let tag = |number: usize| taken[number].tag.clone();
    for batch in [
        vec![Settlement::Ack(tag(0))],
        vec![Settlement::Ack(tag(1)), Settlement::Ack(tag(2))],
        vec![Settlement::Reject(tag(3))],
        vec![Settlement::Reject(tag(4)), Settlement::Ack(tag(5))],
    ] {
        // The first poll sends the frames; this does not wait for them.
        let _ = consumer.settle(&batch).now_or_never();
        settle(&*consumer, &batch).await;
    }
    send(&broker, &queue, &["after"]).await;
    let after = receive_one(&*consumer).await;
    assert_eq!((id(&after).as_str(), after.redelivered), ("after", false));
    wait_until("the others are settled", async || {
        test_vhost.counts("q") == (0, 1)
    })
    .await;
}

/// RabbitMQ gives the messages to another consumer, so an early task must not take
/// the answer to the repetition for a proof that it was acknowledged.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn settlement_on_lost_connection_is_in_doubt_also_when_repeated() {
    let test_vhost = TestVhost::create();
    let port = RabbitServer::shared().port();
    let network = Proxy::to(port);
    let url = test_vhost
        .url
        .replace(&port.to_string(), &network.port().to_string());
    let (broker, queue) = (broker_at(&url), Queue::new("q"));
    send(&broker, &queue, &numbers(0..3)).await;
    let first = consumer(&broker, &[&queue], 4).await;
    let taken = receive(&*first, 3).await;
    network.reset();
    within("the end", first.receive(1)).await.unwrap_err();

    let tag = |number: usize| taken[number].tag.clone();
    for batch in [
        [Settlement::Ack(tag(0)), Settlement::Reject(tag(1))],
        [Settlement::Ack(tag(0)), Settlement::Reject(tag(1))],
        [Settlement::Reject(tag(0)), Settlement::Ack(tag(2))],
    ] {
        for settled in within("settle", first.settle(&batch)).await {
            let error = settled.expect_err("nothing was written");
            assert!(error.is_in_doubt() && error.is_transient(), "{error}");
        }
    }

    let second = consumer(&broker, &[&queue], 4).await;
    let again = receive(&*second, 3).await;
    assert!(again.iter().all(|one| one.redelivered));
}
