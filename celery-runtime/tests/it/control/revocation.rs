//! Revocation by id and by stamps, and termination.

use std::time::Duration;

use celery_protocol::{Map, Value};
use celery_runtime::{AsyncResult, Task, Tasks};

use super::{ADD, LATE, SLEEP, add, assert_revoked, run_pending, setup_with, start};
use crate::remote_control::ok;
use crate::support::{Running, Setup, within};

#[tokio::test(start_paused = true)]
async fn revoked_task_does_not_start_in_any_state() {
    let setup = Setup::new();
    let events = setup.record_events().await;
    let worker = start(&setup, 1);
    let client = setup.client();
    let unseen = AsyncResult::<i64>::clone(&client.result("unseen"));
    setup.query("revoke", [("task_id", "unseen".into())]).await;
    assert_revoked(&unseen, "revoked").await;
    client.apply(ADD.s((1, 2)).task_id("unseen")).await.unwrap();

    let blocker = client.send(SLEEP, (30,)).await.unwrap();
    let waiting = client.send(ADD, (1, 2)).await.unwrap();
    let later = ADD.s((1, 2)).countdown(Duration::from_secs(10));
    let later = client.apply(later).await.unwrap();
    run_pending().await;
    assert_eq!(setup.ids("active").await, [blocker.id()]);
    assert_eq!(setup.ids("reserved").await, [waiting.id()]);
    assert_eq!(setup.ids("scheduled").await, [later.id()]);
    let ids = [waiting.id(), later.id(), blocker.id()];
    let ids = Value::Array(ids.map(Value::from).to_vec());
    setup.query("revoke", [("task_id", ids)]).await;
    assert_revoked(&waiting, "revoked").await;
    assert_revoked(&later, "revoked").await;
    assert_eq!(events.kinds(later.id()), ["task-received"]);
    assert_eq!(within(31, blocker.get()).await.unwrap(), 30);
    run_pending().await;

    assert_eq!(events.kinds("unseen"), ["task-revoked"]);
    assert_eq!(
        events.kinds(waiting.id()),
        ["task-received", "task-revoked"]
    );
    assert_eq!(events.kinds(later.id()), ["task-received", "task-revoked"]);
    let finished = ["task-received", "task-started", "task-succeeded"];
    assert_eq!(events.kinds(blocker.id()), finished);
    worker.stop().await.unwrap();
    assert_eq!(setup.broker.unsettled(), 0);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn terminated_task_frees_its_slot() {
    let setup = Setup::new();
    let events = setup.record_events().await;
    let worker = start(&setup, 2);
    let client = setup.client();
    let early = client.send(SLEEP, (1000,)).await.unwrap();
    let late = client.send(LATE, (1000,)).await.unwrap();
    run_pending().await;
    for result in [&early, &late] {
        let id = result.id();
        let answer = setup.query("terminate", [("task_id", id.into())]).await;
        assert_eq!(answer, ok(&format!("terminate: {id}")));
        assert_revoked(result, "terminated").await;
    }
    assert!(setup.elapsed() < 1.0);
    let sum = client.send(ADD, (1, 2)).await.unwrap();
    assert_eq!(within(1, sum.get()).await.unwrap(), 3);
    for event in events.of("task-revoked") {
        assert_eq!(event.fields.get("terminated"), Some(&Value::Bool(true)));
        assert_eq!(event.fields.get("signum"), Some(&Value::Int(15)));
    }
    assert_eq!(events.of("task-revoked").len(), 2);
    worker.stop().await.unwrap();
    assert_eq!(setup.broker.unsettled(), 0);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn state_file_keeps_revocations_over_restart() {
    let folder = std::env::temp_dir().join(format!("celery-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("state.json");
    let setup = setup_with(&[("worker_state_db", path.to_str().unwrap().into())]);
    let first = start(&setup, 1);
    setup.query("revoke", [("task_id", "a".into())]).await;
    first.stop().await.unwrap();

    let second = start(&setup, 1);
    let hello = [
        ("from_node", "peer@host".into()),
        ("revoked", Value::Array(vec!["b".into()])),
    ];
    setup.query("hello", hello).await;
    // Before a crash, new revocations are written every 10 s.
    tokio::time::sleep(Duration::from_secs(25)).await;
    second.kill().await;

    let third = start(&setup, 1);
    let known = setup.query("revoked", ()).await;
    assert_eq!(known, Value::Array(vec!["a".into(), "b".into()]));
    let revoked = ADD.s((1, 2)).task_id("a");
    let revoked = setup.client().apply(revoked).await.unwrap();
    assert_revoked(&revoked, "revoked").await;
    third.stop().await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(start_paused = true)]
async fn starting_task_is_revoked_by_stamps() {
    const TRACKED: Task<(i64, i64), i64> = Task::new("tasks.tracked").track_started();
    let setup = Setup::new();
    let tasks = Tasks::new().with(TRACKED, add);
    let _worker = Running::start(setup.app.worker(tasks));
    run_pending().await;
    // The frozen backend holds up the store of STARTED.
    setup.backend.faults().freeze();
    let stamps = Map::from([("tenant", "a")]);
    let call = TRACKED.s((1, 2)).header("stamps", stamps);
    let result = setup.client().apply(call).await.unwrap();
    run_pending().await;
    let headers = Map::from([("tenant", vec!["a"])]);
    let answer = setup
        .query(
            "revoke_by_stamped_headers",
            [("headers", Value::Map(headers))],
        )
        .await;
    let expected = "headers {'tenant': ['a']} flagged as revoked, but not terminated";
    assert_eq!(answer, ok(expected));
    setup.backend.faults().thaw();
    let revoked = within(60, result.get()).await.unwrap_err();
    assert!(
        revoked.to_string().contains("TaskRevokedError"),
        "{revoked}"
    );
}
