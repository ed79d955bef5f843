//! Cases about receiving deliveries.

use std::sync::Arc;

use super::{
    BrokerSetup, consumer, consumer_with_prefetch, id, ids, message, publish, settle, take,
};
use crate::boundary::{Publication, Settlement};
use crate::conformance::{unique_name, wait_for};

/// Prefetched messages arrive once and in the order of their queue, for any size
/// of `receive` and of the settled batches.
pub async fn prefetched_messages_arrive_once_in_order(setup: &dyn BrokerSetup) {
    const EACH: usize = 250;
    let broker = setup.broker();
    let queues = [
        setup.queue(&unique_name("one")),
        setup.queue(&unique_name("two")),
    ];
    let consumer = consumer_with_prefetch(&*broker, &[&queues[0], &queues[1]], 100).await;
    let numbers: Vec<_> = (0..EACH).map(|n| n.to_string()).collect();
    let sent: Vec<_> = numbers.iter().map(String::as_str).collect();
    for queue in &queues {
        publish(&*broker, queue, &sent).await;
    }
    let mut arrived = [Vec::new(), Vec::new()];
    for size in (1..=20).cycle() {
        let left = 2 * EACH - arrived[0].len() - arrived[1].len();
        if left == 0 {
            break;
        }
        let taken = take(&*consumer, size.min(left)).await;
        for delivery in &taken {
            assert!(!delivery.redelivered, "{}", id(delivery));
            arrived[usize::from(*delivery.queue == *queues[1].name)].push(id(delivery));
        }
        let acks = taken.into_iter().map(|one| Settlement::Ack(one.tag));
        settle(&*consumer, &acks.collect::<Vec<_>>()).await;
    }
    assert_eq!(arrived, [sent.as_slice(), sent.as_slice()]);
    wait_for("close", consumer.close()).await.expect("closed");
    for queue in &queues {
        assert_eq!(
            wait_for("depth", broker.depth(queue)).await.expect("depth"),
            0
        );
    }
}

/// The prefetch may change at any time; every message still arrives.
pub async fn changed_prefetch_loses_no_message(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("change"));
    let consumer = consumer(&*broker, &[&queue]).await;
    let numbers: Vec<_> = (100..220).map(|n| n.to_string()).collect();
    let sent: Vec<_> = numbers.iter().map(String::as_str).collect();
    publish(&*broker, &queue, &sent).await;
    let mut arrived = Vec::new();
    for prefetch in [0, 30, 1, 100, 0, 5] {
        consumer.set_prefetch(prefetch);
        // Never more unsettled than the prefetch lets through.
        let step = match usize::from(prefetch) {
            0 => 20,
            prefetch => prefetch.min(20),
        };
        for _ in 0..20 / step {
            let taken = take(&*consumer, step).await;
            arrived.extend(ids(&taken));
            let acks = taken.into_iter().map(|one| Settlement::Ack(one.tag));
            settle(&*consumer, &acks.collect::<Vec<_>>()).await;
        }
    }
    arrived.sort_unstable();
    assert_eq!(arrived, sent);
}

/// `receive(max)` returns at most `max` deliveries.
pub async fn receive_returns_at_most_max(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("max"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    assert_eq!(
        wait_for("receive", consumer.receive(1))
            .await
            .expect("one")
            .len(),
        1
    );
    assert!(
        wait_for("receive", consumer.receive(2))
            .await
            .expect("two")
            .len()
            <= 2
    );
}

/// Waiting messages are delivered by priority, in the order of
/// [`BrokerSetup::delivered_priorities`].
pub async fn urgent_messages_are_delivered_first(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.priority_queue(&unique_name("priority"));
    wait_for("declare", broker.declare(&queue))
        .await
        .expect("declared");
    for priority in [9, 0, 3, 6] {
        let mut one = message(&priority.to_string());
        one.properties.priority = Some(priority);
        let batch = [Publication::to_queue(one, queue.name.as_str())];
        wait_for("publish", broker.publish(&batch))
            .await
            .remove(0)
            .expect("published");
    }
    let consumer = consumer(&*broker, &[&queue]).await;
    let expected = setup
        .delivered_priorities()
        .map(|priority| priority.to_string());
    assert_eq!(ids(&take(&*consumer, 4).await), expected);
}

/// A consumer of several queues takes from each of them, also while one is full.
pub async fn full_queue_does_not_starve_another(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let (full, small) = (
        setup.queue(&unique_name("full")),
        setup.queue(&unique_name("small")),
    );
    let many: Vec<_> = (0..200).map(|n| n.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    wait_for("declare", broker.declare(&full))
        .await
        .expect("declared");
    wait_for("declare", broker.declare(&small))
        .await
        .expect("declared");
    publish(&*broker, &full, &many).await;
    publish(&*broker, &small, &["small-1", "small-2"]).await;
    let consumer = consumer(&*broker, &[&full, &small]).await;
    let first = ids(&take(&*consumer, 20).await);
    assert!(first.contains(&"small-2".to_owned()), "{first:?}");
}

/// `interrupt` makes the pending `receive`, and the next one, return nothing.
pub async fn interrupt_ends_pending_receive(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("interrupt"));
    let consumer = consumer(&*broker, &[&queue]).await;
    let pending = Arc::clone(&consumer);
    let pending = tokio::spawn(async move { pending.receive(1).await });
    tokio::task::yield_now().await;
    consumer.interrupt();
    let received = wait_for("interrupted receive", pending)
        .await
        .expect("no panic");
    assert!(received.expect("no error").is_empty());
    assert!(
        wait_for("receive", consumer.receive(1))
            .await
            .expect("no error")
            .is_empty()
    );
}

/// A pending `receive` returns when a message is published.
pub async fn published_message_wakes_pending_receive(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("wake"));
    let consumer = consumer(&*broker, &[&queue]).await;
    for round in ["a", "b", "c"] {
        let pending = Arc::clone(&consumer);
        let pending = tokio::spawn(async move { pending.receive(1).await });
        tokio::task::yield_now().await;
        publish(&*broker, &queue, &[round]).await;
        let received = wait_for("woken receive", pending).await.expect("no panic");
        assert_eq!(ids(&received.expect("no error")), [round]);
    }
}
