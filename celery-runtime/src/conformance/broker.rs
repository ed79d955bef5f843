//! The contract of [`Broker`], [`Consumer`] and [`Subscription`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use celery_protocol::{Headers, Message, Properties, TaskHeaders, Value};

use crate::boundary::{
    Binding, Broker, ConsumeOptions, Consumer, Content, Delivery, Exchange, Mailbox, PriorityOrder,
    Publication, Queue, QueueEnd, Settled, Settlement, Subscription,
};
use crate::conformance::{fresh, soon};

/// A broker to test, and what is particular about it.
pub trait BrokerSetup: Send + Sync {
    /// A new client of the same server.
    fn broker(&self) -> Arc<dyn Broker>;

    /// A queue of the kind to test, called `name`; every case declares what it
    /// gets from here. A plain one by default.
    fn queue(&self, name: &str) -> Queue {
        Queue::new(name)
    }

    /// The same with priorities 0 to 9, where the broker must be told.
    fn priority_queue(&self, name: &str) -> Queue {
        self.queue(name)
    }

    /// Whether a message that was given back to the head of its queue is there
    /// for the very next fetch; a replicated queue may take a moment for it.
    fn requeues_at_once(&self) -> bool {
        true
    }

    /// The order of priorities in the queues of this setup; that of the broker
    /// by default.
    fn priorities(&self) -> PriorityOrder {
        self.broker().capabilities().priorities
    }
}

/// One test for each case of the suite.
///
/// ```ignore
/// celery_runtime::broker_conformance!(ignore = "needs a server", MySetup::start());
/// ```
#[macro_export]
macro_rules! broker_conformance {
    (@cases $attributes:tt $setup:expr) => {
        $crate::__conformance_tests!(broker $attributes $setup,
            messages_arrive_whole_and_in_order
            prefetched_messages_arrive_once_and_in_order
            changing_the_prefetch_loses_nothing
            a_publication_brings_its_queue_along
            a_publication_brings_its_bindings_along
            a_batch_has_an_answer_for_each_message
            no_more_than_asked_for_is_received
            acknowledged_and_rejected_messages_are_gone
            settling_twice_is_harmless
            requeued_at_the_head_comes_next
            requeued_at_the_tail_comes_last
            parked_messages_come_when_due
            closing_returns_what_was_parked
            urgent_messages_go_first
            a_full_queue_does_not_starve_another
            interrupting_ends_a_receive
            a_message_wakes_a_waiting_consumer
            exchanges_route_by_their_kind
            nobody_bound_is_an_error
            declaring_twice_does_nothing
            depth_and_purge
            broadcasts_reach_all_subscribers
            replies_arrive_and_are_private
            a_direct_mailbox_gets_only_its_key
            a_reply_to_nobody_leaves_nothing
        );
    };
    (ignore = $reason:literal, $setup:expr) => {
        $crate::broker_conformance!(@cases [#[ignore = $reason]] $setup);
    };
    ($setup:expr) => {
        $crate::broker_conformance!(@cases [] $setup);
    };
}

fn message(id: &str) -> Message {
    let mut headers = TaskHeaders::new("tasks.add".to_owned(), id.to_owned());
    headers.argsrepr = Some("(2, 3)".into());
    let mut properties = Properties::default();
    properties.correlation_id = Some(id.to_owned());
    properties.priority = Some(0);
    Message::new(
        Headers::from_task(headers),
        properties,
        Bytes::from_static(b"[[2, 3], {}, {}]"),
    )
}

fn id(delivery: &Delivery) -> String {
    match &delivery.content {
        Content::Message(message) => {
            let headers = message.headers.task().expect("readable headers");
            headers.expect("a task").id.into_owned()
        }
        Content::Malformed { error, .. } => panic!("delivered as malformed: {error}"),
    }
}

async fn publish(broker: &dyn Broker, queue: &Queue, ids: &[&str]) {
    let batch: Vec<_> = ids
        .iter()
        .map(|id| Publication::to_queue(message(id), queue.name.as_str()))
        .collect();
    for answer in soon("publish", broker.publish(&batch)).await {
        answer.expect("the broker takes the message");
    }
}

/// A consumer that holds no more than it was asked for, so that counts of what
/// waits are exact.
async fn consumer(broker: &dyn Broker, queues: &[&Queue]) -> Arc<dyn Consumer> {
    consumer_ahead(broker, queues, 0).await
}

/// A consumer with up to `prefetch` deliveries ahead.
async fn consumer_ahead(
    broker: &dyn Broker,
    queues: &[&Queue],
    prefetch: u16,
) -> Arc<dyn Consumer> {
    for queue in queues {
        soon("declare", broker.declare(queue))
            .await
            .expect("declared");
    }
    let queues = queues.iter().map(|queue| (*queue).clone()).collect();
    let options = ConsumeOptions::new(queues, prefetch);
    soon("consume", broker.consume(&options))
        .await
        .expect("consuming")
}

/// The next `count` deliveries.
async fn take(consumer: &dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let more = soon("receive", consumer.receive(count - taken.len())).await;
        let more = more.expect("received");
        assert!(!more.is_empty(), "an empty answer without an interrupt");
        taken.extend(more);
    }
    taken
}

async fn settle(consumer: &dyn Consumer, batch: &[Settlement]) -> Vec<Settled> {
    let settled = soon("settle", consumer.settle(batch)).await;
    assert_eq!(settled.len(), batch.len(), "one answer for each settlement");
    settled
        .into_iter()
        .map(|one| one.expect("settled"))
        .collect()
}

fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(id).collect()
}

/// What is published arrives, in order, with all of its parts.
pub async fn messages_arrive_whole_and_in_order(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("whole"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    let deliveries = take(&*consumer, 3).await;
    assert_eq!(ids(&deliveries), ["a", "b", "c"]);
    let Content::Message(arrived) = &deliveries[0].content else {
        panic!("malformed");
    };
    let sent = message("a");
    assert_eq!(by_name(&arrived.headers), by_name(&sent.headers));
    assert_eq!(arrived.body, sent.body);
    assert_eq!(arrived.properties.correlation_id.as_deref(), Some("a"));
    assert_eq!(arrived.properties.content_type, "application/json");
    assert_eq!(arrived.properties.delivery_info.routing_key, queue.name);
    assert!(!deliveries[0].redelivered);
    assert_eq!(*deliveries[0].queue, *queue.name);
}

/// Headers without the order in which they are written, which AMQP does not keep.
fn by_name(headers: &Headers) -> BTreeMap<String, Value> {
    let map = headers.to_map().expect("readable headers");
    let name = |key: &Value| key.as_str().unwrap_or_default().to_owned();
    map.iter()
        .map(|(key, value)| (name(key), value.clone()))
        .collect()
}

/// What is pushed ahead comes once and in its queue's order, however it is
/// received and settled.
pub async fn prefetched_messages_arrive_once_and_in_order(setup: &dyn BrokerSetup) {
    const EACH: usize = 250;
    let broker = setup.broker();
    let queues = [setup.queue(&fresh("one")), setup.queue(&fresh("two"))];
    let consumer = consumer_ahead(&*broker, &[&queues[0], &queues[1]], 100).await;
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
    soon("close", consumer.close()).await.expect("closed");
    for queue in &queues {
        assert_eq!(soon("depth", broker.depth(queue)).await.expect("depth"), 0);
    }
}

/// More or less may be pushed ahead at any time; everything still arrives.
pub async fn changing_the_prefetch_loses_nothing(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("change"));
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

/// A message for a queue that nobody declared is not lost.
pub async fn a_publication_brings_its_queue_along(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = Arc::new(setup.queue(&fresh("undeclared")));
    let batch = ["a", "b"].map(|id| {
        Publication::to_queue(message(id), queue.name.as_str()).declare_queue(Arc::clone(&queue))
    });
    for answer in soon("publish", broker.publish(&batch)).await {
        answer.expect("published");
    }
    assert_eq!(soon("depth", broker.depth(&queue)).await.expect("depth"), 2);
    let consumer = consumer(&*broker, &[&queue]).await;
    assert_eq!(ids(&take(&*consumer, 2).await), ["a", "b"]);
}

/// Neither is one for an exchange to which nothing was bound before.
pub async fn a_publication_brings_its_bindings_along(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let (topic, direct) = (fresh("topic"), fresh("direct"));
    let queue = setup
        .queue(&fresh("unbound"))
        .bound_to(Exchange::topic(&topic), "a.*")
        .also_bound_to(Binding::new(Exchange::direct(&direct), "key"));
    let queue = Arc::new(queue);
    for (id, exchange, key) in [("1", &topic, "a.b"), ("2", &direct, "key")] {
        let publication = Publication::to_exchange(message(id), exchange.as_str(), key);
        let batch = [publication.declare_queue(Arc::clone(&queue))];
        soon("publish", broker.publish(&batch))
            .await
            .remove(0)
            .expect("published");
    }
    let consumer = consumer(&*broker, &[&queue]).await;
    assert_eq!(ids(&take(&*consumer, 2).await), ["1", "2"]);
}

/// A batch is answered message by message.
pub async fn a_batch_has_an_answer_for_each_message(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("batch"));
    soon("declare", broker.declare(&queue))
        .await
        .expect("declared");
    let batch: Vec<_> = (0..500)
        .map(|n| Publication::to_queue(message(&n.to_string()), queue.name.as_str()))
        .collect();
    let answers = soon("publish", broker.publish(&batch)).await;
    assert_eq!(answers.len(), 500);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(
        soon("depth", broker.depth(&queue)).await.expect("depth"),
        500
    );
    assert!(soon("publish", broker.publish(&[])).await.is_empty());
}

/// `receive(max)` gives at most `max`.
pub async fn no_more_than_asked_for_is_received(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("max"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    assert_eq!(
        soon("receive", consumer.receive(1))
            .await
            .expect("one")
            .len(),
        1
    );
    assert!(
        soon("receive", consumer.receive(2))
            .await
            .expect("two")
            .len()
            <= 2
    );
}

/// Settled deliveries do not come back.
pub async fn acknowledged_and_rejected_messages_are_gone(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("ack"));
    let first = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b"]).await;
    let taken = take(&*first, 2).await;
    let batch = [
        Settlement::Ack(taken[0].tag.clone()),
        Settlement::Reject(taken[1].tag.clone()),
    ];
    settle(&*first, &batch).await;
    soon("close", first.close()).await.expect("closed");
    drop(first);
    let second = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["c"]).await;
    assert_eq!(ids(&take(&*second, 1).await), ["c"]);
    assert_eq!(soon("depth", broker.depth(&queue)).await.expect("depth"), 0);
}

/// The first settlement counts; later ones do nothing.
pub async fn settling_twice_is_harmless(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("twice"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a"]).await;
    let taken = take(&*consumer, 1).await;
    let ack = [Settlement::Ack(taken[0].tag.clone())];
    let expected = if broker.capabilities().confirms_settlements {
        Settled::Done
    } else {
        Settled::Written
    };
    assert_eq!(settle(&*consumer, &ack).await, [expected]);
    assert_eq!(settle(&*consumer, &ack).await, [Settled::Gone]);
    let requeue = [Settlement::Requeue(taken[0].tag.clone(), QueueEnd::Head)];
    assert_eq!(settle(&*consumer, &requeue).await, [Settled::Gone]);
    publish(&*broker, &queue, &["b"]).await;
    assert_eq!(ids(&take(&*consumer, 1).await), ["b"]);
}

/// Requeued at the head it is the next one, flagged.
pub async fn requeued_at_the_head_comes_next(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("head"));
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

/// Requeued at the tail it waits behind the others.
pub async fn requeued_at_the_tail_comes_last(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("tail"));
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

/// Parked messages are out of the way until their time.
pub async fn parked_messages_come_when_due(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("park"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["later", "now"]).await;
    let taken = take(&*consumer, 1).await;
    let due = SystemTime::now() + Duration::from_millis(700);
    settle(&*consumer, &[Settlement::Defer(taken[0].tag.clone(), due)]).await;
    assert_eq!(ids(&take(&*consumer, 1).await), ["now"]);
    assert!(
        SystemTime::now() < due,
        "the message that was not parked came late"
    );
    assert_eq!(ids(&take(&*consumer, 1).await), ["later"]);
    assert!(SystemTime::now() >= due, "it came before its time");
}

/// A consumer that closes leaves what it parked to the others.
pub async fn closing_returns_what_was_parked(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("parked"));
    let first = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a"]).await;
    let taken = take(&*first, 1).await;
    let due = SystemTime::now() + Duration::from_millis(500);
    settle(&*first, &[Settlement::Defer(taken[0].tag.clone(), due)]).await;
    soon("close", first.close()).await.expect("closed");
    drop(first);
    let second = consumer(&*broker, &[&queue]).await;
    assert_eq!(ids(&take(&*second, 1).await), ["a"]);
}

/// Priorities order what waits, within one queue and over several.
pub async fn urgent_messages_go_first(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.priority_queue(&fresh("priority"));
    soon("declare", broker.declare(&queue))
        .await
        .expect("declared");
    for priority in [9, 0, 3, 6] {
        let mut one = message(&priority.to_string());
        one.properties.priority = Some(priority);
        let batch = [Publication::to_queue(one, queue.name.as_str())];
        soon("publish", broker.publish(&batch))
            .await
            .remove(0)
            .expect("published");
    }
    let consumer = consumer(&*broker, &[&queue]).await;
    let expected = match setup.priorities() {
        PriorityOrder::LowestFirst => ["0", "3", "6", "9"],
        PriorityOrder::HighestFirst => ["9", "6", "3", "0"],
        PriorityOrder::None => ["9", "0", "3", "6"],
    };
    assert_eq!(ids(&take(&*consumer, 4).await), expected);
}

/// Queues take turns.
pub async fn a_full_queue_does_not_starve_another(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let (full, small) = (setup.queue(&fresh("full")), setup.queue(&fresh("small")));
    let many: Vec<_> = (0..200).map(|n| n.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    soon("declare", broker.declare(&full))
        .await
        .expect("declared");
    soon("declare", broker.declare(&small))
        .await
        .expect("declared");
    publish(&*broker, &full, &many).await;
    publish(&*broker, &small, &["small-1", "small-2"]).await;
    let consumer = consumer(&*broker, &[&full, &small]).await;
    let first = ids(&take(&*consumer, 20).await);
    assert!(first.contains(&"small-2".to_owned()), "{first:?}");
}

/// `interrupt` makes a pending receive return, empty.
pub async fn interrupting_ends_a_receive(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("interrupt"));
    let consumer = consumer(&*broker, &[&queue]).await;
    let pending = Arc::clone(&consumer);
    let pending = tokio::spawn(async move { pending.receive(1).await });
    tokio::task::yield_now().await;
    consumer.interrupt();
    let received = soon("interrupted receive", pending)
        .await
        .expect("no panic");
    assert!(received.expect("no error").is_empty());
    assert!(
        soon("receive", consumer.receive(1))
            .await
            .expect("no error")
            .is_empty()
    );
}

/// A consumer that waits is woken by a message.
pub async fn a_message_wakes_a_waiting_consumer(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("wake"));
    let consumer = consumer(&*broker, &[&queue]).await;
    for round in ["a", "b", "c"] {
        let pending = Arc::clone(&consumer);
        let pending = tokio::spawn(async move { pending.receive(1).await });
        tokio::task::yield_now().await;
        publish(&*broker, &queue, &[round]).await;
        let received = soon("woken receive", pending).await.expect("no panic");
        assert_eq!(ids(&received.expect("no error")), [round]);
    }
}

/// Direct and topic exchanges choose queues by routing key.
pub async fn exchanges_route_by_their_kind(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let (direct, topic) = (fresh("direct"), fresh("topic"));
    let cases = [
        (
            setup
                .queue(&fresh("one"))
                .bound_to(Exchange::direct(&direct), "one"),
            "one",
            true,
        ),
        (
            setup
                .queue(&fresh("two"))
                .bound_to(Exchange::direct(&direct), "two"),
            "one",
            false,
        ),
        (
            setup
                .queue(&fresh("star"))
                .bound_to(Exchange::topic(&topic), "a.*.c"),
            "a.b.c",
            true,
        ),
        (
            setup
                .queue(&fresh("hash"))
                .bound_to(Exchange::topic(&topic), "a.#"),
            "a.b.c",
            true,
        ),
        (
            setup
                .queue(&fresh("none"))
                .bound_to(Exchange::topic(&topic), "b.#"),
            "a.b.c",
            false,
        ),
    ];
    for (queue, _, _) in &cases {
        soon("declare", broker.declare(queue))
            .await
            .expect("declared");
    }
    for (exchange, key) in [(&direct, "one"), (&topic, "a.b.c")] {
        let batch = [Publication::to_exchange(
            message("m"),
            exchange.as_str(),
            key,
        )];
        soon("publish", broker.publish(&batch))
            .await
            .remove(0)
            .expect("published");
    }
    for (queue, key, expected) in &cases {
        let depth = soon("depth", broker.depth(queue)).await.expect("depth");
        assert_eq!(depth, u64::from(*expected), "{key} to {queue:?}");
    }
}

/// A message that no queue would get is refused.
pub async fn nobody_bound_is_an_error(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let exchange = fresh("exchange");
    let queue = setup
        .queue(&fresh("bound"))
        .bound_to(Exchange::direct(&exchange), "bound");
    soon("declare", broker.declare(&queue))
        .await
        .expect("declared");
    let batch = [
        Publication::to_exchange(message("lost"), exchange.as_str(), "unbound"),
        Publication::to_exchange(message("kept"), exchange.as_str(), "bound"),
    ];
    let answers = soon("publish", broker.publish(&batch)).await;
    let error = answers[0].as_ref().expect_err("nobody gets it");
    assert_eq!(error.kind(), crate::boundary::ServiceErrorKind::Unroutable);
    assert!(error.to_string().contains(&exchange), "{error}");
    assert!(answers[1].is_ok());
}

/// Declaring what exists changes nothing.
pub async fn declaring_twice_does_nothing(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("declared"));
    soon("declare", broker.declare(&queue))
        .await
        .expect("declared");
    publish(&*broker, &queue, &["a"]).await;
    soon("declare", broker.declare(&queue))
        .await
        .expect("declared again");
    soon("declare", setup.broker().declare(&queue))
        .await
        .expect("declared by another");
    assert_eq!(soon("depth", broker.depth(&queue)).await.expect("depth"), 1);
}

/// Depth counts what waits, purge deletes it.
pub async fn depth_and_purge(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&fresh("depth"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    let _held = take(&*consumer, 3).await;
    assert_eq!(soon("depth", broker.depth(&queue)).await.expect("depth"), 0);
    consumer.interrupt();
    publish(&*broker, &queue, &["d", "e"]).await;
    assert_eq!(
        soon("purge", broker.purge(&queue)).await.expect("purged"),
        2
    );
    assert_eq!(soon("depth", broker.depth(&queue)).await.expect("depth"), 0);
    assert_eq!(
        soon("purge", broker.purge(&queue)).await.expect("purged"),
        0
    );
}

/// Every subscriber whose pattern matches gets a copy.
pub async fn broadcasts_reach_all_subscribers(setup: &dyn BrokerSetup) {
    let (broker, other) = (setup.broker(), setup.broker());
    let exchange = Exchange::topic(fresh("events"));
    let mut all = soon(
        "subscribe",
        broker.subscribe(&Mailbox::of(exchange.clone(), "#")),
    )
    .await
    .expect("subscribed");
    let mut some = soon(
        "subscribe",
        other.subscribe(&Mailbox::of(exchange.clone(), "worker.*")),
    )
    .await
    .expect("subscribed");
    for key in ["task.sent", "worker.online"] {
        let mut note = message("event");
        note.headers.set("key", Value::from(key)).expect("set");
        soon("broadcast", broker.broadcast(&exchange, key, &note))
            .await
            .expect("sent");
    }
    assert_eq!(key(&mut *all).await, "task.sent");
    assert_eq!(key(&mut *all).await, "worker.online");
    assert_eq!(key(&mut *some).await, "worker.online");
}

async fn key(subscription: &mut dyn Subscription) -> String {
    let message = soon("subscription", subscription.next())
        .await
        .expect("a message");
    let raw = message
        .headers
        .find("key")
        .expect("headers")
        .expect("the header");
    raw.decode().expect("a text")
}

/// Replies sent to a private queue arrive there.
pub async fn replies_arrive_and_are_private(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let name = fresh("reply");
    let expires = Duration::from_secs(10);
    let mut replies = soon(
        "subscribe",
        broker.subscribe(&Mailbox::named(&name, expires)),
    )
    .await
    .expect("opened");
    for n in ["1", "2"] {
        let mut reply = message(n);
        reply.headers.set("key", Value::from(n)).expect("set");
        let batch = [Publication::to_queue(reply, name.as_str())];
        soon("publish", setup.broker().publish(&batch))
            .await
            .remove(0)
            .expect("sent");
        assert_eq!(key(&mut *replies).await, n);
    }
}

/// A mailbox at a direct exchange gets what is sent to it under its key, by
/// whomever, and nothing else.
pub async fn a_direct_mailbox_gets_only_its_key(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let exchange = Exchange::direct(fresh("reply")).transient();
    let mut mailboxes = Vec::new();
    for key in ["mine", "yours"] {
        let mailbox = Mailbox::control(fresh(key), exchange.clone(), key);
        let opened = soon("subscribe", broker.subscribe(&mailbox)).await;
        mailboxes.push(opened.expect("opened"));
    }
    let sender = setup.broker();
    for (to, says) in [
        ("mine", "1"),
        ("theirs", "2"),
        ("yours", "3"),
        ("mine", "4"),
    ] {
        let mut reply = message("reply");
        reply.headers.set("key", Value::from(says)).expect("set");
        soon("broadcast", sender.broadcast(&exchange, to, &reply))
            .await
            .expect("sent");
    }
    let [mine, yours] = &mut mailboxes[..] else {
        panic!("two mailboxes");
    };
    assert_eq!(key(&mut **mine).await, "1");
    assert_eq!(key(&mut **mine).await, "4");
    assert_eq!(key(&mut **yours).await, "3");
}

/// What is sent under a key that nobody has is neither an error nor kept.
pub async fn a_reply_to_nobody_leaves_nothing(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let exchange = Exchange::direct(fresh("reply")).transient();
    let (here, away) = (fresh("here"), fresh("away"));
    let mailbox = Mailbox::control(&here, exchange.clone(), "here");
    let mut opened = soon("subscribe", broker.subscribe(&mailbox))
        .await
        .expect("opened");
    for to in [&away, "here"] {
        let mut reply = message("reply");
        reply.headers.set("key", Value::from(to)).expect("set");
        soon("broadcast", broker.broadcast(&exchange, to, &reply))
            .await
            .expect("nobody there is no error");
    }
    assert_eq!(key(&mut *opened).await, "here");
    let depth = soon("depth", broker.depth(&Queue::new(&away))).await;
    assert_eq!(depth.expect("depth"), 0);
}
