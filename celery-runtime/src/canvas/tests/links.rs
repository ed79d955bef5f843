//! Callbacks, errbacks and stamps.

use serde_json::json;

use super::{ADD, XSUM, add, message, planned, planned_in};
use crate::canvas::*;
use crate::config::WireStyle;

#[test]
fn links_are_placed_as_by_celery() {
    let back = ADD.p((9,));
    let linked = |canvas: Canvas, path: &str| {
        let plan = planned(canvas);
        let bodies: Vec<_> = plan
            .tasks
            .iter()
            .map(|task| message(task)["body"][2].clone())
            .collect();
        json!(bodies).pointer(path).cloned().unwrap_or_default()
    };
    let chain = || add(1, 1).then(ADD.p((2,)));
    let name = json!("tasks.add");
    assert_eq!(
        linked(add(1, 1).link(&back).into(), "/0/callbacks/0/task"),
        name
    );
    assert_eq!(
        linked(chain().link(&back).into(), "/0/chain/0/options/link/0/task"),
        name
    );
    assert_eq!(
        linked(chain().link_error(&back).into(), "/0/errbacks/0/task"),
        name
    );
    assert_eq!(
        linked(
            chain().link_error(&back).into(),
            "/0/chain/0/options/link_error/0/task"
        ),
        name
    );
    let chord = || group([add(1, 1), add(2, 2)]).then(XSUM.p(()));
    assert_eq!(
        linked(chord().link(&back).into(), "/1/chord/options/link/0/task"),
        name
    );
    assert_eq!(
        linked(
            chord().link_error(&back).into(),
            "/1/chord/options/link_error/0/task"
        ),
        name
    );
    assert_eq!(
        linked(chord().link_error(&back).into(), "/1/errbacks"),
        json!(null)
    );
    let group = || group([add(1, 1), add(2, 2)]);
    assert_eq!(
        linked(group().link_error(&back).into(), "/1/errbacks/0/task"),
        name
    );
    let first = linked(
        group().with(|all| all.link(&back)).into(),
        "/0/callbacks/0/immutable",
    );
    assert_eq!(first, json!(true));
    // A step that is appended to a chain with links does not get its links.
    let longer = chain().link_error(&back).then(ADD.p((3,)));
    assert_eq!(
        linked(longer.into(), "/0/chain/0/options/link_error"),
        json!(null)
    );
}

#[test]
fn stamp_is_added_to_every_part() {
    let errback = Signature::named("tasks.note", (), ());
    let chord = group([add(1, 1).stamp("own", 1), add(2, 2)]).then(XSUM.p(()));
    let canvas = chord.link_error(&errback).stamp("env", "prod");
    let plan = planned(canvas);
    let first = message(&plan.tasks[0]);
    assert_eq!(first["headers"]["stamps"], json!({"own": 1, "env": "prod"}));
    assert_eq!(first["headers"]["stamped_headers"], json!(["own", "env"]));
    let body = &first["body"][2]["chord"]["options"];
    assert_eq!(
        (&body["env"], &body["stamped_headers"]),
        (&json!("prod"), &json!(["env"]))
    );
    assert_eq!(body["link_error"][0]["options"]["env"], "prod");
}

#[test]
fn visitor_stamps_by_part_and_lists_are_concatenated() {
    let mut seen = Vec::new();
    let canvas = add(1, 1)
        .then(group([ADD.p((1,)), ADD.p((2,))]))
        .stamp("tenant", vec!["a"]);
    let canvas = canvas.stamp_with(&mut |part: StampTarget<'_>| {
        seen.push(format!("{part:?}"));
        match part {
            StampTarget::Chain => celery_protocol::Map::from([("tenant", vec!["b"])]),
            _ => celery_protocol::Map::new(),
        }
    });
    assert_eq!(seen[0], "Chain");
    assert!(seen.contains(&"Group".to_owned()));
    let first = message(&planned(canvas).tasks[0]);
    assert_eq!(first["headers"]["stamps"]["tenant"], json!(["a", "b"]));
}

#[test]
fn chord_errbacks_are_linked_to_header_when_configured() {
    let wire_style = WireStyle {
        header_errbacks: true,
        ..WireStyle::default()
    };
    let header = group([ADD.s((1, 1)), ADD.s((2, 2))]);
    let chord = header.then(XSUM.p(())).link_error(&XSUM.p(()));
    for (wire_style, expected) in [
        (wire_style, json!(true)),
        (WireStyle::default(), json!(null)),
    ] {
        let plan = planned_in(chord.clone().into(), wire_style).unwrap();
        for task in &plan.tasks {
            let message = message(task);
            let embed = &message["body"][2];
            assert_eq!(embed["errbacks"][0]["immutable"], expected);
            let body = &embed["chord"]["options"]["link_error"];
            assert_eq!(body[0]["immutable"], json!(false));
        }
    }
}
