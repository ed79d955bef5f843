//! The typed API.

use serde_json::json;

use super::{ADD, XSUM, add, message, planned, shown, wire};
use crate::canvas::*;

#[test]
fn typed_signatures_build_expected_canvases() {
    let plus = |y| ADD.p((y,));
    let xsum = || XSUM.p(());
    let cases: Vec<(Canvas, &str)> = vec![
        (add(2, 2).then(plus(4)).into(), "chain(add(2, 2), add(4))"),
        (
            add(2, 2).then(plus(4)).then(plus(8)).into(),
            "chain(add(2, 2), add(4), add(8))",
        ),
        (
            add(2, 2).then(plus(4).then(plus(8))).into(),
            "chain(add(2, 2), add(4), add(8))",
        ),
        (plus(4).given((3,)).into(), "add(3, 4)"),
        (
            plus(4).then(plus(5)).given((3,)).into(),
            "chain(add(3, 4), add(5))",
        ),
        (
            add(1, 1).then(ADD.si((5, 5))).into(),
            "chain(add(1, 1), !add(5, 5))",
        ),
        (
            group([add(1, 1), add(2, 2)]).into(),
            "group(add(1, 1), add(2, 2))",
        ),
        (
            group((1..3).map(plus)).given((10,)).into(),
            "group(add(10, 1), add(10, 2))",
        ),
        (
            add(1, 1).then(group([plus(1), plus(2)])).into(),
            "chain(add(1, 1), group(add(1), add(2)))",
        ),
        // A group of one member stays a group, because its result is a list.
        (
            add(1, 1).then(group([plus(1)])).into(),
            "chain(add(1, 1), group(add(1)))",
        ),
        (
            group([add(1, 1)]).then(xsum()).into(),
            "chord(group(add(1, 1)), xsum())",
        ),
        (
            group([add(1, 1), add(2, 2)])
                .then(xsum())
                .then(plus(3))
                .into(),
            "chord(group(add(1, 1), add(2, 2)), chain(xsum(), add(3)))",
        ),
        (
            add(1, 1)
                .then(group([plus(1), plus(2)]))
                .then(xsum())
                .then(plus(3))
                .into(),
            "chain(add(1, 1), chord(group(add(1), add(2)), chain(xsum(), add(3))))",
        ),
        (
            group([add(1, 1), add(2, 2)])
                .then(group([xsum(), xsum()]))
                .then(xsum())
                .into(),
            "chord(group(add(1, 1), add(2, 2)), chord(group(xsum(), xsum()), xsum()))",
        ),
        (
            group((add(1, 1), XSUM.s((vec![1],)))).into(),
            "group(add(1, 1), xsum([1]))",
        ),
        (
            ADD.chunks([(1, 2), (3, 4), (5, 6)], 2).into(),
            "group(!celery.starmap(), !celery.starmap())",
        ),
    ];
    for (canvas, expected) in cases {
        assert_eq!(shown(&wire(canvas)), expected);
    }
}

#[test]
fn map_and_starmap_are_tasks_with_items() {
    let expected = json!({"task": wire(ADD.s((1, 1))), "it": [[1, 2], [3, 4]]});
    let starmap = wire(ADD.starmap([(1, 2), (3, 4)]));
    let mut task = expected.clone();
    task["task"]["args"] = json!([]);
    assert_eq!(starmap["kwargs"], task);
    let map = wire(XSUM.map([vec![1, 2], vec![3]]));
    assert_eq!(
        (&map["task"], &map["kwargs"]["it"]),
        (&json!("celery.map"), &json!([[1, 2], [3]]))
    );

    let add = Canvas::from(Signature::named("tasks.add", (), ()));
    let chunks = Canvas::chunks(&add, [(1, 2), (3, 4), (5, 6)], 2);
    assert_eq!(wire(chunks.clone())["kwargs"]["n"], 2);
    let plan = planned(chunks);
    let items: Vec<_> = plan
        .tasks
        .iter()
        .map(|task| message(task)["body"][1]["it"].clone())
        .collect();
    assert_eq!(items, [json!([[1, 2], [3, 4]]), json!([[5, 6]])]);
    assert_eq!(plan.result.members.unwrap().len(), 2);
}

#[test]
fn step_options_are_kept() {
    let step = ADD
        .p((2,))
        .queue("slow")
        .priority(5)
        .countdown(std::time::Duration::from_secs(3));
    let chain = add(1, 1).then(step);
    let options = &message(&planned(chain).tasks[0])["body"][2]["chain"][0]["options"];
    assert_eq!(
        (
            &options["queue"],
            &options["priority"],
            &options["countdown"]
        ),
        (&json!("slow"), &json!(5), &json!(3.0))
    );
}
