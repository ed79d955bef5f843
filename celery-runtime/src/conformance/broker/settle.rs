//! Cases about settling deliveries.

use std::time::{Duration, SystemTime};

use super::{BrokerSetup, consumer, id, ids, publish, settle, take};
use crate::boundary::{Content, QueueEnd, Settled, Settlement};
use crate::conformance::{unique_name, wait_for};

/// Acknowledged and rejected messages are not delivered again.
pub async fn settled_messages_are_not_redelivered(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("ack"));
    let first = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b"]).await;
    let taken = take(&*first, 2).await;
    let batch = [
        Settlement::Ack(taken[0].tag.clone()),
        Settlement::Reject(taken[1].tag.clone()),
    ];
    settle(&*first, &batch).await;
    wait_for("close", first.close()).await.expect("closed");
    drop(first);
    let second = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["c"]).await;
    assert_eq!(ids(&take(&*second, 1).await), ["c"]);
    assert_eq!(
        wait_for("depth", broker.depth(&queue))
            .await
            .expect("depth"),
        0
    );
}

/// The first settlement of a delivery counts; later ones answer
/// [`Settled::Gone`] and change nothing.
pub async fn repeated_settlement_answers_gone(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("twice"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a"]).await;
    let taken = take(&*consumer, 1).await;
    let ack = [Settlement::Ack(taken[0].tag.clone())];
    assert_ne!(settle(&*consumer, &ack).await, [Settled::Gone]);
    assert_eq!(settle(&*consumer, &ack).await, [Settled::Gone]);
    let requeue = [Settlement::Requeue(taken[0].tag.clone(), QueueEnd::Head)];
    assert_eq!(settle(&*consumer, &requeue).await, [Settled::Gone]);
    publish(&*broker, &queue, &["b"]).await;
    assert_eq!(ids(&take(&*consumer, 1).await), ["b"]);
}

/// A message that was requeued at the head is delivered next, flagged as
/// redelivered.
pub async fn requeue_at_head_is_delivered_next(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("head"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    let taken = take(&*consumer, 2).await;
    let batch = [
        Settlement::Requeue(taken[1].tag.clone(), QueueEnd::Head),
        Settlement::Requeue(taken[0].tag.clone(), QueueEnd::Head),
    ];
    settle(&*consumer, &batch).await;
    let mut again = take(&*consumer, 3).await;
    if !setup.requeues_at_once() {
        again.sort_by_key(id);
    }
    assert_eq!(ids(&again), ["a", "b", "c"]);
    assert!(again[0].redelivered && again[1].redelivered && !again[2].redelivered);
}

/// A message that was requeued at the tail is delivered after all that wait.
pub async fn requeue_at_tail_is_delivered_last(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("tail"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    let taken = take(&*consumer, 1).await;
    settle(
        &*consumer,
        &[Settlement::Requeue(taken[0].tag.clone(), QueueEnd::Tail)],
    )
    .await;
    assert_eq!(ids(&take(&*consumer, 3).await), ["b", "c", "a"]);
}

/// A deferred message is delivered when it is due, and other messages before it.
pub async fn deferred_message_is_delivered_when_due(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("defer"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["later", "now"]).await;
    let taken = take(&*consumer, 1).await;
    let due = SystemTime::now() + Duration::from_millis(700);
    settle(&*consumer, &[Settlement::Defer(taken[0].tag.clone(), due)]).await;
    assert_eq!(ids(&take(&*consumer, 1).await), ["now"]);
    assert!(
        SystemTime::now() < due,
        "the message that was not deferred arrived late"
    );
    assert_eq!(ids(&take(&*consumer, 1).await), ["later"]);
    assert!(
        SystemTime::now() >= due,
        "the deferred message arrived early"
    );
}

/// `close` returns deferred messages to their queue, for other consumers.
pub async fn close_returns_deferred_messages(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("deferred"));
    let first = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a"]).await;
    let taken = take(&*first, 1).await;
    let due = SystemTime::now() + Duration::from_millis(500);
    settle(&*first, &[Settlement::Defer(taken[0].tag.clone(), due)]).await;
    wait_for("close", first.close()).await.expect("closed");
    drop(first);
    let second = consumer(&*broker, &[&queue]).await;
    assert_eq!(ids(&take(&*second, 1).await), ["a"]);
}

/// A broker that [confirms settlements] answers each kind with
/// [`Settled::Done`].
///
/// [confirms settlements]: crate::BrokerCapabilities::confirms_settlements
pub async fn confirmed_settlement_answers_done(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    if !broker.capabilities().confirms_settlements {
        return;
    }
    let queue = setup.queue(&unique_name("confirmed"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c", "d", "e"]).await;
    let taken = take(&*consumer, 5).await;
    let [ack, reject, head, tail, defer] = &taken[..] else {
        panic!("five deliveries");
    };
    let due = SystemTime::now() + Duration::from_secs(60);
    let batch = [
        Settlement::Ack(ack.tag.clone()),
        Settlement::Reject(reject.tag.clone()),
        Settlement::Requeue(head.tag.clone(), QueueEnd::Head),
        Settlement::Requeue(tail.tag.clone(), QueueEnd::Tail),
        Settlement::Defer(defer.tag.clone(), due),
    ];
    assert_eq!(settle(&*consumer, &batch).await, [Settled::Done; 5]);
}

/// The first settlement of a delivery counts, also within one batch.
pub async fn repetition_within_batch_answers_gone(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("repeated"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b"]).await;
    let taken = take(&*consumer, 2).await;
    let (a, b) = (&taken[0].tag, &taken[1].tag);
    let later = SystemTime::now() + Duration::from_millis(500);
    let batch = [
        Settlement::Ack(a.clone()),
        Settlement::Reject(b.clone()),
        Settlement::Ack(a.clone()),
        Settlement::Requeue(b.clone(), QueueEnd::Head),
        Settlement::Defer(a.clone(), later),
        Settlement::Reject(b.clone()),
    ];
    let settled = settle(&*consumer, &batch).await;
    assert!(!settled[..2].contains(&Settled::Gone), "{settled:?}");
    assert_eq!(settled[2..], [Settled::Gone; 4]);
    publish(&*broker, &queue, &["c"]).await;
    assert_eq!(ids(&take(&*consumer, 1).await), ["c"]);
}

/// With a broker that [settles after a reconnect], a delivery of a consumer that
/// is gone is settled by another consumer of the same broker.
///
/// [settles after a reconnect]: crate::BrokerCapabilities::settles_after_reconnect
pub async fn settlement_after_reconnect_settles_old_delivery(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    if !broker.capabilities().settles_after_reconnect {
        return;
    }
    let queue = setup.queue(&unique_name("reconnect"));
    let old = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b"]).await;
    let taken = take(&*old, 2).await;
    drop(old);
    let new = consumer(&*broker, &[&queue]).await;
    let batch = [
        Settlement::Ack(taken[0].tag.clone()),
        Settlement::Requeue(taken[1].tag.clone(), QueueEnd::Head),
    ];
    assert!(!settle(&*new, &batch).await.contains(&Settled::Gone));
    assert_eq!(settle(&*new, &batch).await, [Settled::Gone; 2]);
    publish(&*broker, &queue, &["c"]).await;
    assert_eq!(ids(&take(&*new, 2).await), ["b", "c"]);
}

/// A closed consumer settles nothing: the answer is [`Settled::Gone`] or an
/// error.
pub async fn settlement_after_close_is_not_carried_out(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("closed"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a"]).await;
    let taken = take(&*consumer, 1).await;
    wait_for("close", consumer.close()).await.expect("closed");
    let ack = [Settlement::Ack(taken[0].tag.clone())];
    let settled = wait_for("settle", consumer.settle(&ack)).await;
    assert!(
        matches!(settled[..], [Ok(Settled::Gone) | Err(_)]),
        "{settled:?}"
    );
}

/// A broker that [counts deliveries] counts each requeue, on the queues for which
/// [`BrokerSetup::counts_deliveries`] says so.
///
/// [counts deliveries]: crate::BrokerCapabilities::counts_deliveries
pub async fn requeued_delivery_is_counted(setup: &dyn BrokerSetup) {
    if !setup.counts_deliveries() {
        return;
    }
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("count"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a"]).await;
    for expected in 0..3 {
        let delivery = take(&*consumer, 1).await.remove(0);
        assert_eq!(delivery.delivery_count.unwrap_or(0), expected);
        assert_eq!(delivery.redelivered, expected > 0);
        let requeue = Settlement::Requeue(delivery.tag, QueueEnd::Head);
        settle(&*consumer, &[requeue]).await;
    }
}

/// With [`restores_acknowledged`](crate::BrokerCapabilities::restores_acknowledged), a
/// restored message is at the head of its queue once, whether its acknowledgement was
/// carried out or not.
pub async fn restored_message_is_delivered_once(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    if !broker.capabilities().restores_acknowledged {
        return;
    }
    let queue = setup.queue(&unique_name("restore"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    let taken = take(&*consumer, 2).await;
    let ack = [Settlement::Ack(taken[0].tag.clone())];
    settle(&*consumer, &ack).await;
    for delivery in taken.iter().rev() {
        let Content::Message(message) = &delivery.content else {
            panic!("delivered as malformed");
        };
        let restored = consumer.restore(&delivery.tag, &queue.name, message);
        wait_for("restore", restored).await.expect("restored");
    }
    // A late acknowledgement finds nothing.
    let late = [Settlement::Ack(taken[1].tag.clone())];
    assert_eq!(settle(&*consumer, &late).await, [Settled::Gone]);
    let again = take(&*consumer, 3).await;
    assert_eq!(ids(&again), ["a", "b", "c"]);
    assert!(again[0].redelivered && again[1].redelivered && !again[2].redelivered);
    let depth = wait_for("depth", broker.depth(&queue)).await;
    assert_eq!(depth.expect("depth"), 0);
}
