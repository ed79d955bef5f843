//! Bytes that nobody should send. The worker lives, real work goes on, and
//! each message is kept where a person can look at it.

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
}

#[cfg(feature = "zlib")]
for_each_broker! {
    decompression_bomb_is_dead_lettered: redis, rabbitmq;
}

/// Bytes, and the reason for which they end up in `celery.dead`.
type Case = (Vec<u8>, &'static str);

const MALFORMED: &str = "malformed";
const UNDECODABLE: &str = "undecodable";
const REFUSED: &str = "refused-content-type";

/// A good message, for tests to spoil.
fn good() -> Json {
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

/// The good message with another value at a JSON pointer.
fn spoilt(pointer: &str, value: impl Into<Json>) -> Vec<u8> {
    let mut message = good();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    message.pointer_mut(parent).unwrap()[name] = value.into();
    message.to_string().into_bytes()
}

fn no_json() -> Vec<Case> {
    let whole = good().to_string().into_bytes();
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

fn no_envelope() -> Vec<Case> {
    vec![
        (spoilt("/body", 5), MALFORMED),
        (spoilt("/body", json!([[2, 3], {}, {}])), MALFORMED),
        (spoilt("/headers", json!(["task"])), MALFORMED),
        (spoilt("/headers", "task"), MALFORMED),
        (spoilt("/properties", json!([])), MALFORMED),
        (spoilt("/properties", 7), MALFORMED),
        (spoilt("/properties/body_encoding", "klingon"), MALFORMED),
        // The body is not base64.
        (spoilt("/properties/body_encoding", "base64"), MALFORMED),
        (spoilt("/properties/delivery_info", "celery"), MALFORMED),
    ]
}

fn no_task() -> Vec<Case> {
    vec![
        (spoilt("/headers", Json::Null), UNDECODABLE),
        (spoilt("/headers", json!({})), UNDECODABLE),
        (spoilt("/headers/task", 5), UNDECODABLE),
        (spoilt("/headers/id", json!({"id": 1})), UNDECODABLE),
        (spoilt("/headers/retries", "many"), UNDECODABLE),
        (spoilt("/headers/eta", "soon"), UNDECODABLE),
        (spoilt("/headers/timelimit", "short"), UNDECODABLE),
        (spoilt("/body", ""), UNDECODABLE),
        (spoilt("/body", "[[2, 3], {}"), UNDECODABLE),
        (spoilt("/body", "[[2, 3]]"), UNDECODABLE),
        (spoilt("/body", "[5, {}, {}]"), UNDECODABLE),
        (spoilt("/body", "[[2, 3], [], {}]"), UNDECODABLE),
        (
            spoilt("/body", "[[2, 3], {}, {\"callbacks\": 5}]"),
            UNDECODABLE,
        ),
        (
            spoilt("/body", "[[2, 3], {}, {\"chain\": [5]}]"),
            UNDECODABLE,
        ),
        (spoilt("/body", "[".repeat(20 << 20)), UNDECODABLE),
        (
            spoilt("/headers/compression", "application/x-gzip"),
            UNDECODABLE,
        ),
        (spoilt("/headers/compression", "klingon"), UNDECODABLE),
        (
            spoilt("/content-type", "application/x-python-serialize"),
            REFUSED,
        ),
        (spoilt("/content-type", "application/klingon"), REFUSED),
        (spoilt("/content-type", Json::Null), REFUSED),
    ]
}

async fn malformed_messages_are_dead_lettered_and_worker_continues(setup: Setup) {
    let client = setup.client();
    // RabbitMQ itself reads what is around a task.
    let cases: Vec<Case> = match setup.is_on_redis() {
        true => [no_json(), no_envelope(), no_task()].concat(),
        false => no_task(),
    };

    let mut sums = Vec::new();
    let (before, while_it_works) = cases.split_at(cases.len() / 2);
    for case in before {
        sums.push(push_among_work(&setup, &client, case).await);
    }
    let worker = setup.worker().await;
    for case in while_it_works {
        sums.push(push_among_work(&setup, &client, case).await);
        if setup.is_on_redis() {
            assert_entries_are_kombus(&setup.redis);
        }
    }

    for sum in sums {
        assert_eq!(sum.get_timeout(TIMEOUT).await.unwrap(), Int(3));
    }
    let mut expected: Vec<_> = cases.iter().map(remains).collect();
    expected.sort_unstable();
    let kept = kept(&setup, expected.len()).await;
    let shown = |remains: &(String, Vec<u8>)| {
        let body = String::from_utf8_lossy(&remains.1[..remains.1.len().min(80)]).into_owned();
        format!("{}: {body}", remains.0)
    };
    let both = (kept.iter().map(shown), expected.iter().map(shown));
    assert!(
        both.0.clone().eq(both.1.clone()),
        "{:#?}",
        (both.0.collect::<Vec<_>>(), both.1.collect::<Vec<_>>())
    );
    assert!(kept == expected, "a body was changed");
    worker.stop().await;
    setup.assert_drained().await;
}

async fn push_among_work(
    setup: &Setup,
    client: &celery::Client,
    (bytes, _): &Case,
) -> AsyncResult<Number> {
    setup.push(bytes).await;
    client.send(ADD, (Int(1), Int(2))).await.unwrap()
}

/// What is to be found of a case: the reason, and the message's body where it
/// has one, else all of its bytes.
fn remains((bytes, reason): &Case) -> (String, Vec<u8>) {
    let body = match kombu::decode(&bytes.clone().into()) {
        Ok(message) if *reason != MALFORMED => message.body.to_vec(),
        _ => bytes.clone(),
    };
    ((*reason).to_owned(), body)
}

/// The messages of `celery.dead`, sorted, once there are that many: reason
/// and body.
async fn kept(setup: &Setup, count: usize) -> Vec<(String, Vec<u8>)> {
    eventually("all are kept", async || {
        (setup.depth("celery.dead").await >= count).then_some(())
    })
    .await;
    let kept = setup.messages("celery.dead").await;
    let mut kept: Vec<_> = kept
        .iter()
        .map(|message| (message.text("x-dead-reason"), message.body.to_vec()))
        .collect();
    kept.sort_unstable();
    kept
}

/// One entry of another form would make kombu's restore raise.
fn assert_entries_are_kombus(redis: &RedisServer) {
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
    // What Python compresses here would be 256 MB.
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
    let kept = setup.dead_letter().await;
    assert_eq!(kept.id(), "bomb");
    assert_eq!(kept.text("x-dead-reason"), UNDECODABLE);
    worker.stop().await;
    setup.assert_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn unacked_garbage_does_not_break_python_worker() {
    let setup = Setup::redis();
    let garbage: Vec<Case> = [no_json(), no_envelope()].concat();
    for (bytes, _) in &garbage {
        setup.redis.push("celery", bytes);
    }
    let real = setup.client().send(ADD, (Int(1), Int(2))).await.unwrap();
    take_everything_and_die(&setup, garbage.len() + 1).await;
    assert_eq!(setup.redis.depth("celery"), 0);
    assert_entries_are_kombus(&setup.redis);

    // Python gives back what it can read. It consumes another queue: garbage in
    // its own would end it, whoever has put it there.
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

    // The rest is found by the next worker of ours.
    let worker = setup.worker().await;
    assert_eq!(real.get_timeout(TIMEOUT).await.unwrap(), Int(3));
    assert_eq!(kept(&setup, garbage.len()).await.len(), garbage.len());
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

/// A consumer that is never heard of again.
async fn take_everything_and_die(setup: &Setup, count: usize) {
    let app = setup.app();
    let options = ConsumeOptions::new(vec![Queue::new("celery")], 100);
    let consumer = app.broker().consume(&options).await.unwrap();
    let mut taken = 0;
    while taken < count {
        taken += consumer.receive(100).await.unwrap().len();
    }
}

async fn messages_with_minimal_headers_run(setup: Setup) {
    let worker = setup.worker().await;
    for (producer, id) in [
        ("foreign-node", "node"),
        ("foreign-rusty-celery", "rusty"),
        // Its id is in the body.
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

/// A header that is `null` where Celery writes a value is as good as none.
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
        let mut message = good();
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
