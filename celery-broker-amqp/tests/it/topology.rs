//! Tests of declarations, as `rabbitmqctl` lists them.

use std::collections::BTreeSet;
use std::sync::Arc;

use celery_broker_amqp::{AmqpBroker, AmqpOptions};
use celery_protocol::{Map, Value};
use celery_runtime::{
    Binding, Broker, Exchange, ExchangeKind, Queue, QueueType, ServiceErrorKind, Settlement,
};
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use lapin::types::AMQPValue;

use crate::support::{
    RawClient, TestVhost, broker_at, consumer, publish_one, receive_one, send, settle, table,
    to_declared, wait_until, within, without_default_type,
};

fn row(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Returns the queues, the exchanges except RabbitMQ's own, and the bindings except
/// those of the default exchange.
fn declared_topology(test_vhost: &TestVhost) -> [Vec<Vec<String>>; 3] {
    let queues = test_vhost.rows(
        "list_queues",
        &["name", "durable", "auto_delete", "arguments"],
    );
    let mut exchanges = test_vhost.rows(
        "list_exchanges",
        &["name", "type", "durable", "auto_delete"],
    );
    exchanges.retain(|row| !row[0].is_empty() && !row[0].starts_with("amq."));
    let columns = [
        "source_name",
        "destination_kind",
        "destination_name",
        "routing_key",
        "arguments",
    ];
    let mut bindings = test_vhost.rows("list_bindings", &columns);
    bindings.retain(|row| !row[0].is_empty());
    [queues, exchanges, bindings]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queue_with_only_a_name_is_declared_as_in_celery() {
    let test_vhost = TestVhost::create();
    within(
        "declare",
        test_vhost.broker().declare(&Queue::new("celery")),
    )
    .await
    .unwrap();
    let [queues, exchanges, bindings] = declared_topology(&test_vhost);
    let queues = without_default_type(queues);
    assert_eq!(queues, [row(&["celery", "true", "false", "[]"])]);
    assert_eq!(exchanges, [row(&["celery", "direct", "true", "false"])]);
    assert_eq!(
        bindings,
        [row(&["celery", "queue", "celery", "celery", "[]"])]
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn queue_is_declared_with_arguments_exchanges_and_bindings() {
    let test_vhost = TestVhost::create();
    let mut any = Map::new();
    any.insert("x-match", "any");
    any.insert("kind", "picture");
    let mut headed =
        Queue::new("headed").bound_to(Exchange::new("heads", ExchangeKind::Headers), "");
    headed.binding_arguments = any;
    let mut passing = Queue::new("passing").bound_to(Exchange::fanout("news").transient(), "");
    passing.durable = false;
    passing.auto_delete = true;
    let limited = Queue::new("limited")
        .argument("x-message-ttl", 60_000)
        .argument("x-dead-letter-exchange", "dead")
        .argument("x-dead-letter-routing-key", "limited.dead")
        .argument("x-max-length", 5_000_000_000_i64)
        .argument("x-overflow", "reject-publish")
        .max_priority(9);
    let many = Queue::new("many")
        .bound_to(Exchange::topic("feeds"), "feed.*")
        .also_bound_to(Binding::new(Exchange::topic("feeds"), "import.#"))
        .also_bound_to(Binding::new(Exchange::direct("orders"), "order"))
        .also_bound_to(Binding::new(Exchange::topic("amq.topic"), "own"));
    let nameless = Queue::new("nameless").bound_to(Exchange::direct(""), "nameless");
    let broker = test_vhost.broker();
    for queue in [
        &headed,
        &passing,
        &limited,
        &many,
        &nameless,
        &Queue::new("replicated").quorum(),
    ] {
        within("declare", broker.declare(queue)).await.unwrap();
    }

    let [queues, exchanges, bindings] = declared_topology(&test_vhost);

    let queues = without_default_type(queues);
    let limits = "[{\"x-message-ttl\",60000}, {\"x-dead-letter-exchange\",\"dead\"}, \
                  {\"x-dead-letter-routing-key\",\"limited.dead\"}, {\"x-max-length\",5000000000}, \
                  {\"x-overflow\",\"reject-publish\"}, {\"x-max-priority\",9}]";
    let of = |name: &str| queues.iter().find(|row| row[0] == name).unwrap()[1..].to_vec();
    assert_eq!(of("headed"), row(&["true", "false", "[]"]));
    assert_eq!(of("passing"), row(&["false", "true", "[]"]));
    assert_eq!(arguments(&of("limited")[2]), arguments(limits));
    assert_eq!(of("replicated")[2], "[{\"x-queue-type\",\"quorum\"}]");
    assert_eq!(
        exchanges,
        [
            row(&["feeds", "topic", "true", "false"]),
            row(&["heads", "headers", "true", "false"]),
            row(&["limited", "direct", "true", "false"]),
            row(&["news", "fanout", "false", "false"]),
            row(&["orders", "direct", "true", "false"]),
            row(&["replicated", "direct", "true", "false"]),
        ]
    );
    let keys: Vec<_> = bindings
        .iter()
        .map(|row| format!("{} {} {}", row[0], row[2], row[3]))
        .collect();
    assert_eq!(
        keys,
        [
            "amq.topic many own",
            "feeds many feed.*",
            "feeds many import.#",
            "heads headed ",
            "limited limited limited",
            "news passing ",
            "orders many order",
            "replicated replicated replicated",
        ]
    );
    let headed = bindings.iter().find(|row| row[0] == "heads").unwrap();
    assert!(
        headed[4].contains("x-match") && headed[4].contains("picture"),
        "{headed:?}"
    );
}

/// Returns the arguments of a listing, without their order.
fn arguments(text: &str) -> BTreeSet<String> {
    let all = text.replace(' ', "");
    all.trim_matches(['[', ']', '{', '}'])
        .split("},{")
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn inequivalent_declaration_names_both_forms() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let mut transient = Queue::new("transient");
    transient.durable = false;
    for exists in [
        Queue::new("plain"),
        Queue::new("urgent").max_priority(10),
        Queue::new("typed"),
        transient,
        Queue::new("routed"),
    ] {
        within("declare", broker.declare(&exists)).await.unwrap();
    }
    for (queue, existing, declared) in [
        (
            Queue::new("plain").max_priority(5),
            "x-max-priority none",
            "x-max-priority=5",
        ),
        (
            Queue::new("urgent").max_priority(5),
            "x-max-priority 10",
            "x-max-priority=5",
        ),
        (
            Queue::new("typed").quorum(),
            "x-queue-type",
            "x-queue-type=quorum",
        ),
        (Queue::new("transient"), "durable false", "durable=true"),
        (
            Queue::new("routed").bound_to(Exchange::topic("routed"), "#"),
            "type direct",
            "a durable topic exchange",
        ),
    ] {
        let error = within("declare", broker.declare(&queue)).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{text}");
        assert!(text.contains(&format!("queue {}", queue.name)), "{text}");
        assert!(text.contains(existing) && text.contains(declared), "{text}");
        assert!(text.contains("make the settings agree"), "{text}");
    }
    // The errors have closed channels and not the connection.
    assert_eq!(test_vhost.connections(&["channels"]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn publish_by_name_accepts_the_existing_queue() {
    let test_vhost = TestVhost::create();
    let elsewhere = Queue::new("q")
        .max_priority(10)
        .argument("x-max-length", 100);
    within("declare", test_vhost.broker().declare(&elsewhere))
        .await
        .unwrap();
    let broker = test_vhost.broker();
    publish_one(&broker, to_declared(&Arc::new(Queue::new("q")), "1"))
        .await
        .unwrap();
    assert_eq!(broker.depth(&elsewhere).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn delay_cascade_is_declared_as_in_celery() {
    let test_vhost = TestVhost::create();
    let options = AmqpOptions::parse(&test_vhost.url).unwrap();
    let broker = AmqpBroker::new(options.delayed_queue_type(QueueType::Classic));
    let queue = Queue::new("q")
        .bound_to(Exchange::topic("feeds"), "feed")
        .quorum();
    within("declare", broker.declare(&queue)).await.unwrap();

    let [queues, exchanges, bindings] = declared_topology(&test_vhost);

    assert_eq!((queues.len(), exchanges.len()), (29, 30));
    let has = |rows: &[Vec<String>], row: Vec<String>| {
        assert!(rows.contains(&row), "{row:?} in {rows:#?}")
    };
    for level in 0..28u32 {
        let (name, next) = (format!("celery_delayed_{level}"), next(level));
        let queue = queues.iter().find(|row| row[0] == name).unwrap();
        let time = 1000u64 << level;
        let own = format!(
            "{{\"x-queue-type\",\"classic\"}}, {{\"x-overflow\",\"reject-publish\"}}, \
             {{\"x-message-ttl\",{time}}}, {{\"x-dead-letter-exchange\",\"{next}\"}}"
        );
        assert_eq!((&*queue[1], &*queue[2]), ("true", "false"));
        assert_eq!(arguments(&queue[3]), arguments(&own), "{name}");
        has(&exchanges, row(&[&name, "topic", "true", "false"]));
        let before = "*.".repeat(27 - level as usize);
        has(
            &bindings,
            row(&[&name, "queue", &name, &format!("{before}1.#"), "[]"]),
        );
        has(
            &bindings,
            row(&[&name, "exchange", &next, &format!("{before}0.#"), "[]"]),
        );
    }
    has(
        &exchanges,
        row(&["celery_delayed_delivery", "topic", "true", "false"]),
    );
    let key = format!("{}feed", "*.".repeat(28));
    has(
        &bindings,
        row(&["celery_delayed_delivery", "exchange", "feeds", &key, "[]"]),
    );
    has(&bindings, row(&["feeds", "queue", "q", &key, "[]"]));
    has(&bindings, row(&["feeds", "queue", "q", "feed", "[]"]));
}

fn next(level: u32) -> String {
    match level {
        0 => "celery_delayed_delivery".to_owned(),
        _ => format!("celery_delayed_{}", level - 1),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn delay_queues_are_quorum_queues_by_default() {
    let test_vhost = TestVhost::create();
    let queue = Queue::new("q")
        .bound_to(Exchange::fanout("feeds"), "")
        .quorum();
    within("declare", test_vhost.broker().declare(&queue))
        .await
        .unwrap();
    let queues = test_vhost.rows("list_queues", &["name", "arguments"]);
    let own = "{\"x-queue-type\",\"quorum\"}, {\"x-overflow\",\"reject-publish\"}, \
               {\"x-message-ttl\",32000}, {\"x-dead-letter-exchange\",\"celery_delayed_4\"}, \
               {\"x-dead-letter-strategy\",\"at-least-once\"}";
    let fifth = queues
        .iter()
        .find(|row| row[0] == "celery_delayed_5")
        .unwrap();
    assert_eq!(arguments(&fifth[1]), arguments(own));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn existing_delay_queues_of_another_type_are_accepted() {
    let test_vhost = TestVhost::create();
    let raw = RawClient::connect(&test_vhost.url).await;
    for level in 0..28u32 {
        // The declaration of a Python worker with the type classic.
        let arguments = table(&[
            ("x-queue-type", AMQPValue::LongString("classic".into())),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
            ("x-message-ttl", AMQPValue::LongLongInt(1000 << level)),
            (
                "x-dead-letter-exchange",
                AMQPValue::LongString(next(level).into()),
            ),
        ]);
        raw.declare(&format!("celery_delayed_{level}"), arguments)
            .await;
    }
    let queue = Queue::new("q")
        .bound_to(Exchange::topic("feeds"), "feed")
        .quorum();
    within("declare", test_vhost.broker().declare(&queue))
        .await
        .unwrap();
    let queues = test_vhost.rows("list_queues", &["name", "type"]);
    let classic = queues.iter().filter(|row| row[1] == "classic").count();
    assert_eq!((classic, queues.len()), (28, 29));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn invalid_declaration_is_an_error_with_its_cause() {
    let test_vhost = TestVhost::create();
    let broker = test_vhost.broker();
    let long = "q".repeat(300);
    let mut odd = Queue::new("odd");
    odd.arguments.insert(Value::Int(1), Value::Null);
    for (queue, cause) in [
        (Queue::new(long.as_str()), "255 bytes"),
        (
            Queue::new("q").bound_to(Exchange::direct(long.as_str()), "q"),
            "255 bytes",
        ),
        (
            Queue::new("q").bound_to(Exchange::direct("e"), long.as_str()),
            "255 bytes",
        ),
        (odd, "must be strings"),
        (
            Queue::new("q").argument("x-max-priority", "high"),
            "x-max-priority",
        ),
    ] {
        let error = within("declare", broker.declare(&queue)).await.unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(cause), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn declare_closes_its_channels() {
    let test_vhost = TestVhost::create();
    let broker = broker_at(&test_vhost.url);
    let queue = Queue::new("q").bound_to(Exchange::topic("feeds"), "feed");
    for _ in 0..100 {
        within("declare", broker.declare(&queue)).await.unwrap();
        within("depth", broker.depth(&Queue::new("missing")))
            .await
            .unwrap();
    }
    wait_until("the channels are closed", async || {
        test_vhost.channels(&["number"]).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn message_returned_too_often_moves_to_the_dead_letter_queue() {
    let test_vhost = TestVhost::create();
    let (broker, raw) = (test_vhost.broker(), test_vhost.raw().await);
    let queue = Queue::new("q").quorum().argument("x-delivery-limit", 2i64);
    send(&broker, &queue.dead_letter(), &["1"]).await;
    let rows = test_vhost.rows("list_queues", &["name", "durable"]);
    assert_eq!(rows, [["q", "true"], ["q.dead", "true"]]);

    wait_until("it is dead", async || {
        let options = BasicGetOptions::default();
        let fetched = raw.channel.basic_get("q".into(), options).await.unwrap();
        if let Some(fetched) = fetched {
            let requeue = BasicRejectOptions { requeue: true };
            let tag = fetched.delivery.delivery_tag;
            raw.channel.basic_reject(tag, requeue).await.unwrap();
        }
        test_vhost.counts("q.dead") == (1, 0)
    })
    .await;

    assert_eq!(test_vhost.counts("q"), (0, 0));
    let dead = raw.take("q.dead").await.expect("it is kept");
    let headers = dead.properties.headers().clone().unwrap();
    let reason = headers.inner()["x-first-death-reason"].as_long_string();
    assert_eq!(reason.unwrap().to_string(), "delivery_limit");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn existing_dead_letter_queue_with_other_arguments_is_used() {
    let test_vhost = TestVhost::create();
    let raw = test_vhost.raw().await;
    let limit = AMQPValue::LongInt(10);
    raw.declare("q.dead", table(&[("x-max-length", limit)]))
        .await;
    let queue = Queue::new("q").dead_letter();
    let broker = test_vhost.broker();
    send(&broker, &queue, &["1"]).await;
    let consumer = consumer(&broker, &[&queue], 1).await;
    let taken = receive_one(&*consumer).await;

    settle(&*consumer, &[Settlement::Reject(taken.tag)]).await;

    wait_until("it is dead", async || test_vhost.counts("q.dead") == (1, 0)).await;
}
