//! Ids, positions and sizes of planned messages.

use celery_protocol::{Body, Embed, Raw, ResultTree, Serializer};
use serde_json::json;

use super::{ADD, XSUM, add, message, planned, planned_in, shown, try_planned, wire};
use crate::canvas::*;
use crate::config::WireStyle;
use crate::task::{ArgumentEncoder, arguments_of};

#[test]
fn requested_id_is_id_of_result() {
    let chain = add(1, 1).then(ADD.p((2,))).task_id("mine");
    assert_eq!(planned(chain.clone()).result.id, "mine");
    let longer = planned(chain.then(ADD.p((3,))));
    assert_eq!(longer.result.parents[0].id, "mine");
    let chord = group([add(1, 1), add(2, 2)])
        .then(XSUM.p(()))
        .task_id("mine");
    let plan = planned(chord);
    assert_eq!(plan.result.id, "mine");
    assert_ne!(plan.result.parents[0].id, "mine");
    assert_eq!(plan.chords[0].start.group_id, plan.result.parents[0].id);
    assert_eq!(planned(group([add(1, 1)]).group_id("all")).result.id, "all");
}

#[test]
fn nested_group_in_header_keeps_order() {
    // Celery reverses the order of the inner group.
    let inner = Canvas::group([add(2, 2).into(), add(3, 3).into()]);
    let chord = Canvas::chord(
        [add(1, 1).into(), inner, add(4, 4).into()],
        XSUM.p(()).into(),
    );
    let plan = planned(chord);
    let args: Vec<_> = plan
        .tasks
        .iter()
        .map(|task| message(task)["body"][0].clone())
        .collect();
    assert_eq!(
        args,
        [json!([1, 1]), json!([2, 2]), json!([3, 3]), json!([4, 4])]
    );
    let indexes: Vec<_> = plan
        .tasks
        .iter()
        .map(|task| task.options.group_index)
        .collect();
    assert_eq!(indexes, [Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!(plan.chords[0].start.size, 4);
}

#[test]
fn protocol_1_chain_links_its_steps() {
    let wire_style = WireStyle {
        linked: true,
        ..WireStyle::default()
    };
    let chain = ADD.s((1, 1)).then(ADD.p((2,))).then(ADD.p((3,)));
    let plan = planned_in(chain.into(), wire_style).unwrap();
    let [first] = plan.tasks.as_slice() else {
        panic!("one message");
    };
    let embed = &message(first)["body"][2];
    assert!(embed["chain"].is_null(), "{embed}");
    let second = &embed["callbacks"][0];
    assert_eq!(second["args"], json!([2]));
    let third = &second["options"]["link"][0];
    assert_eq!(third["args"], json!([3]));
    assert_eq!(third["options"]["task_id"], plan.result.id);
}

#[test]
fn chain_of_chords_has_linear_size() {
    let size = |chords: usize| {
        let start: Canvas = add(1, 1).into();
        let canvas = (0..chords).fold(start, |canvas, _| {
            let pair = Canvas::group([ADD.p((1,)).into(), ADD.p((2,)).into()]);
            canvas.then(pair).then(XSUM.p(()).into())
        });
        let plan = planned(canvas);
        assert_eq!(plan.later_chords.len(), chords);
        assert_eq!(plan.result.parents.len(), 2 * chords);
        plan.tasks
            .iter()
            .map(|task| message(task).to_string().len())
            .sum::<usize>()
    };
    let (short, long) = (size(50), size(500));
    assert!(long < 11 * short, "{short} and {long} bytes");
}

#[test]
fn empty_canvases_are_rejected_or_skipped() {
    let refused = |canvas: Canvas| try_planned(canvas).unwrap_err().to_string();
    assert!(refused(Canvas::chain([])).contains("empty chain"));
    let empty = || group(Vec::<Signature<i64>>::new());
    let nothing = planned(empty());
    assert!(nothing.tasks.is_empty() && nothing.result.members.unwrap().is_empty());
    // The body of a chord without a header runs at once, with no results.
    let body = planned(empty().then(XSUM.p(())));
    assert_eq!(message(&body.tasks[0])["body"][0], json!([[]]));
    assert!(body.chords.is_empty());
    let dropped = Canvas::from(add(1, 1))
        .then(Canvas::group([]))
        .then(ADD.p((2,)).into());
    assert_eq!(shown(&wire(dropped)), "chain(add(1, 1), add(2))");
    let none: Vec<Signature<i64, (i64,)>> = Vec::new();
    assert!(refused(add(1, 1).then(group(none)).into()).contains("empty group"));
}

#[test]
fn long_chain_is_not_deep() {
    let steps = (0..10_000).map(|_| Canvas::from(ADD.p((1,))));
    let plan = planned(Canvas::chain(steps).given((1,)));
    let embed: Embed<'_> = plan.tasks[0].options.embed.clone();
    assert_eq!(embed.chain().unwrap().len(), 9_999);
    assert_eq!(plan.result.parents.len(), 9_999);
}

#[test]
fn planned_task_is_decoded_unchanged() {
    let plan = planned(group([add(1, 1), add(2, 2)]).then(XSUM.p(())));
    let task = &plan.tasks[0];
    let embed = &task.options.embed;
    let body = task
        .call
        .write(&ArgumentEncoder::new(Serializer::Json, embed))
        .unwrap();
    let raw = Raw::read(Serializer::Json, &body.body).unwrap();
    let read = Body::read(&raw).unwrap();
    let chord = Canvas::read(read.embed.chord.as_ref().unwrap()).unwrap();
    assert_eq!(chord.task(), "tasks.xsum");
    let (args, _) = arguments_of(&|writer| task.call.write(writer)).unwrap();
    assert_eq!(args.as_json(), Some("[1,1]"));
    assert_eq!(
        plan.result,
        ResultTree::read(&Raw::from_value(plan.result.to_value())).unwrap()
    );
}
