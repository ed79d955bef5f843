//! Messages that a worker cannot run.

use std::time::Duration;

use celery_protocol::Message;
use celery_runtime::{Broker, OnUnknown, Publication, ResultError, Task, TaskError, Tasks};

use crate::support::{Running, Setup, within};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
const NEW: Task<(i64,), i64> = Task::new("tasks.new").params(&["x"]);

async fn add(x: i64, y: i64) -> Result<i64, TaskError> {
    Ok(x + y)
}

fn reason(message: &Message) -> String {
    let raw = message.headers.find("x-dead-reason").unwrap().unwrap();
    raw.decode().unwrap()
}

#[tokio::test(start_paused = true)]
async fn unknown_task_is_dead_lettered_and_fails() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let result = setup.client().send(NEW, (7,)).await.unwrap();
    match within(5, result.get()).await.unwrap_err() {
        ResultError::Task(failure) => {
            assert_eq!(failure.exception.to_string(), "NotRegistered('tasks.new')");
        }
        other => panic!("{other}"),
    }
    let kept = within(5, setup.take("celery.dead")).await;
    assert_eq!(reason(&kept), "unregistered");
    assert_eq!(setup.depth("celery").await, 0);

    // Published again unchanged, it runs in a worker with this task.
    setup
        .broker
        .publish(&[Publication::to_queue(kept, "new")])
        .await;
    let tasks = Tasks::new().with(NEW, async |x: i64| Ok::<_, TaskError>(x));
    let _second = Running::start(setup.app.worker(tasks).queue("new"));
    let again = setup.client().result::<i64>(result.id());
    while !matches!(again.get().await, Ok(7)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_protocol_1_task_is_dead_lettered_unchanged() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let body = br#"{"task": "tasks.new", "id": "v1", "args": [7], "kwargs": {}}"#;
    setup.push("{}", "application/json", &body[..]).await;
    let result = setup.client().result::<i64>("v1");
    match within(5, result.get()).await.unwrap_err() {
        ResultError::Task(failure) => assert_eq!(failure.exception.exc_type, "NotRegistered"),
        other => panic!("{other}"),
    }
    let kept = within(5, setup.take("celery.dead")).await;
    assert_eq!(kept.body, body[..]);
}

const HEADERS: &str = r#"{"task": "tasks.add", "id": "a"}"#;

/// Messages that a worker cannot decode: headers, content type, body, and the reason in
/// the dead letter.
const UNDECODABLE: &[(&str, &str, &[u8], &str)] = &[
    (HEADERS, "application/json", b"[[1, 2], {}", "undecodable"),
    (HEADERS, "application/json", b"\xff\xfe\x00", "undecodable"),
    (HEADERS, "application/json", b"[1, {}, {}]", "undecodable"),
    (HEADERS, "application/json", b"[[], [], {}]", "undecodable"),
    (
        HEADERS,
        "application/x-python-serialize",
        b"\x80\x04.",
        "refused-content-type",
    ),
    (
        r#"{"task": "tasks.add", "id": "b", "eta": "soon"}"#,
        "application/json",
        b"[[1, 2], {}, {}]",
        "undecodable",
    ),
    (
        r#"{"task": "tasks.add"}"#,
        "application/json",
        b"[[1, 2], {}, {}]",
        "undecodable",
    ),
    ("{}", "application/json", b"[]", "undecodable"),
    (
        HEADERS,
        "application/json",
        br#"[[1, 2], {}, {"chord": {"args": [], "kwargs": {}, "options": {}}}]"#,
        "undecodable",
    ),
    (
        HEADERS,
        "application/json",
        br#"[[1, 2], {}, {"chain": [null]}]"#,
        "undecodable",
    ),
];

#[tokio::test(start_paused = true)]
async fn undecodable_message_is_dead_lettered_while_others_run() {
    let setup = Setup::new();
    for (headers, content_type, body, _) in UNDECODABLE {
        setup.push(headers, content_type, *body).await;
    }
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let result = setup.client().send(ADD, (1, 2)).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 3);
    // A message whose failure is stored first is dead-lettered a little later.
    let mut left: Vec<_> = UNDECODABLE.iter().collect();
    while !left.is_empty() {
        let kept = within(5, setup.take("celery.dead")).await;
        let place = left.iter().position(|(_, content_type, body, expected)| {
            kept.body == **body
                && kept.properties.content_type == *content_type
                && reason(&kept) == *expected
        });
        let place = place.unwrap_or_else(|| panic!("{} {:?}", reason(&kept), kept.body));
        left.remove(place);
    }
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn requeued_unknown_task_waits_for_worker_with_it() {
    let setup = Setup::new();
    let tasks = Tasks::new().with(ADD, add);
    let worker = setup
        .app
        .worker(tasks)
        .on_unknown(OnUnknown::Requeue(Duration::from_secs(5)));
    let old = Running::start(worker);
    let result = setup.client().send(NEW, (7,)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!result.ready().await.unwrap());
    let tasks = Tasks::new().with(NEW, async |x: i64| Ok::<_, TaskError>(x));
    let _new = setup.start(tasks);
    old.stop().await.unwrap();
    assert_eq!(within(60, result.get()).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn rejected_unknown_task_is_dropped() {
    let setup = Setup::new();
    let worker = setup
        .app
        .worker(Tasks::new().with(ADD, add))
        .on_unknown(OnUnknown::Reject);
    let _worker = Running::start(worker);
    let result = setup.client().send(NEW, (7,)).await.unwrap();
    within(5, result.get()).await.unwrap_err();
    assert_eq!(setup.depth("celery.dead").await, 0);
    assert_eq!(setup.depth("celery").await, 0);
}
