//! Tests of broadcasts and replies.

use std::time::Duration;

use celery_runtime::{Broker, Exchange, Mailbox, Publication};

use crate::support::{
    TestVhost, message_id, publish_one, task, to, wait_until, within, without_default_type,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn mailboxes_match_celery_and_are_deleted_with_their_consumers() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let pidbox = Exchange::fanout("celery.pidbox").transient();
    let events = Exchange::topic("celeryev");
    let one = within(
        "subscribe",
        broker.subscribe(&Mailbox::of(pidbox.clone(), "")),
    )
    .await
    .unwrap();
    let two = within(
        "subscribe",
        broker.subscribe(&Mailbox::of(events.clone(), "task.#")),
    )
    .await
    .unwrap();
    let three = Mailbox::named("3f0c-reply", Duration::from_secs(86_400));
    let three = within("reply queue", broker.subscribe(&three))
        .await
        .unwrap();
    let replies = Exchange::direct("reply.celery.pidbox").transient();
    let four = Mailbox::control("5e1f.reply.celery.pidbox", replies, "5e1f");
    let four = within("subscribe", broker.subscribe(&four)).await.unwrap();

    let columns = [
        "name",
        "durable",
        "auto_delete",
        "exclusive",
        "consumers",
        "arguments",
    ];
    let queues = without_default_type(test_vhost.rows("list_queues", &columns));
    let ends: Vec<_> = queues.iter().map(|row| row[1..].join(" ")).collect();
    let short = "false true true 1 [{\"x-expires\",60000},{\"x-message-ttl\",5000}]";
    assert_eq!(
        ends,
        [
            "true true false 1 [{\"x-expires\",86400000}]",
            "false true true 1 [{\"x-expires\",10000},{\"x-message-ttl\",300000}]",
            short,
            short
        ]
    );
    assert!(queues[2][0].starts_with("celery.pidbox."), "{queues:?}");
    assert!(queues[3][0].starts_with("celeryev."), "{queues:?}");
    let mut exchanges = test_vhost.rows("list_exchanges", &["name", "type", "durable"]);
    exchanges.retain(|row| row[0].contains("celery"));
    assert_eq!(
        exchanges,
        [
            ["celery.pidbox", "fanout", "false"],
            ["celeryev", "topic", "true"],
            ["reply.celery.pidbox", "direct", "false"]
        ]
    );
    let consumers = test_vhost.rows("list_consumers", &["ack_required", "prefetch_count"]);
    assert_eq!(consumers, vec![["false", "0"]; 4]);

    drop((one, two, three, four));
    wait_until("the queues are deleted", async || {
        test_vhost.rows("list_queues", &["name"]).is_empty()
    })
    .await;
    wait_until("the channels are closed", async || {
        test_vhost
            .channels(&["consumer_count"])
            .iter()
            .all(|row| row[0] == "0")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn cancelled_next_loses_no_message() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let mut replies = broker
        .subscribe(&Mailbox::named("replies", Duration::from_secs(60)))
        .await
        .unwrap();
    let sending = {
        let broker = broker.clone();
        tokio::spawn(async move {
            for number in 0..300 {
                publish_one(&broker, to("replies", &number.to_string()))
                    .await
                    .unwrap();
            }
        })
    };
    let mut expected = 0;
    while expected < 300 {
        let next = tokio::time::timeout(Duration::from_micros(200), replies.next());
        if let Ok(message) = next.await {
            assert_eq!(message_id(&message.unwrap()), expected.to_string());
            expected += 1;
        }
    }
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn broadcast_redeclares_a_deleted_exchange() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let exchange = Exchange::topic("celeryev");
    let send = async || within("broadcast", broker.broadcast(&exchange, "a.b", &task("1"))).await;
    // There are no subscribers.
    send().await.unwrap();
    let options = lapin::options::ExchangeDeleteOptions::default();
    raw.channel
        .exchange_delete("celeryev".into(), options)
        .await
        .unwrap();
    send().await.unwrap();
    let mut events = broker
        .subscribe(&Mailbox::of(exchange.clone(), "a.*"))
        .await
        .unwrap();
    send().await.unwrap();
    let event = within("the event", events.next()).await.unwrap();
    assert_eq!(message_id(&event), "1");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn subscription_to_a_deleted_queue_is_an_error() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let mut replies = broker
        .subscribe(&Mailbox::named("replies", Duration::from_secs(60)))
        .await
        .unwrap();
    raw.delete("replies").await;
    let error = within("the subscription ends", replies.next())
        .await
        .unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("replies"),
        "{error}"
    );
    let publication = Publication::to_queue(task("1"), "replies");
    let error = publish_one(&broker, publication).await.unwrap_err();
    assert_eq!(error.kind(), celery_runtime::ServiceErrorKind::Unroutable);
}
