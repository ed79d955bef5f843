//! Queues and exchanges of every kind of RabbitMQ, declared and used by both
//! languages with the same settings.

use celery::{Client, Signature};
use serde_json::{Value as Json, json};
use test_servers::PythonWorker;

use crate::support::{
    LANGUAGE, RECORD, RunLog, RunningWorker, Setup, TIMEOUT, eventually, for_each_broker,
    start_python, test_tasks,
};

for_each_broker! {
    rust_accepts_queues_declared_by_python: rabbitmq;
    python_accepts_queues_declared_by_rust: rabbitmq;
    unconfigured_queues_are_declared_alike: rabbitmq, quorum, native_delay;
    exchanges_route_alike_for_both_languages: rabbitmq;
    broadcast_reaches_every_worker: rabbitmq;
    rabbitmq_highest_priority_runs_first: rabbitmq;
    worker_direct_queue_reaches_one_worker: redis, rabbitmq;
}

/// One queue of every kind.
fn every_kind() -> Json {
    json!({
        "plain": {},
        "own": {"exchange": "own", "routing_key": "to own"},
        "limited": {
            "message_ttl": 60, "expires": 600, "max_length": 1000, "max_length_bytes": 1_000_000,
            "queue_arguments": {
                "x-dead-letter-exchange": "own", "x-dead-letter-routing-key": "to own",
                "x-overflow": "reject-publish",
            },
        },
        "urgent": {"max_priority": 9},
        "safe": {"queue_arguments": {"x-queue-type": "quorum"}},
        "feeds": {
            "exchange": "feeds", "exchange_type": "topic", "routing_key": "feed.#",
            "queue_arguments": {"x-queue-type": "quorum"},
        },
        "news": {"exchange": "news", "exchange_type": "fanout"},
        "colors": {
            "exchange": "colors", "exchange_type": "headers",
            "binding_arguments": {"x-match": "all", "color": "blue"},
        },
        "many": {"bindings": [
            {"exchange": "feeds", "exchange_type": "topic", "routing_key": "many.*"},
            {"exchange": "own", "routing_key": "to many"},
        ]},
        "forgetful": {"exchange": "forgetful", "durable": false},
    })
}

async fn rust_accepts_queues_declared_by_python(setup: Setup) {
    let setup = setup.set_both("task_queues", every_kind());
    let python = start_python(setup.python_worker()).await;
    assert_consumed_by(&setup.client(), "python").await;

    let worker = setup.serve(test_tasks()).await;
    assert_no_errors(python);
    assert_consumed_by_from_python(&setup, "rust").await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn python_accepts_queues_declared_by_rust(setup: Setup) {
    let setup = setup.set_both("task_queues", every_kind());
    let worker = setup.serve(test_tasks()).await;
    assert_consumed_by_from_python(&setup, "rust").await;

    let python = start_python(setup.python_worker()).await;
    worker.stop().await;
    assert_consumed_by(&setup.client(), "python").await;
    assert_no_errors(python);
    setup.assert_drained().await;
}

/// Asserts the language of the worker that consumes each queue.
async fn assert_consumed_by(client: &Client, expected: &str) {
    for queue in every_kind().as_object().unwrap().keys() {
        let call = LANGUAGE.s(()).queue(queue).header("color", "blue");
        let language = client.apply(call).await.unwrap().get_timeout(TIMEOUT).await;
        match language {
            Ok(language) => assert_eq!(language, expected, "{queue}"),
            Err(error) => panic!("{queue}: {error}"),
        }
    }
}

/// [`assert_consumed_by`] with a Python client.
async fn assert_consumed_by_from_python(setup: &Setup, expected: &str) {
    let program = format!(
        r#"
for queue in app.conf.task_queues:
    language = get(send("test.language", queue=queue, headers={{"color": "blue"}}))
    assert language == {expected:?}, (queue, language)
"#
    );
    setup.python(program).await;
}

/// Terminates a worker and asserts that its log has no errors.
fn assert_no_errors(python: PythonWorker) {
    let log = python.terminate();
    for error in ["PRECONDITION_FAILED", "Traceback", "CRITICAL"] {
        assert!(!log.contains(error), "{log}");
    }
}

async fn unconfigured_queues_are_declared_alike(setup: Setup) {
    // Declared by a client, and consumed by a worker of the other language.
    let ours = setup
        .client()
        .apply(LANGUAGE.s(()).queue("ours"))
        .await
        .unwrap();
    setup
        .python(r#"send("test.language", queue="theirs", task_id="their-own")"#)
        .await;
    let python = start_python(setup.python_worker().queues(&["celery", "ours", "theirs"])).await;
    assert_eq!(ours.get_timeout(TIMEOUT).await.unwrap(), "python");

    let worker = setup
        .app()
        .worker(test_tasks())
        .queue("ours")
        .queue("theirs");
    let worker = RunningWorker::start(worker.queue("celery")).await;
    assert_no_errors(python);
    let program = r#"
for queue in ("ours", "theirs", "celery", None):
    same(get(send("test.language", queue=queue)), "rust")
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn exchanges_route_alike_for_both_languages(setup: Setup) {
    let topic = |pattern: &str| json!({"exchange": "feeds", "exchange_type": "topic", "routing_key": pattern});
    let fanout = || json!({"exchange": "news", "exchange_type": "fanout"});
    let headers = |arguments: Json| json!({"exchange": "colors", "exchange_type": "headers", "binding_arguments": arguments});
    let setup = setup.set_both(
        "task_queues",
        json!({
            "feeds": topic("feed.#"),
            "imports": topic("*.import"),
            "left": fanout(),
            "right": fanout(),
            "blue": headers(json!({"x-match": "all", "color": "blue"})),
            "either": headers(json!({"x-match": "any", "color": "blue", "size": "small"})),
            "also": {"bindings": [
                {"exchange": "feeds", "exchange_type": "topic", "routing_key": "mail.*"},
                {"exchange": "news", "exchange_type": "fanout", "routing_key": ""},
            ]},
        }),
    );
    // Exchange, routing key, header, its value, and the expected queues.
    let cases = json!([
        ["feeds", "feed.import", "x", "", ["feeds", "imports"]],
        ["feeds", "feed.export.now", "x", "", ["feeds"]],
        ["feeds", "mail.import", "x", "", ["also", "imports"]],
        ["news", "any", "x", "", ["also", "left", "right"]],
        ["colors", "any", "color", "blue", ["blue", "either"]],
        ["colors", "any", "size", "small", ["either"]],
    ]);
    let program = format!(
        r#"
declare()
for exchange, key, header, value, _ in {cases}:
    send("test.language", exchange=exchange, routing_key=key, headers={{header: value}})
"#
    );
    setup.python(program).await;
    let client = setup.client();
    for case in cases.as_array().unwrap() {
        let [exchange, key, header, value] = [0, 1, 2, 3].map(|at| case[at].as_str().unwrap());
        let call = Signature::named("test.language", (), ());
        let call = call.exchange(exchange).routing_key(key);
        client.apply(call.header(header, value)).await.unwrap();
    }

    for queue in [
        "feeds", "imports", "left", "right", "blue", "either", "also",
    ] {
        let cases = cases.as_array().unwrap().iter();
        let expected = cases.filter(|case| case[4].as_array().unwrap().contains(&json!(queue)));
        assert_eq!(setup.depth(queue).await, 2 * expected.count(), "{queue}");
    }
    let worker = setup.serve(test_tasks()).await;
    setup.assert_drained().await;
    worker.stop().await;
}

async fn broadcast_reaches_every_worker(setup: Setup) {
    let setup = setup.set_both(
        "task_queues",
        json!({"news": {"broadcast": true}, "celery": {}}),
    );
    let ledgers = [RunLog::default(), RunLog::default()];
    let first = setup.serve(ledgers[0].tasks()).await;
    let second = setup.serve(ledgers[1].tasks()).await;
    let mut python = start_python(setup.python_worker()).await;

    setup
        .python(r#"send("test.record", (1,), queue="news", task_id="theirs")"#)
        .await;
    let ours = RECORD.s((2, 0)).queue("news").task_id("ours");
    setup.client().apply(ours).await.unwrap();

    for runs in &ledgers {
        // The tasks run concurrently, so in either order.
        eventually("both tasks run", async || {
            let mut numbers = runs.numbers();
            numbers.sort_unstable();
            (numbers == [1, 2]).then_some(())
        })
        .await;
    }
    for id in ["theirs", "ours"] {
        python.wait_for_log(&format!("Task test.record[{id}] succeeded"));
    }
    assert_no_errors(python);
    first.stop().await;
    second.stop().await;
    setup.assert_drained().await;
}

async fn worker_direct_queue_reaches_one_worker(setup: Setup) {
    let setup = setup.set_both("worker_direct", true);
    let ours = setup.app().worker(test_tasks()).hostname("rusty@here");
    let ours = RunningWorker::start(ours).await;
    let python = setup.python_worker().argument("--hostname=pythonic@here");
    let python = start_python(python).await;
    let program = r#"
for _ in range(5):
    same(get(send("test.language", queue="rusty@here.dq2")), "rust")
    same(get(send("test.language", exchange="C.dq2", routing_key="pythonic@here")), "python")
"#;
    setup.python(program).await;
    let client = setup.client();
    for _ in 0..5 {
        let call = LANGUAGE.s(()).queue("pythonic@here.dq2");
        let language = client.apply(call).await.unwrap().get_timeout(TIMEOUT).await;
        assert_eq!(language.unwrap(), "python");
        let call = LANGUAGE.s(()).exchange("C.dq2").routing_key("rusty@here");
        let language = client.apply(call).await.unwrap().get_timeout(TIMEOUT).await;
        assert_eq!(language.unwrap(), "rust");
    }
    assert_no_errors(python);
    ours.stop().await;
    setup.assert_drained().await;
}

async fn rabbitmq_highest_priority_runs_first(setup: Setup) {
    let setup = setup
        .set_both("task_queue_max_priority", 10)
        .set_both("task_default_priority", 5);

    send_with_priorities(&setup).await;
    let runs = RunLog::default();
    let worker = setup.app().worker(runs.tasks()).concurrency(1);
    let worker = RunningWorker::start(worker.prefetch_multiplier(1)).await;
    eventually("all tasks have run", async || {
        (runs.numbers().len() == BY_PRIORITY.len()).then_some(())
    })
    .await;
    assert_eq!(runs.numbers(), BY_PRIORITY);
    worker.stop().await;

    send_with_priorities(&setup).await;
    let python = start_python(setup.python_worker().argument("--prefetch-multiplier=1")).await;
    setup.assert_drained().await;
    let log = python.terminate();
    let places =
        BY_PRIORITY.map(|number| log.find(&format!("test.record[mark-{number}] received")));
    assert!(places.is_sorted(), "{places:?}\n{log}");
    assert!(places[0].is_some(), "{log}");
}

/// The numbers sent below, by descending priority: 10, 9, 8, 5, 2, 1, 0.
const BY_PRIORITY: [i64; 13] = [3, 13, 1, 11, 5, 15, 2, 12, 0, 10, 16, 4, 14];

async fn send_with_priorities(setup: &Setup) {
    let program = r#"
# Celery applies the default priority only to registered tasks.
@app.task(name="test.record")
def mark(number):
    pass

for number, priority in enumerate([2, 9, None, 10, 0, 8]):
    options = {} if priority is None else {"priority": priority}
    mark.apply_async((number,), task_id=f"mark-{number}", **options)
"#;
    setup.python(program).await;
    let client = setup.client();
    let mark = |number: i64| RECORD.s((number, 0)).task_id(format!("mark-{number}"));
    for call in [
        mark(10).priority(2),
        mark(11).priority(9),
        mark(12),
        mark(13).priority(10),
        mark(14).priority(0),
        RECORD.priority(8).s((15, 0)).task_id("mark-15"),
    ] {
        client.apply(call).await.unwrap();
    }
    let routed = setup.set("task_routes", json!({"test.*": {"priority": 1}}));
    routed.client().apply(mark(16)).await.unwrap();
}
