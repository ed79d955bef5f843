//! Malformed messages: the worker continues with valid tasks, and dead-letters each
//! malformed message for inspection.

use std::time::Duration;

use celery::{AsyncResult, Value};
use celery_protocol::kombu;
use celery_runtime::{ConsumeOptions, Queue};
use serde_json::{Value as Json, json};
use test_servers::RedisServer;

use crate::support::{
    MessageExt, RedisState, Setup, TIMEOUT, eventually, fast_restore, for_each_broker, start_python,
};
use crate::tasks::ADD;
use crate::tasks::Number::{self, Int};

for_each_broker! {
    malformed_messages_are_dead_lettered_and_worker_continues: redis, rabbitmq;
    messages_with_minimal_headers_run: redis, rabbitmq;
    null_headers_equal_missing_headers: redis, rabbitmq;
    retry_without_delivery_info_returns_to_its_queue: redis, rabbitmq;
}

#[cfg(feature = "zlib")]
for_each_broker! {
    decompression_bomb_is_dead_lettered: redis, rabbitmq;
}

/// A message, and the reason for which it is dead-lettered.
type Case = (Vec<u8>, &'static str);

const MALFORMED: &str = "malformed";
const UNDECODABLE: &str = "undecodable";
const REFUSED: &str = "refused-content-type";

/// A valid message, which the cases modify.
fn valid() -> Json {
    json!({
        "body": "[[2, 3], {}, {\"callbacks\": null, \"errbacks\": null, \"chain\": null, \"chord\": null}]",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "tasks.add", "id": "an-id", "retries": 0, "eta": null},
        "properties": {
            "correlation_id": "an-id",
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "delivery_tag": "a-tag",
        },
    })
}

/// The valid message with another value at a JSON pointer.
fn with_value(pointer: &str, value: impl Into<Json>) -> Vec<u8> {
    let mut message = valid();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    message.pointer_mut(parent).unwrap()[name] = value.into();
    message.to_string().into_bytes()
}

/// Messages that are no JSON object with an envelope.
fn not_json() -> Vec<Case> {
    let whole = valid().to_string().into_bytes();
    let cut = whole[..whole.len() / 2].to_vec();
    let mut not_utf8 = whole.clone();
    let place = whole.windows(5).position(|part| part == b"tasks").unwrap();
    not_utf8[place] = 0xff;
    let texts: [&[u8]; 12] = [
        b"",
        b"garbage",
        b"\xff\xfe\x00\x80",
        b"{",
        b"{}{}",
        b"null",
        b"5",
        b"\"text\"",
        b"[]",
        b"[{}, \"\", \"celery\"]",
        b"{}",
        b"{\"body\": null, \"headers\": {}, \"properties\": {}}",
    ];
    let texts = texts.map(<[u8]>::to_vec).into_iter();
    let all = texts.chain([cut, not_utf8, vec![b'['; 20 << 20]]);
    all.map(|bytes| (bytes, MALFORMED)).collect()
}

/// Messages with an invalid envelope.
fn invalid_envelopes() -> Vec<Case> {
    vec![
        (with_value("/body", 5), MALFORMED),
        (with_value("/body", json!([[2, 3], {}, {}])), MALFORMED),
        (with_value("/headers", json!(["task"])), MALFORMED),
        (with_value("/headers", "task"), MALFORMED),
        (with_value("/properties", json!([])), MALFORMED),
        (with_value("/properties", 7), MALFORMED),
        (
            with_value("/properties/body_encoding", "klingon"),
            MALFORMED,
        ),
        // The body is not base64.
        (with_value("/properties/body_encoding", "base64"), MALFORMED),
        (with_value("/properties/delivery_info", "celery"), MALFORMED),
    ]
}

/// Messages with invalid task headers or body.
fn invalid_tasks() -> Vec<Case> {
    vec![
        (with_value("/headers", Json::Null), UNDECODABLE),
        (with_value("/headers", json!({})), UNDECODABLE),
        (with_value("/headers/task", 5), UNDECODABLE),
        (with_value("/headers/id", json!({"id": 1})), UNDECODABLE),
        (with_value("/headers/retries", "many"), UNDECODABLE),
        (with_value("/headers/eta", "soon"), UNDECODABLE),
        (with_value("/headers/timelimit", "short"), UNDECODABLE),
        (with_value("/body", ""), UNDECODABLE),
        (with_value("/body", "[[2, 3], {}"), UNDECODABLE),
        (with_value("/body", "[[2, 3]]"), UNDECODABLE),
        (with_value("/body", "[5, {}, {}]"), UNDECODABLE),
        (with_value("/body", "[[2, 3], [], {}]"), UNDECODABLE),
        (
            with_value("/body", "[[2, 3], {}, {\"callbacks\": 5}]"),
            UNDECODABLE,
        ),
        (
            with_value("/body", "[[2, 3], {}, {\"chain\": [5]}]"),
            UNDECODABLE,
        ),
        (with_value("/body", "[".repeat(20 << 20)), UNDECODABLE),
        (
            with_value("/headers/compression", "application/x-gzip"),
            UNDECODABLE,
        ),
        (with_value("/headers/compression", "klingon"), UNDECODABLE),
        (
            with_value("/content-type", "application/x-python-serialize"),
            REFUSED,
        ),
        (with_value("/content-type", "application/klingon"), REFUSED),
        (with_value("/content-type", Json::Null), REFUSED),
    ]
}

async fn malformed_messages_are_dead_lettered_and_worker_continues(setup: Setup) {
    let client = setup.client();
    // On RabbitMQ the envelope is AMQP, which the server validates.
    let cases: Vec<Case> = if setup.is_on_redis() {
        [not_json(), invalid_envelopes(), invalid_tasks()].concat()
    } else {
        invalid_tasks()
    };

    let mut sums = Vec::new();
    let (before_start, while_running) = cases.split_at(cases.len() / 2);
    for case in before_start {
        sums.push(push_with_valid_task(&setup, &client, case).await);
    }
    let worker = setup.worker().await;
    for case in while_running {
        sums.push(push_with_valid_task(&setup, &client, case).await);
        if setup.is_on_redis() {
            assert_kombu_entries(&setup.redis);
        }
    }

    for sum in sums {
        assert_eq!(sum.get_timeout(TIMEOUT).await.unwrap(), Int(3));
    }
    let mut expected: Vec<_> = cases.iter().map(expected_dead_letter).collect();
    expected.sort_unstable();
    let dead = dead_letters(&setup, expected.len()).await;
    let summary = |dead: &(String, Vec<u8>)| {
        let body = String::from_utf8_lossy(&dead.1[..dead.1.len().min(80)]).into_owned();
        format!("{}: {body}", dead.0)
    };
    let both = (dead.iter().map(summary), expected.iter().map(summary));
    assert!(
        both.0.clone().eq(both.1.clone()),
        "{:#?}",
        (both.0.collect::<Vec<_>>(), both.1.collect::<Vec<_>>())
    );
    assert!(dead == expected, "a body was changed");
    worker.stop().await;
    setup.assert_drained().await;
}

async fn push_with_valid_task(
    setup: &Setup,
    client: &celery::Client,
    (bytes, _): &Case,
) -> AsyncResult<Number> {
    setup.push(bytes).await;
    client.send(ADD, (Int(1), Int(2))).await.unwrap()
}

/// The expected dead letter of a case: the reason, and the message's body if it
/// can be decoded, else all of its bytes.
fn expected_dead_letter((bytes, reason): &Case) -> (String, Vec<u8>) {
    let body = match kombu::decode(&bytes.clone().into()) {
        Ok(message) if *reason != MALFORMED => message.body.to_vec(),
        _ => bytes.clone(),
    };
    ((*reason).to_owned(), body)
}

/// Waits for `count` messages in `celery.dead` and returns their reasons and
/// bodies, sorted.
async fn dead_letters(setup: &Setup, count: usize) -> Vec<(String, Vec<u8>)> {
    eventually("all are dead-lettered", async || {
        (setup.depth("celery.dead").await >= count).then_some(())
    })
    .await;
    let dead = setup.messages("celery.dead").await;
    let mut dead: Vec<_> = dead
        .iter()
        .map(|message| (message.text("x-dead-reason"), message.body.to_vec()))
        .collect();
    dead.sort_unstable();
    dead
}

/// Asserts the form of the unacknowledged entries: kombu's restore raises for any
/// other.
fn assert_kombu_entries(redis: &RedisServer) {
    for entry in redis.unacked_entries() {
        let entry: Json = serde_json::from_str(&entry).unwrap();
        let parts = entry.as_array().expect("a list");
        assert_eq!(parts.len(), 3);
        assert!(parts[0].is_object() && parts[1].is_string() && parts[2].is_string());
    }
}

#[cfg(feature = "zlib")]
async fn decompression_bomb_is_dead_lettered(setup: Setup) {
    let worker = setup.worker().await;
    // Unpacked, the body has 256 MiB.
    let program = r#"
import zlib
headers = {"task": "tasks.add", "id": "bomb", "compression": "application/x-gzip"}
with app.connection_for_write() as connection:
    connection.Producer().publish(
        zlib.compress(b"[" + b" " * (256 << 20)), routing_key="celery", headers=headers,
        content_type="application/json", content_encoding="utf-8")
same(call("tasks.add", 1, 2), 3)
"#;
    setup.python(program).await;
    let dead = setup.dead_letter().await;
    assert_eq!(dead.id(), "bomb");
    assert_eq!(dead.text("x-dead-reason"), UNDECODABLE);
    worker.stop().await;
    setup.assert_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn unacked_garbage_does_not_break_python_worker() {
    let setup = Setup::redis();
    let garbage: Vec<Case> = [not_json(), invalid_envelopes()].concat();
    for (bytes, _) in &garbage {
        setup.redis.push("celery", bytes);
    }
    let real = setup.client().send(ADD, (Int(1), Int(2))).await.unwrap();
    receive_and_drop(&setup, garbage.len() + 1).await;
    assert_eq!(setup.redis.depth("celery"), 0);
    assert_kombu_entries(&setup.redis);

    // Python restores the deliveries that it can read. It consumes another queue,
    // since garbage in its own queue ends a Python worker.
    let python = setup
        .python_worker()
        .queues(&["other"])
        .environment("TEST_TRANSPORT_OPTIONS", fast_restore().to_string());
    let python = start_python(python).await;
    eventually("all deliveries are restored", async || {
        (setup.redis.unacked() == 0).then_some(())
    })
    .await;
    let log = python.terminate();
    assert!(
        !log.contains("Traceback") && !log.contains("CRITICAL"),
        "{log}"
    );

    // The next Rust worker finds the rest.
    let worker = setup.worker().await;
    assert_eq!(real.get_timeout(TIMEOUT).await.unwrap(), Int(3));
    assert_eq!(
        dead_letters(&setup, garbage.len()).await.len(),
        garbage.len()
    );
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

/// Receives all messages on a consumer that is dropped without settling them.
async fn receive_and_drop(setup: &Setup, count: usize) {
    let app = setup.app();
    let options = ConsumeOptions::new(vec![Queue::new("celery")], 100);
    let consumer = app.broker().consume(&options).await.unwrap();
    let mut received = 0;
    while received < count {
        received += consumer.receive(100).await.unwrap().len();
    }
}

async fn messages_with_minimal_headers_run(setup: Setup) {
    let worker = setup.worker().await;
    for (producer, id) in [
        ("foreign-node", "node"),
        ("foreign-rusty-celery", "rusty"),
        // The id of this message is in its body.
        ("foreign-v1-taskset", "id-1"),
    ] {
        let fixtures = test_servers::paths::workspace().join("celery-protocol/fixtures");
        let recorded = std::fs::read(fixtures.join(producer).with_extension("json")).unwrap();
        let recorded: Json = serde_json::from_slice(&recorded).unwrap();
        let envelope = recorded["envelope"].as_str().unwrap().replace("id-1", id);
        setup.push(envelope.as_bytes()).await;
        let result = setup.client().result::<Value>(id);
        let value = result.get_timeout(TIMEOUT).await;
        assert_eq!(value.unwrap(), 5.into(), "{producer}");
    }
    worker.stop().await;
    setup.assert_drained().await;
}

/// The old Rust crate and other producers write no `delivery_info`. The retry goes to
/// the queue that delivered the message, and not to a list with an empty name.
async fn retry_without_delivery_info_returns_to_its_queue(setup: Setup) {
    let worker = setup.worker().await;
    let mut message = valid();
    message["headers"]["id"] = "no-delivery-info".into();
    message["headers"]["task"] = "tasks.retry".into();
    message["body"] = "[[2], {}, {}]".into();
    let properties = message["properties"].as_object_mut().unwrap();
    properties.remove("delivery_info").unwrap();
    setup.push(message.to_string().as_bytes()).await;
    let result = setup.client().result::<Value>("no-delivery-info");
    assert_eq!(result.get_timeout(TIMEOUT).await.unwrap(), 2.into());
    worker.stop().await;
    setup.assert_drained().await;
}

/// A `null` header that Celery always writes with a value is ignored.
async fn null_headers_equal_missing_headers(setup: Setup) {
    let worker = setup.worker().await;
    for name in [
        "retries",
        "eta",
        "timelimit",
        "lang",
        "expires",
        "root_id",
        "ignore_result",
    ] {
        let id = format!("null-{name}");
        let mut message = valid();
        message["headers"]["id"] = id.as_str().into();
        message["headers"][name] = Json::Null;
        setup.push(message.to_string().as_bytes()).await;
        let result = setup.client().result::<Value>(id);
        let value = result.get_timeout(Duration::from_secs(5)).await;
        assert_eq!(value.unwrap(), 5.into(), "{name}");
    }
    worker.stop().await;
    setup.assert_drained().await;
}
