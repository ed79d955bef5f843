//! Workflows in messages that cannot be decoded, or hold hostile values.

use std::collections::HashMap;

use celery_protocol::{ResultTree, Value};
use celery_runtime::{Canvas, ChordStart, ChordStore, ResultBackend};

use super::{ADD, SUM, start};
use crate::support::{Setup, within};

const JSON: &str = "application/json";

/// Pushes a message of `tasks.add` with this body.
async fn push(setup: &Setup, id: &str, body: String) {
    let headers = format!(r#"{{"task": "tasks.add", "id": "{id}", "root_id": "{id}"}}"#);
    setup.push(&headers, JSON, body).await;
}

/// Returns a chain in chains, this many levels deep.
fn nested_chain(levels: usize) -> String {
    let open = r#"{"task": "celery.chain", "subtask_type": "chain", "args": [], "options": {}, "kwargs": {"tasks": ["#;
    let end =
        r#"{"task": "tasks.add", "args": [], "kwargs": {}, "options": {}, "subtask_type": null}"#;
    format!("{}{end}{}", open.repeat(levels), "]}}".repeat(levels))
}

/// Returns a chord with this body.
fn chord(body: &str) -> String {
    format!(
        r#"{{"task": "celery.chord", "subtask_type": "chord", "args": [], "options": {{}},
            "kwargs": {{"header": [{}], "body": {body}}}}}"#,
        nested_chain(0)
    )
}

/// Returns workflows that cannot be decoded: a task id, the third part of the body, and a
/// word of the error.
fn malformed_workflows() -> [(&'static str, String, &'static str); 8] {
    let deep = nested_chain(10_000);
    [
        (
            "no-map",
            r#"{"callbacks": ["tasks.add"]}"#.to_owned(),
            "callbacks",
        ),
        ("no-list", r#"{"errbacks": 7}"#.to_owned(), "errbacks"),
        (
            "no-task",
            r#"{"callbacks": [{"args": []}]}"#.to_owned(),
            "callbacks",
        ),
        ("null-in-chain", r#"{"chain": [null]}"#.to_owned(), "chain"),
        (
            "no-body",
            format!(r#"{{"chain": [{}]}}"#, chord("null")),
            "body",
        ),
        (
            "bad-kind",
            r#"{"callbacks": [{"task": "x", "subtask_type": "tree"}]}"#.to_owned(),
            "tree",
        ),
        ("deep", format!(r#"{{"callbacks": [{deep}]}}"#), "levels"),
        ("deep-chain", format!(r#"{{"chain": [{deep}]}}"#), "levels"),
    ]
}

#[tokio::test(start_paused = true)]
async fn malformed_workflow_fails_only_its_task() {
    let (setup, _, _worker) = start();
    let cases = malformed_workflows();
    for (id, embed, _) in &cases {
        push(&setup, id, format!("[[1, 2], {{}}, {embed}]")).await;
    }
    for (id, _, expected) in &cases {
        let result = setup.client().result::<i64>(*id);
        let error = within(60, result.get()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{id}: {error}");
    }
    // A body that is an empty group, and one that has no id, are run.
    let empty = r#"{"task": "celery.group", "subtask_type": "group", "kwargs": {"tasks": []}}"#;
    let embed = format!(r#"{{"chain": [{}]}}"#, chord(empty));
    push(&setup, "empty", format!("[[1, 2], {{}}, {embed}]")).await;
    let result = setup.client().result::<i64>("empty");
    assert_eq!(within(60, result.get()).await.unwrap(), 3);
    // The worker still runs tasks.
    let result = setup.client().apply(ADD.s((1, 2))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 3);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn cyclic_result_tree_is_read_once() {
    let (setup, _, _worker) = start();
    let cyclic = ResultTree::group("loop", vec![ResultTree::task("loop")]);
    setup.backend.store_group(&cyclic).await.unwrap();
    let started = ChordStart::new("loop", 1, &ResultTree::group("loop", vec![cyclic]));
    setup.backend.begin(&started).await.unwrap();
    let body = Canvas::from(SUM.p(()))
        .set("task_id", "body")
        .to_wire()
        .unwrap();
    let embed = format!(r#"{{"chord": {}}}"#, body.as_json().unwrap());
    let headers = r#"{"task": "tasks.add", "id": "loop", "group": "loop", "group_index": 0}"#;
    let body = format!("[[1, 2], {{}}, {embed}]");
    setup.push(headers, JSON, body).await;
    let result = setup.client().result::<i64>("body");
    let error = within(60, result.get()).await.unwrap_err();
    assert!(error.to_string().contains("TypeError"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn huge_number_in_message_does_not_stop_worker() {
    let (setup, _, _worker) = start();
    for option in ["countdown", "expires"] {
        let step = format!(
            r#"{{"task": "tasks.add", "args": [1], "kwargs": {{}}, "options": {{"{option}": 1e19}}}}"#
        );
        push(
            &setup,
            option,
            format!(r#"[[1, 2], {{}}, {{"callbacks": [{step}]}}]"#),
        )
        .await;
        let result = setup.client().result::<i64>(option);
        assert_eq!(within(60, result.get()).await.unwrap(), 3);
    }
    let kwargs: HashMap<_, _> = [("interval", 1e19)].into();
    let result = Value::Array(vec![ResultTree::task("never").to_value()]);
    let args = ("gid", Value::Null, kwargs["interval"], Value::Null, result);
    let client = setup.client();
    client
        .send_by_name("celery.chord_unlock", args, ())
        .await
        .unwrap();
    let result = client.apply(ADD.s((1, 2))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 3);
}
