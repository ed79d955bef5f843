//! Tests of prefetching, interrupting and closing consumers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use celery_runtime::{
    Broker, ConsumeOptions, Mailbox, Queue, QueueEnd, ServiceErrorKind, Settlement,
};

use test_servers::RabbitServer;

use crate::support::{
    TestVhost, ack_all, blocking, consumer, id, ids, numbers, publish_one, receive, receive_one,
    send, settle, to, wait_until, within,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn prefetch_applies_to_each_queue() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues = [Queue::new("one"), Queue::new("two").quorum()];
    for queue in &queues {
        send(&broker, queue, &numbers(0..30)).await;
    }
    let consumer = consumer(&broker, &[&queues[0], &queues[1]], 7).await;
    for queue in &queues {
        wait_until("the prefetch is used up", async || {
            test_vhost.counts(&queue.name) == (23, 7)
        })
        .await;
    }
    let consumers = test_vhost.consumers(&["queue_name", "prefetch_count", "ack_required"]);
    assert_eq!(consumers, [["one", "true", "7"], ["two", "true", "7"]]);
    // RabbitMQ 4 lists no prefetch of a whole channel.
    if blocking(|| RabbitServer::shared().major_version()) < 4 {
        let channels = test_vhost.channels(&["global_prefetch_count"]);
        assert!(channels.iter().all(|row| row[0] == "0"), "{channels:?}");
    }
    let taken = receive(&*consumer, 3).await;
    ack_all(&*consumer, &taken).await;
    wait_until("three more were pushed", async || {
        let (one, two) = (test_vhost.counts("one"), test_vhost.counts("two"));
        one.1 == 7 && two.1 == 7 && one.0 + two.0 == 43
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn consumer_without_prefetch_receives_only_requested_messages() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues = [Queue::new("one"), Queue::new("two").quorum()];
    for queue in &queues {
        send(&broker, queue, &numbers(0..10)).await;
    }
    let first = consumer(&broker, &[&queues[0], &queues[1]], 0).await;
    assert_eq!(receive(&*first, 3).await.len(), 3);
    wait_until("three are held", async || {
        test_vhost.counts("one").1 + test_vhost.counts("two").1 == 3
    })
    .await;
    // Another consumer receives all the others at once.
    let second = consumer(&broker, &[&queues[0], &queues[1]], 0).await;
    let rest = receive(&*second, 17).await;
    assert!(rest.iter().all(|one| !one.redelivered));
    // A message that arrives while a consumer waits is delivered to it.
    let waiting = {
        let first = Arc::clone(&first);
        tokio::spawn(async move { first.receive(5).await })
    };
    wait_until("the consumer waits", async || {
        let consumers = test_vhost.rows("list_consumers", &["queue_name"]);
        consumers.concat().contains(&"one".to_owned())
    })
    .await;
    send(&broker, &queues[0], &["late"]).await;
    let taken = within("receive", waiting).await.unwrap().unwrap();
    assert_eq!(ids(&taken), ["late"]);
    wait_until("nothing is pushed any more", async || {
        let consumers = test_vhost.rows("list_consumers", &["queue_name"]);
        // A quorum queue also lists consumers that hold messages.
        !consumers.concat().contains(&"one".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn changed_prefetch_applies_on_next_receive() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &numbers(0..50)).await;
    let consumer = consumer(&broker, &[&queue], 4).await;
    let mut taken = receive(&*consumer, 1).await;
    for prefetch in [20, 2, 0, 6] {
        consumer.set_prefetch(prefetch);
        taken.extend(receive(&*consumer, 1).await);
        let prefetches = test_vhost.consumers(&["queue_name", "prefetch_count"]);
        match prefetch {
            0 => assert!(prefetches.is_empty(), "{prefetches:?}"),
            prefetch => assert_eq!(prefetches, [["q", &prefetch.to_string()]]),
        }
    }
    while taken.len() < 50 {
        ack_all(&*consumer, &taken).await;
        taken.extend(receive(&*consumer, 1).await);
    }
    assert_eq!(ids(&taken), numbers(0..50));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn broker_uses_two_connections() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let events = celery_runtime::Exchange::topic("celeryev");
    let first = consumer(&broker, &[&queue], 4).await;
    let second = consumer(&broker, &[&queue], 0).await;
    let _events = within(
        "subscribe",
        broker.subscribe(&Mailbox::of(events.clone(), "#")),
    )
    .await
    .unwrap();
    let replies = Mailbox::named("replies", Duration::from_secs(60));
    let _replies = within("reply queue", broker.subscribe(&replies))
        .await
        .unwrap();
    send(&broker, &queue, &numbers(0..50)).await;
    within(
        "broadcast",
        broker.broadcast(&events, "a", &crate::support::task("e")),
    )
    .await
    .unwrap();
    let taken = receive(&*first, 1).await.remove(0);
    let later = std::time::SystemTime::now() + Duration::from_secs(1);
    settle(&*first, &[Settlement::Defer(taken.tag, later)]).await;
    let taken = receive_one(&*second).await;
    settle(&*second, &[Settlement::Requeue(taken.tag, QueueEnd::Tail)]).await;

    let mut connections = test_vhost.connections(&["client_properties"]);
    connections.sort();

    assert_eq!(connections.len(), 2, "{connections:?}");
    for (row, name) in connections
        .iter()
        .zip(["celery (consumes)", "celery (publishes)"])
    {
        assert!(row[0].contains(name), "{row:?}");
    }
    within("close", broker.close()).await;
    wait_until("the connections are closed", async || {
        test_vhost.connections(&["name"]).is_empty()
    })
    .await;
    let error = broker.depth(&queue).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Closed, "{error}");
    let options = ConsumeOptions::new(vec![queue], 1);
    let error = broker.consume(&options).await.unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Closed, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn interrupted_consumer_requeues_prefetched_messages() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let queues = [Queue::new("one"), Queue::new("two").quorum()];
    for queue in &queues {
        send(&broker, queue, &numbers(0..10)).await;
    }
    let first = consumer(&broker, &[&queues[0], &queues[1]], 10).await;
    let kept = receive(&*first, 4).await;
    wait_until("everything was pushed", async || {
        queues
            .iter()
            .all(|queue| test_vhost.counts(&queue.name) == (0, 10))
    })
    .await;

    first.interrupt();

    let second = consumer(&broker, &[&queues[0], &queues[1]], 20).await;
    let taken = receive(&*second, 16).await;
    let kept_ids: BTreeSet<_> = kept
        .iter()
        .map(|one| (one.queue.to_string(), id(one)))
        .collect();
    assert!(
        taken
            .iter()
            .all(|one| !kept_ids.contains(&(one.queue.to_string(), id(one))))
    );
    // The interrupted consumer can still settle its deliveries.
    assert!(first.receive(5).await.unwrap().is_empty());
    ack_all(&*first, &kept).await;
    ack_all(&*second, &taken).await;
    for queue in &queues {
        wait_until("nothing is left", async || {
            test_vhost.counts(&queue.name) == (0, 0)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn interrupt_ends_pending_receive() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    for prefetch in [0, 4] {
        let consumer = consumer(&broker, &[&queue], prefetch).await;
        let waiting = {
            let consumer = Arc::clone(&consumer);
            tokio::spawn(async move { consumer.receive(1).await })
        };
        wait_until("the consumer waits", async || {
            !test_vhost
                .rows("list_consumers", &["queue_name"])
                .is_empty()
        })
        .await;
        consumer.interrupt();
        let taken = within("the interrupt", waiting).await.unwrap().unwrap();
        assert!(taken.is_empty());
        wait_until("nothing is pushed any more", async || {
            test_vhost
                .rows("list_consumers", &["queue_name"])
                .is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn closed_or_dropped_consumer_requeues_unsettled_messages() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &numbers(0..10)).await;
    for is_closed in [true, false] {
        for prefetch in [0, 5] {
            let consumer = consumer(&broker, &[&queue], prefetch).await;
            let taken = receive(&*consumer, 3).await;
            assert_eq!(taken.len(), 3);
            if is_closed {
                within("close", consumer.close()).await.unwrap();
                // A settlement after the close has no effect.
                let late = [Settlement::Ack(taken[0].tag.clone())];
                let _ = within("settle", consumer.settle(&late)).await;
            }
            drop(consumer);
            wait_until("all messages are requeued", async || {
                test_vhost.counts("q") == (10, 0)
            })
            .await;
        }
    }
    wait_until("no channel is left", async || {
        test_vhost
            .channels(&["number", "consumer_count"])
            .iter()
            .all(|row| row[1] == "0")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn requeued_delivery_reports_redelivery_and_count() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let (classic, quorum) = (Queue::new("classic"), Queue::new("quorum").quorum());
    for (queue, counts) in [(&classic, [None; 3]), (&quorum, [None, Some(1), Some(2)])] {
        send(&broker, queue, &["1"]).await;
        let consumer = consumer(&broker, &[queue], 1).await;
        for (round, count) in counts.into_iter().enumerate() {
            let delivery = receive_one(&*consumer).await;
            assert_eq!(delivery.redelivered, round > 0, "{} {round}", queue.name);
            assert_eq!(delivery.delivery_count, count, "{} {round}", queue.name);
            let requeue = Settlement::Requeue(delivery.tag, QueueEnd::Head);
            settle(&*consumer, &[requeue]).await;
        }
        // A message published again has no count, but the header of a redelivery.
        let delivery = receive_one(&*consumer).await;
        settle(
            &*consumer,
            &[Settlement::Requeue(delivery.tag, QueueEnd::Tail)],
        )
        .await;
        let delivery = receive_one(&*consumer).await;
        assert!(delivery.redelivered && delivery.delivery_count.is_none());
        ack_all(&*consumer, &[delivery]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deleted_queue_ends_its_consumer() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queues = [Queue::new("one"), Queue::new("two")];
    for prefetch in [0, 4] {
        let first = consumer(&broker, &[&queues[0], &queues[1]], prefetch).await;
        let waiting = {
            let first = Arc::clone(&first);
            tokio::spawn(async move { first.receive(1).await })
        };
        wait_until("the consumer waits", async || {
            !test_vhost
                .rows("list_consumers", &["queue_name"])
                .is_empty()
        })
        .await;
        raw.delete("one").await;
        let error = within("the consumer ends", waiting)
            .await
            .unwrap()
            .unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(error.to_string().contains("queue one"), "{error}");
        drop(first);
        let second = consumer(&broker, &[&queues[0], &queues[1]], prefetch).await;
        publish_one(&broker, to("one", "1")).await.unwrap();
        ack_all(&*second, &receive(&*second, 1).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn missing_queue_cannot_be_consumed() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let options = ConsumeOptions::new(vec!["nowhere".into()], 4);
    let error = within("consume", broker.consume(&options))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn tags_of_another_consumer_are_ignored() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    send(&broker, &queue, &numbers(0..4)).await;
    let old = consumer(&broker, &[&queue], 4).await;
    let stale = receive(&*old, 4).await;
    within("close", old.close()).await.unwrap();
    let new = consumer(&broker, &[&queue], 4).await;
    let fresh = receive(&*new, 4).await;
    assert_ne!(stale[0].tag, fresh[0].tag);
    let now = std::time::SystemTime::now();
    settle(
        &*new,
        &[
            Settlement::Ack(stale[0].tag.clone()),
            Settlement::Reject(stale[1].tag.clone()),
            Settlement::Requeue(stale[2].tag.clone(), QueueEnd::Tail),
            Settlement::Defer(stale[3].tag.clone(), now + Duration::from_secs(60)),
        ],
    )
    .await;
    drop(old);
    assert_eq!(test_vhost.counts("q"), (0, 4));
    ack_all(&*new, &fresh).await;
    wait_until("all are acknowledged", async || {
        test_vhost.counts("q") == (0, 0)
    })
    .await;
}
