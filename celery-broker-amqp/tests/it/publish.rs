//! Tests of publishing: `Ok` means that the message is in a queue, and an error that
//! it is not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use celery_broker_amqp::{AmqpBroker, AmqpOptions};
use celery_protocol::{Headers, Message, Properties};
use celery_runtime::{
    Broker, Exchange, Mailbox, Publication, Queue, ServiceError, ServiceErrorKind,
};
use lapin::options::ExchangeDeleteOptions;
use lapin::types::FieldTable;
use serde_json::json;

use crate::support::{
    TestRng, TestVhost, consumer, id, ids, message, message_id, numbers, publish_one, receive,
    receive_one, send, task, to, to_declared, wait_until, within,
};

/// Returns a message with a body of this size.
fn bytes(size: usize) -> Message {
    let body: Vec<u8> = (0..size).map(|number| (number % 251) as u8).collect();
    Message::new(Headers::empty(), Properties::default(), body)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn published_messages_are_in_the_queue_on_return() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let raw = test_vhost.raw().await;
    send(&broker, &queue, &numbers(0..300)).await;
    // A confirmed message that is missing would be `None` here.
    for number in 0..300 {
        assert!(raw.take("q").await.is_some(), "{number}");
    }
    assert!(raw.take("q").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn body_of_any_size_is_delivered_or_returned() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    within("declare", broker.declare(&queue)).await.unwrap();
    // A frame has 128 KiB, of which 8 bytes are not for the body.
    let frame = 128 * 1024 - 8;
    let sizes = [0, 1, frame - 1, frame, frame + 1, 1 << 20, 5 << 20];
    let batch: Vec<_> = sizes
        .iter()
        .flat_map(|size| ["q", "missing"].map(|to| Publication::to_queue(bytes(*size), to)))
        .collect();

    let answers = within("publish", broker.publish(&batch)).await;

    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_ok(), number % 2 == 0, "{number}: {answer:?}");
    }
    let consumer = consumer(&broker, &[&queue], 4).await;
    for size in sizes {
        let delivery = receive_one(&*consumer).await;
        assert_eq!(message(&delivery).body, bytes(size).body, "{size}");
        crate::support::ack_all(&*consumer, &[delivery]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn unroutable_message_is_the_only_error_of_its_batch() {
    let test_vhost = TestVhost::create();
    let queue = Arc::new(Queue::new("q").bound_to(Exchange::topic("feeds"), "feed.*"));
    let broker = test_vhost.broker();
    let mut batch: Vec<_> = (0..500)
        .map(|number| {
            Publication::to_exchange(task(&number.to_string()), "feeds", "feed.a")
                .declare_queue(Arc::clone(&queue))
        })
        .collect();
    batch[250] = Publication::to_exchange(task("250"), "feeds", "no.binding");

    let answers = within("publish", broker.publish(&batch)).await;

    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_err(), number == 250, "{number}: {answer:?}");
    }
    let error = answers[250].as_ref().unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unroutable);
    let text = error.to_string();
    assert!(
        text.contains("feeds") && text.contains("no.binding"),
        "{text}"
    );
    assert_eq!(broker.depth(&queue).await.unwrap(), 499);
}

/// RabbitMQ confirms several messages at once, and lapin may then assign a returned
/// message to the wrong confirm.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn unroutable_messages_of_concurrent_batches_are_identified() {
    const TASKS: usize = 32;
    const ROUNDS: usize = 5;
    const SIZE: usize = 60;
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    within("declare", broker.declare(&queue)).await.unwrap();
    let sending: Vec<_> = (0..TASKS)
        .map(|number| {
            let broker = broker.clone();
            tokio::spawn(async move {
                let mut rng = TestRng::new(number as u64);
                let mut arrived = Vec::new();
                for round in 0..ROUNDS {
                    let lost: BTreeSet<_> = (0..SIZE).filter(|_| rng.below(3) == 0).collect();
                    let batch: Vec<_> = (0..SIZE)
                        .map(|one| {
                            let queue = if lost.contains(&one) { "missing" } else { "q" };
                            to(queue, &format!("{number}-{round}-{one}"))
                        })
                        .collect();
                    let answers = within("publish", broker.publish(&batch)).await;
                    for (one, answer) in answers.iter().enumerate() {
                        assert_eq!(answer.is_err(), lost.contains(&one), "{one} of {lost:?}");
                        if answer.is_ok() {
                            arrived.push(message_id(&batch[one].message));
                        }
                    }
                }
                arrived
            })
        })
        .collect();
    let mut sent = BTreeSet::new();
    for one in sending {
        sent.extend(within("all are published", one).await.unwrap());
    }
    let consumer = consumer(&broker, &[&queue], 500).await;
    let mut arrived = BTreeSet::new();
    while arrived.len() < sent.len() {
        let taken = receive(&*consumer, 1).await;
        arrived.extend(ids(&taken));
        crate::support::ack_all(&*consumer, &taken).await;
    }
    assert_eq!(arrived, sent);
    assert_eq!(broker.depth(&queue).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deleted_queue_is_declared_again_and_gets_its_message() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let plain = Arc::new(Queue::new("plain"));
    let routed = Arc::new(Queue::new("routed").bound_to(Exchange::topic("feeds"), "feed"));
    let publications = |id: &str| {
        let feed = Publication::to_exchange(task(id), "feeds", "feed");
        [
            to_declared(&plain, id),
            feed.declare_queue(Arc::clone(&routed)),
        ]
    };
    for round in 0..3 {
        let answers = within("publish", broker.publish(&publications(&round.to_string()))).await;
        for answer in answers {
            answer.unwrap();
        }
        for queue in [&plain, &routed] {
            let taken = raw.take(&queue.name).await;
            assert!(taken.is_some(), "{} in round {round}", queue.name);
            raw.delete(&queue.name).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn removed_binding_is_declared_again() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queue = Arc::new(Queue::new("q").bound_to(Exchange::topic("feeds"), "feed"));
    let publication =
        || Publication::to_exchange(task("1"), "feeds", "feed").declare_queue(Arc::clone(&queue));
    publish_one(&broker, publication()).await.unwrap();
    let none = FieldTable::default();
    raw.channel
        .queue_unbind("q".into(), "feeds".into(), "feed".into(), none)
        .await
        .unwrap();
    publish_one(&broker, publication()).await.unwrap();
    assert_eq!(broker.depth(&queue).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deleted_exchange_is_declared_again() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queue = Arc::new(Queue::new("q").bound_to(Exchange::topic("feeds"), "feed"));
    let publication =
        || Publication::to_exchange(task("1"), "feeds", "feed").declare_queue(Arc::clone(&queue));
    for round in 1..=3 {
        publish_one(&broker, publication()).await.unwrap();
        assert_eq!(broker.depth(&queue).await.unwrap(), round);
        let options = ExchangeDeleteOptions::default();
        raw.channel
            .exchange_delete("feeds".into(), options)
            .await
            .unwrap();
    }
}

/// A publication without a queue does not declare its exchange. If the exchange was
/// deleted, RabbitMQ closes the channel, which may fail other messages of that
/// batch, but not of the next.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deleted_exchange_fails_other_messages_at_most_once() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queue = Queue::new("q").bound_to(Exchange::topic("feeds"), "feed");
    within("declare", broker.declare(&queue)).await.unwrap();
    let batch = [
        to("q", "1"),
        Publication::to_exchange(task("2"), "feeds", "feed"),
        to("q", "3"),
    ];
    for answer in within("publish", broker.publish(&batch)).await {
        answer.unwrap();
    }
    let options = ExchangeDeleteOptions::default();
    raw.channel
        .exchange_delete("feeds".into(), options)
        .await
        .unwrap();
    // The declaration cache still has the exchange at the first attempt.
    let first = within("publish", broker.publish(&batch)).await;
    assert_eq!(
        kind(&first[1]),
        Some(ServiceErrorKind::Unroutable),
        "{first:?}"
    );

    let second = within("publish", broker.publish(&batch)).await;

    assert_eq!(
        kind(&second[1]),
        Some(ServiceErrorKind::Unroutable),
        "{second:?}"
    );
    assert!(
        second[1]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("feeds")
    );
    assert_eq!(
        (kind(&second[0]), kind(&second[2])),
        (None, None),
        "{second:?}"
    );
}

fn kind(answer: &Result<(), ServiceError>) -> Option<ServiceErrorKind> {
    answer.as_ref().err().map(ServiceError::kind)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn missing_exchange_is_named_in_the_error() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    within("declare", broker.declare(&queue)).await.unwrap();
    let batch = [
        to("q", "1"),
        Publication::to_exchange(task("2"), "nowhere", "some.key"),
        to("q", "3"),
    ];
    let answers = within("publish", broker.publish(&batch)).await;
    let error = answers[1].as_ref().unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Unroutable, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("nowhere") && text.contains("some.key"),
        "{text}"
    );
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn names_longer_than_255_bytes_are_errors() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    within("declare", broker.declare(&queue)).await.unwrap();
    let long = "n".repeat(256);
    let with = |change: fn(&mut Message, &str)| {
        let mut message = task("1");
        change(&mut message, &long);
        Publication::to_queue(message, "q")
    };
    let batch = [
        to("q", "0"),
        to(&long, "1"),
        to(&long, "1").declare_queue(Arc::new(Queue::new(long.as_str()))),
        Publication::to_exchange(task("1"), long.as_str(), "key"),
        Publication::to_exchange(task("1"), "amq.topic", long.as_str()),
        with(|message, long| message.properties.reply_to = Some(long.to_owned())),
        with(|message, long| message.properties.correlation_id = Some(long.to_owned())),
        with(|message, long| message.headers.set(long, true.into()).unwrap()),
        to("q", "2"),
    ];
    let answers = within("publish", broker.publish(&batch)).await;
    for (number, answer) in answers.iter().enumerate() {
        if number == 0 || number == batch.len() - 1 {
            assert!(answer.is_ok(), "{answer:?}");
            continue;
        }
        let error = answer.as_ref().unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{number}: {error}");
        assert!(error.to_string().contains("255 bytes"), "{number}: {error}");
    }
    let topic = Exchange::topic(long.as_str());
    let error = broker
        .broadcast(&topic, "key", &task("1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
    let error = broker
        .subscribe(&Mailbox::of(topic.clone(), "#"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
    let error = broker
        .subscribe(&Mailbox::named(&long, Duration::from_secs(60)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
    assert_eq!(broker.depth(&queue).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn full_queue_rejects_messages() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let full = |name: &str| {
        Queue::new(name)
            .argument("x-max-length", 10)
            .argument("x-overflow", "reject-publish")
    };
    for queue in [full("classic"), full("quorum").quorum()] {
        within("declare", broker.declare(&queue)).await.unwrap();
        let batch: Vec<_> = (0..40)
            .map(|one| to(&queue.name, &one.to_string()))
            .collect();
        let mut rejected = within("publish", broker.publish(&batch)).await;
        rejected.retain(Result::is_err);
        // A quorum queue rejects messages only some time after it is full.
        wait_until("it is full", async || {
            rejected.push(publish_one(&broker, to(&queue.name, "late")).await);
            rejected.last().unwrap().is_err()
        })
        .await;
        rejected.retain(Result::is_err);
        for answer in &rejected {
            let error = answer.as_ref().unwrap_err();
            assert_eq!(error.kind(), ServiceErrorKind::Refused, "{error}");
            assert!(
                error.to_string().contains(&format!("queue {}", queue.name)),
                "{error}"
            );
        }
        if queue.name == "classic" {
            assert_eq!(
                (rejected.len(), broker.depth(&queue).await.unwrap()),
                (31, 10)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn messages_arrive_without_publisher_confirms() {
    let test_vhost = TestVhost::create();
    let given = json!({"confirm_publish": false});
    let options = AmqpOptions::parse(&test_vhost.url).unwrap();
    let broker = AmqpBroker::new(
        options
            .transport_options(given.as_object().unwrap())
            .unwrap(),
    );
    let queue = Queue::new("q");
    send(&broker, &queue, &numbers(0..200)).await;
    // As in Celery without confirms, an unroutable message is not reported.
    publish_one(&broker, to("missing", "lost")).await.unwrap();
    wait_until("all messages arrive", async || {
        broker.depth(&queue).await.unwrap() == 200
    })
    .await;

    // Cancelled calls do not break the connection.
    let large = [Publication::to_queue(bytes(8 << 20), "q")];
    for _ in 0..50 {
        let _ = tokio::time::timeout(Duration::from_micros(300), broker.publish(&large)).await;
    }
    let before = broker.depth(&queue).await.unwrap();
    publish_one(&broker, to("q", "after")).await.unwrap();
    wait_until("the message arrives", async || {
        broker.depth(&queue).await.unwrap() > before
    })
    .await;
    // One connection publishes, and one counts messages.
    assert!(test_vhost.connections(&["name"]).len() <= 2);
    assert_no_protocol_error(&test_vhost);
}

/// Asserts that RabbitMQ has logged no error, because it closes the connection of a
/// client that violates the protocol.
fn assert_no_protocol_error(test_vhost: &TestVhost) {
    let log = test_servers::RabbitServer::shared()
        .folder()
        .join("rabbit.log");
    let log = std::fs::read_to_string(log).unwrap();
    let vhost = format!("vhost: '{}'", test_vhost.url.rsplit('/').next().unwrap());
    let lines: Vec<_> = log.lines().collect();
    // The reason is on the following lines.
    let errors: Vec<_> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.contains("[error]") && line.contains(&vhost))
        .map(|(at, _)| lines[at..lines.len().min(at + 4)].join("\n"))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn cancelled_publishes_leave_no_channel_and_harm_no_others() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    within("declare", broker.declare(&queue)).await.unwrap();
    let others = {
        let broker = broker.clone();
        tokio::spawn(async move {
            for number in 0..200 {
                publish_one(&broker, to("q", &number.to_string()))
                    .await
                    .unwrap();
            }
        })
    };
    let mut rng = TestRng::new(7);
    let mut cancelled = 0;
    for number in 0..200 {
        let size = if number % 4 == 0 { 1 << 20 } else { 100 };
        let batch = vec![Publication::to_queue(bytes(size), "q"); 3];
        let time = Duration::from_micros(rng.below(3000) as u64);
        cancelled += usize::from(
            tokio::time::timeout(time, broker.publish(&batch))
                .await
                .is_err(),
        );
    }
    within("the others", others).await.unwrap();
    println!("{cancelled} of 200 calls were cancelled");
    assert!(cancelled > 20);
    publish_one(&broker, to("q", "after")).await.unwrap();
    wait_until("the channels are closed", async || {
        test_vhost.channels(&["number"]).len() <= 16
    })
    .await;
    // One connection publishes, and one counts messages.
    assert!(test_vhost.connections(&["name"]).len() <= 2);
    assert_no_protocol_error(&test_vhost);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn concurrent_batches_share_a_bounded_number_of_channels() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    within("declare", broker.declare(&queue)).await.unwrap();
    let sending: Vec<_> = (0..64)
        .map(|task| {
            let broker = broker.clone();
            tokio::spawn(async move {
                for round in 0..16 {
                    let batch: Vec<_> = (0..10)
                        .map(|one| to("q", &format!("{task}-{round}-{one}")))
                        .collect();
                    for answer in within("publish", broker.publish(&batch)).await {
                        answer.unwrap();
                    }
                }
            })
        })
        .collect();
    let mut max_channels = 0;
    while !sending.iter().all(tokio::task::JoinHandle::is_finished) {
        max_channels = max_channels.max(test_vhost.channels(&["number"]).len());
    }
    for one in sending {
        one.await.unwrap();
    }
    assert!(max_channels <= 18, "{max_channels} channels");
    assert_eq!(broker.depth(&queue).await.unwrap(), 64 * 160);
    let raw = test_vhost.raw().await;
    let mut seen = BTreeSet::new();
    while let Some(taken) = raw.take("q").await {
        let id = taken.properties.correlation_id().clone().unwrap();
        assert!(seen.insert(id.to_string()), "{id} came twice");
    }
    assert_eq!(seen.len(), 64 * 160);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn batch_larger_than_the_in_flight_limit_arrives_in_order() {
    let test_vhost = TestVhost::create();
    let (broker, queue) = (test_vhost.broker(), Queue::new("q"));
    let sent = numbers(0..3000);
    send(&broker, &queue, &sent).await;
    let consumer = consumer(&broker, &[&queue], 1000).await;
    let mut arrived = Vec::new();
    while arrived.len() < sent.len() {
        let taken = within("receive", consumer.receive(500)).await.unwrap();
        arrived.extend(taken.iter().map(id));
        crate::support::ack_all(&*consumer, &taken).await;
    }
    assert_eq!(arrived, sent);
}
