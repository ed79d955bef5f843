//! Cases about declaring queues and publishing.

use std::collections::BTreeMap;
use std::sync::Arc;

use celery_protocol::{Headers, Value};

use super::{BrokerSetup, consumer, ids, message, publish, take};
use crate::boundary::{Binding, Content, Exchange, Publication, ServiceErrorKind};
use crate::conformance::{unique_name, wait_for};

/// Published messages arrive in order, with their headers, properties and body.
pub async fn published_messages_arrive_complete_in_order(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("whole"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    let deliveries = take(&*consumer, 3).await;
    assert_eq!(ids(&deliveries), ["a", "b", "c"]);
    let Content::Message(arrived) = &deliveries[0].content else {
        panic!("malformed");
    };
    let sent = message("a");
    assert_eq!(
        headers_by_name(&arrived.headers),
        headers_by_name(&sent.headers)
    );
    assert_eq!(arrived.body, sent.body);
    assert_eq!(arrived.properties.correlation_id.as_deref(), Some("a"));
    assert_eq!(arrived.properties.content_type, "application/json");
    assert_eq!(arrived.properties.delivery_info.routing_key, queue.name);
    assert!(!deliveries[0].redelivered);
    assert_eq!(*deliveries[0].queue, *queue.name);
}

/// Returns the headers without their order, which AMQP does not keep.
fn headers_by_name(headers: &Headers) -> BTreeMap<String, Value> {
    let map = headers.to_map().expect("readable headers");
    let name = |key: &Value| key.as_str().unwrap_or_default().to_owned();
    map.iter()
        .map(|(key, value)| (name(key), value.clone()))
        .collect()
}

/// A message without exchange and queue name is refused; the others of its batch are
/// published.
pub async fn message_without_address_is_refused(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("addressed"));
    let consumer = consumer(&*broker, &[&queue]).await;
    let batch = ["", queue.name.as_str()].map(|name| Publication::to_queue(message("a"), name));
    let answers = wait_for("publish", broker.publish(&batch)).await;
    let error = answers[0].as_ref().expect_err("an empty name");
    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
    assert!(answers[1].is_ok(), "{answers:?}");
    assert_eq!(ids(&take(&*consumer, 1).await), ["a"]);
}

/// A publication declares its queue, so that the first message of a queue is not
/// lost.
pub async fn publication_with_queue_declares_queue(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = Arc::new(setup.queue(&unique_name("undeclared")));
    let batch = ["a", "b"].map(|id| {
        Publication::to_queue(message(id), queue.name.as_str()).declare_queue(Arc::clone(&queue))
    });
    for answer in wait_for("publish", broker.publish(&batch)).await {
        answer.expect("published");
    }
    assert_eq!(
        wait_for("depth", broker.depth(&queue))
            .await
            .expect("depth"),
        2
    );
    let consumer = consumer(&*broker, &[&queue]).await;
    assert_eq!(ids(&take(&*consumer, 2).await), ["a", "b"]);
}

/// A publication declares the bindings of its queue, so that its exchange has a
/// queue to route to.
pub async fn publication_with_queue_declares_bindings(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let (topic, direct) = (unique_name("topic"), unique_name("direct"));
    let queue = setup
        .queue(&unique_name("unbound"))
        .bound_to(Exchange::topic(&topic), "a.*")
        .also_bound_to(Binding::new(Exchange::direct(&direct), "key"));
    let queue = Arc::new(queue);
    for (id, exchange, key) in [("1", &topic, "a.b"), ("2", &direct, "key")] {
        let publication = Publication::to_exchange(message(id), exchange.as_str(), key);
        let batch = [publication.declare_queue(Arc::clone(&queue))];
        wait_for("publish", broker.publish(&batch))
            .await
            .remove(0)
            .expect("published");
    }
    let consumer = consumer(&*broker, &[&queue]).await;
    assert_eq!(ids(&take(&*consumer, 2).await), ["1", "2"]);
}

/// Publishing a batch returns one answer for each message.
pub async fn batch_publish_answers_each_message(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("batch"));
    wait_for("declare", broker.declare(&queue))
        .await
        .expect("declared");
    let batch: Vec<_> = (0..500)
        .map(|n| Publication::to_queue(message(&n.to_string()), queue.name.as_str()))
        .collect();
    let answers = wait_for("publish", broker.publish(&batch)).await;
    assert_eq!(answers.len(), 500);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(
        wait_for("depth", broker.depth(&queue))
            .await
            .expect("depth"),
        500
    );
    assert!(wait_for("publish", broker.publish(&[])).await.is_empty());
}

/// Direct and topic exchanges choose queues by routing key.
pub async fn exchange_routes_by_kind(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let direct = Exchange::direct(unique_name("direct"));
    let topic = Exchange::topic(unique_name("topic"));
    let cases = [
        (&direct, "one", "one", true),
        (&direct, "two", "one", false),
        (&topic, "a.*.c", "a.b.c", true),
        (&topic, "a.#", "a.b.c", true),
        (&topic, "b.#", "a.b.c", false),
    ]
    .map(|(exchange, pattern, key, is_routed)| {
        let queue = setup.queue(&unique_name("queue"));
        (queue.bound_to(exchange.clone(), pattern), key, is_routed)
    });
    for (queue, _, _) in &cases {
        wait_for("declare", broker.declare(queue))
            .await
            .expect("declared");
    }
    for (exchange, key) in [(&direct, "one"), (&topic, "a.b.c")] {
        let exchange = exchange.name.as_str();
        let batch = [Publication::to_exchange(message("m"), exchange, key)];
        wait_for("publish", broker.publish(&batch))
            .await
            .remove(0)
            .expect("published");
    }
    for (queue, key, is_routed) in &cases {
        let depth = wait_for("depth", broker.depth(queue)).await.expect("depth");
        assert_eq!(depth, u64::from(*is_routed), "{key} to {queue:?}");
    }
}

/// A message that no queue would receive is refused as unroutable; the others of
/// its batch are sent.
pub async fn unroutable_message_is_refused(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let exchange = unique_name("exchange");
    let queue = setup
        .queue(&unique_name("bound"))
        .bound_to(Exchange::direct(&exchange), "bound");
    wait_for("declare", broker.declare(&queue))
        .await
        .expect("declared");
    let batch = [
        Publication::to_exchange(message("lost"), exchange.as_str(), "unbound"),
        Publication::to_exchange(message("kept"), exchange.as_str(), "bound"),
    ];
    let answers = wait_for("publish", broker.publish(&batch)).await;
    let error = answers[0].as_ref().expect_err("no queue is bound");
    assert_eq!(error.kind(), ServiceErrorKind::Unroutable);
    assert!(error.to_string().contains(&exchange), "{error}");
    assert!(answers[1].is_ok());
}

/// Declaring a queue that exists with the same properties changes nothing.
pub async fn repeated_declaration_changes_nothing(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("declared"));
    wait_for("declare", broker.declare(&queue))
        .await
        .expect("declared");
    publish(&*broker, &queue, &["a"]).await;
    wait_for("declare", broker.declare(&queue))
        .await
        .expect("declared again");
    wait_for("declare", setup.broker().declare(&queue))
        .await
        .expect("declared by another");
    assert_eq!(
        wait_for("depth", broker.depth(&queue))
            .await
            .expect("depth"),
        1
    );
}

/// `depth` and `purge` count the messages that wait, without those that a
/// consumer holds.
pub async fn depth_and_purge_count_waiting_messages(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let queue = setup.queue(&unique_name("depth"));
    let consumer = consumer(&*broker, &[&queue]).await;
    publish(&*broker, &queue, &["a", "b", "c"]).await;
    let _held = take(&*consumer, 3).await;
    assert_eq!(
        wait_for("depth", broker.depth(&queue))
            .await
            .expect("depth"),
        0
    );
    consumer.interrupt();
    publish(&*broker, &queue, &["d", "e"]).await;
    assert_eq!(
        wait_for("purge", broker.purge(&queue))
            .await
            .expect("purged"),
        2
    );
    assert_eq!(
        wait_for("depth", broker.depth(&queue))
            .await
            .expect("depth"),
        0
    );
    assert_eq!(
        wait_for("purge", broker.purge(&queue))
            .await
            .expect("purged"),
        0
    );
}
