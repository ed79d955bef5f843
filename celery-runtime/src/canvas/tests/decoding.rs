//! Errors in decoding signatures, and the limit on nesting.

use celery_protocol::Raw;
use serde_json::{Value as Json, json};

use super::{XSUM, add, planned, read, try_planned};
use crate::canvas::*;

#[test]
fn invalid_signature_error_contains_path() {
    let task = json!({"task": "t"});
    let chain = |tasks: Json| json!({"task": "celery.chain", "kwargs": {"tasks": tasks}, "subtask_type": "chain"});
    let chord =
        |kwargs: Json| json!({"task": "celery.chord", "kwargs": kwargs, "subtask_type": "chord"});
    let cases = [
        (json!(null), "", "null"),
        (json!(5), "", "cannot read"),
        (json!({"args": []}), "", "task"),
        (json!({"task": "t", "args": 5}), "", "args"),
        (chain(json!([task, null])), "tasks[1]", "null"),
        (
            chain(json!([task, chain(json!([task, 5]))])),
            "tasks[1].tasks[1]",
            "cannot read",
        ),
        (chain(json!(5)), "tasks", "cannot read"),
        (
            json!({"task": "celery.chain", "subtask_type": "chain"}),
            "tasks",
            "without tasks",
        ),
        (chord(json!({"header": [task]})), "body", "without a body"),
        (
            chord(json!({"header": [task], "body": null})),
            "body",
            "without a body",
        ),
        (chord(json!({"body": task})), "", "without a header"),
        (
            chord(json!({"header": [task, {}], "body": task})),
            "header[1]",
            "task",
        ),
        (json!({"task": "t", "subtask_type": "weird"}), "", "weird"),
        (
            json!({"task": "t", "options": {"link": [task, null]}}),
            "link[1]",
            "null",
        ),
        (
            json!({"task": "t", "options": {"priority": "high"}}),
            "",
            "priority",
        ),
    ];
    for (signature, path, part) in cases {
        let error = read(&signature).unwrap_err();
        assert_eq!(error.path(), path, "{error}");
        assert!(
            error.to_string().contains(part),
            "{part:?} is missing in {error}"
        );
    }
}

#[test]
fn deep_nesting_is_rejected() {
    let before = r#"{"task":"celery.group","subtask_type":"group","kwargs":{"tasks":["#;
    for (before, after) in [
        (before, "]}}"),
        (r#"{"task":"t","options":{"link":["#, "]}}"),
    ] {
        let deep = format!(
            "{}{{\"task\":\"t\"}}{}",
            before.repeat(10_000),
            after.repeat(10_000)
        );
        assert!(Canvas::read(&Raw::json(&deep)).is_err());
        let deep = format!(
            "{}{{\"task\":\"t\"}}{}",
            before.repeat(150),
            after.repeat(150)
        );
        let error = Canvas::read(&Raw::json(&deep)).unwrap_err();
        assert!(error.to_string().contains("100 levels"), "{error}");
        let fine = format!(
            "{}{{\"task\":\"t\"}}{}",
            before.repeat(90),
            after.repeat(90)
        );
        planned(Canvas::read(&Raw::json(&fine)).unwrap());
    }
    let built = (0..10_000).fold(Canvas::from(add(1, 1)), |canvas, _| {
        Canvas::group([canvas, add(2, 2).into()])
    });
    let error = try_planned(built).unwrap_err();
    assert!(error.to_string().contains("100 levels"), "{error}");
    let chords = (0..10_000).fold(Canvas::from(add(1, 1)), |canvas, _| {
        Canvas::chord([canvas], XSUM.p(()).into())
    });
    assert!(try_planned(chords).is_err());
    let links = (0..10_000).fold(Canvas::from(add(1, 1)), |canvas, _| {
        Canvas::from(add(1, 1)).link(&canvas)
    });
    assert!(try_planned(links).is_err());
}
