//! What is sent for canvases of every shape, beside what Celery sends.

use celery_protocol::{Body, Embed, Raw, ResultTree, Serializer};
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use crate::canvas::*;
use crate::config::WireStyle;
use crate::task::{ArgumentEncoder, Task, arguments_of};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
const XSUM: Task<(Vec<i64>,), i64> = Task::new("tasks.xsum").params(&["numbers"]);

/// A plan with ids in the order in which they were made.
fn planned(canvas: impl Into<Canvas>) -> Plan {
    try_planned(canvas.into()).unwrap()
}

fn try_planned(canvas: Canvas) -> Result<Plan, CanvasError> {
    planned_in(canvas, WireStyle::default())
}

fn planned_in(canvas: Canvas, wire_style: WireStyle) -> Result<Plan, CanvasError> {
    let mut number = 0;
    let ids = IdSource {
        fresh: &mut || {
            number += 1;
            format!("fresh-{number}")
        },
        reply_to: "replies",
        chords: Vec::new(),
        wire_style,
    };
    plan(canvas.taken_apart()?, &PlanContext::default(), ids)
}

fn parsed(raw: &Raw<'_>) -> Json {
    serde_json::from_str(raw.as_json().unwrap()).unwrap()
}

fn wire(canvas: impl Into<Canvas>) -> Json {
    parsed(&canvas.into().to_wire().unwrap())
}

fn read(canvas: &Json) -> Result<Canvas, CanvasError> {
    Canvas::read(&Raw::json(&canvas.to_string()))
}

fn message(letter: &PlannedTask) -> Json {
    let options = &letter.options;
    let body = letter
        .call
        .write(&ArgumentEncoder::new(Serializer::Json, &options.embed))
        .unwrap()
        .body;
    let body: Json = serde_json::from_slice(&body).unwrap();
    let id = options.task_id.clone();
    let stamped: Vec<_> = options.stamps.keys().map(|name| name.as_str()).collect();
    json!({
        "headers": {
            "task": letter.call.task, "id": id, "group": options.group_id,
            "group_index": options.group_index, "root_id": options.root_id.clone().or(id),
            "parent_id": options.parent_id,
            "stamped_headers": (!stamped.is_empty()).then_some(stamped),
            "stamps": serde_json::to_value(&options.stamps).unwrap(),
            "replaced_task_nesting": options.replaced_task_nesting,
        },
        "body": body,
        "queue": options.queue.as_deref().unwrap_or("celery"),
        "priority": options.priority,
    })
}

/// What is sent, as the fixtures have it.
fn sent(plan: &Plan) -> Json {
    let sizes = plan
        .chords
        .iter()
        .map(|one| json!([one.start.group_id, one.start.size]));
    let trees = plan.chords.iter().filter_map(|one| {
        let one = &one.start;
        let tree = one.tree.as_ref()?;
        Some(json!([one.group_id, {"result": tree.to_value()}]))
    });
    json!({
        "sent": plan.letters.iter().map(message).collect::<Vec<_>>(),
        "sizes": sizes.collect::<Vec<_>>(),
        "trees": trees.collect::<Vec<_>>(),
        "result": plan.result.to_value(),
    })
}

/// Ids by the order in which they appear, entries in one order, and no empty or
/// null ones: what is the same for every reader looks the same.
fn normal(value: &Json) -> Json {
    let mut ids = std::collections::HashMap::new();
    normal_in(&sorted(value), &mut ids)
}

fn sorted(value: &Json) -> Json {
    match value {
        Json::Object(entries) => {
            let mut names: Vec<_> = entries.keys().collect();
            names.sort_unstable();
            let entry = |name: &&String| {
                let value = sorted(&entries[*name]);
                // Of Celery's own; they mean nothing to who reads them.
                let noise = matches!(name.as_str(), "add_to_parent" | "stamped_headers");
                let nothing = value.is_null() || value == json!([]) || value == json!({});
                (!noise && !nothing).then(|| ((*name).clone(), value))
            };
            Json::Object(names.iter().filter_map(entry).collect())
        }
        Json::Array(all) => Json::Array(all.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn normal_in(value: &Json, ids: &mut std::collections::HashMap<String, String>) -> Json {
    match value {
        Json::String(text) if text.starts_with("id-") || text.starts_with("fresh-") => {
            let next = format!("#{}", ids.len());
            Json::String(ids.entry(text.clone()).or_insert(next).clone())
        }
        Json::String(text) if text == "replies" => normal_in(&json!("id-replies"), ids),
        Json::Array(all) => all.iter().map(|one| normal_in(one, ids)).collect(),
        Json::Object(entries) => {
            let entry = |(name, value): (&String, &Json)| (name.clone(), normal_in(value, ids));
            Json::Object(entries.iter().map(entry).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

fn cases() -> Map<String, Json> {
    let text = include_str!("../../fixtures/canvas.json");
    let fixtures: Json = serde_json::from_str(text).unwrap();
    fixtures["cases"].as_object().unwrap().clone()
}

/// Not the same on purpose: where the body of a chord is a chain, Celery's
/// result forgets the steps between body and header; and a chord at the end of a
/// chain in a header has another id there than in its message.
const OTHER_RESULTS: [&str; 4] = [
    "chord-body-chain",
    "chord-of-chains",
    "chord-chord-chord",
    "chord-header-chain-ending-in-chord",
];

#[test]
fn every_canvas_is_sent_as_celery_sends_it() {
    let mut wrong = Vec::new();
    for (name, case) in cases() {
        let plan = planned(read(&case["canvas"]).unwrap());
        let mut ours = sent(&plan);
        let mut theirs = case.clone();
        theirs.as_object_mut().unwrap().remove("canvas");
        if OTHER_RESULTS.contains(&name.as_str()) {
            for one in [&mut ours, &mut theirs] {
                one.as_object_mut().unwrap().remove("result");
            }
        }
        if normal(&ours) != normal(&theirs) {
            wrong.push(format!(
                "{name}\n ours {}\n celery's {}",
                normal(&ours),
                normal(&theirs)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_signature_is_written_as_it_was_read() {
    for (name, case) in cases() {
        let canvas = read(&case["canvas"]).unwrap();
        assert_eq!(sorted(&wire(canvas)), sorted(&case["canvas"]), "{name}");
        // And the frozen ones that travel in messages.
        for message in case["sent"].as_array().unwrap() {
            let embed = &message["body"][2];
            let chain = embed["chain"].as_array().into_iter().flatten();
            for signature in chain.chain(Some(&embed["chord"]).filter(|raw| !raw.is_null())) {
                let again = wire(read(signature).unwrap());
                assert_eq!(sorted(&again), sorted(signature), "{name}");
            }
        }
    }
}

fn add(x: i64, y: i64) -> Signature<i64> {
    ADD.s((x, y))
}

#[test]
fn the_typed_calls_are_what_they_say() {
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
        // A group stays one whatever its length: its result is a list.
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

/// A signature in short.
fn shown(wire: &Json) -> String {
    let all = |list: &Json| {
        let list = list.as_array().unwrap();
        list.iter().map(shown).collect::<Vec<_>>().join(", ")
    };
    let kwargs = &wire["kwargs"];
    match wire["subtask_type"].as_str() {
        Some("chord") => format!(
            "chord(group({}), {})",
            all(&kwargs["header"]),
            shown(&kwargs["body"])
        ),
        Some(kind) => format!("{kind}({})", all(&kwargs["tasks"])),
        None => {
            let task = wire["task"].as_str().unwrap().trim_start_matches("tasks.");
            let args = wire["args"].as_array().unwrap();
            let args: Vec<_> = args.iter().map(Json::to_string).collect();
            let immutable = if wire["immutable"] == true { "!" } else { "" };
            format!("{immutable}{task}({})", args.join(", "))
        }
    }
}

#[test]
fn maps_are_tasks_with_their_items() {
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
        .letters
        .iter()
        .map(|one| message(one)["body"][1]["it"].clone())
        .collect();
    assert_eq!(items, [json!([[1, 2], [3, 4]]), json!([[5, 6]])]);
    assert_eq!(plan.result.members.unwrap().len(), 2);
}

#[test]
fn links_go_where_celery_puts_them() {
    let back = ADD.p((9,));
    let linked = |canvas: Canvas, path: &str| {
        let plan = planned(canvas);
        let bodies: Vec<_> = plan
            .letters
            .iter()
            .map(|one| message(one)["body"][2].clone())
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
    // What is put behind a chain that has links is not called back, too.
    let longer = chain().link_error(&back).then(ADD.p((3,)));
    assert_eq!(
        linked(longer.into(), "/0/chain/0/options/link_error"),
        json!(null)
    );
}

#[test]
fn stamps_reach_every_part() {
    let errback = Signature::named("tasks.note", (), ());
    let chord = group([add(1, 1).stamp("own", 1), add(2, 2)]).then(XSUM.p(()));
    let canvas = chord.link_error(&errback).stamp("env", "prod");
    let plan = planned(canvas);
    let first = message(&plan.letters[0]);
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
fn visitors_stamp_by_part_and_lists_are_joined() {
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
    let first = message(&planned(canvas).letters[0]);
    assert_eq!(first["headers"]["stamps"]["tenant"], json!(["a", "b"]));
}

#[test]
fn ids_asked_for_are_those_of_the_results() {
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
fn groups_inside_of_headers_stay_in_their_order() {
    // Celery turns the order of the inner group round.
    let inner = Canvas::group([add(2, 2).into(), add(3, 3).into()]);
    let chord = Canvas::chord(
        [add(1, 1).into(), inner, add(4, 4).into()],
        XSUM.p(()).into(),
    );
    let plan = planned(chord);
    let args: Vec<_> = plan
        .letters
        .iter()
        .map(|one| message(one)["body"][0].clone())
        .collect();
    assert_eq!(
        args,
        [json!([1, 1]), json!([2, 2]), json!([3, 3]), json!([4, 4])]
    );
    let indexes: Vec<_> = plan
        .letters
        .iter()
        .map(|one| one.options.group_index)
        .collect();
    assert_eq!(indexes, [Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!(plan.chords[0].start.size, 4);
}

#[test]
fn protocol_1_links_the_steps_of_a_chain() {
    let wire_style = WireStyle {
        linked: true,
        ..WireStyle::default()
    };
    let chain = ADD.s((1, 1)).then(ADD.p((2,))).then(ADD.p((3,)));
    let plan = planned_in(chain.into(), wire_style).unwrap();
    let [first] = plan.letters.as_slice() else {
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
fn errbacks_of_a_chord_may_be_its_headers_too() {
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
        for letter in &plan.letters {
            let message = message(letter);
            let embed = &message["body"][2];
            assert_eq!(embed["errbacks"][0]["immutable"], expected);
            let body = &embed["chord"]["options"]["link_error"];
            assert_eq!(body[0]["immutable"], json!(false));
        }
    }
}

#[test]
fn a_chain_of_chords_grows_with_its_length() {
    let size = |chords: usize| {
        let start: Canvas = add(1, 1).into();
        let canvas = (0..chords).fold(start, |canvas, _| {
            let pair = Canvas::group([ADD.p((1,)).into(), ADD.p((2,)).into()]);
            canvas.then(pair).then(XSUM.p(()).into())
        });
        let plan = planned(canvas);
        assert_eq!(plan.later_chords.len(), chords);
        assert_eq!(plan.result.parents.len(), 2 * chords);
        plan.letters
            .iter()
            .map(|one| message(one).to_string().len())
            .sum::<usize>()
    };
    let (short, long) = (size(50), size(500));
    assert!(long < 11 * short, "{short} and {long} bytes");
}

#[test]
fn empty_ones() {
    let refused = |canvas: Canvas| try_planned(canvas).unwrap_err().to_string();
    assert!(refused(Canvas::chain([])).contains("empty chain"));
    let empty = || group(Vec::<Signature<i64>>::new());
    let nothing = planned(empty());
    assert!(nothing.letters.is_empty() && nothing.result.members.unwrap().is_empty());
    // The body of a chord without a header runs at once, with no results.
    let body = planned(empty().then(XSUM.p(())));
    assert_eq!(message(&body.letters[0])["body"][0], json!([[]]));
    assert!(body.chords.is_empty());
    let dropped = Canvas::from(add(1, 1))
        .then(Canvas::group([]))
        .then(ADD.p((2,)).into());
    assert_eq!(shown(&wire(dropped)), "chain(add(1, 1), add(2))");
    let none: Vec<Signature<i64, (i64,)>> = Vec::new();
    assert!(refused(add(1, 1).then(group(none)).into()).contains("empty group"));
}

#[test]
fn what_is_no_signature_says_where() {
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
    for (signature, place, part) in cases {
        let error = read(&signature).unwrap_err();
        assert_eq!(error.place(), place, "{error}");
        assert!(
            error.to_string().contains(part),
            "{part:?} is missing in {error}"
        );
    }
}

#[test]
fn ten_thousand_levels_are_an_error() {
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

#[test]
fn a_long_chain_is_no_deep_one() {
    let steps = (0..10_000).map(|_| Canvas::from(ADD.p((1,))));
    let plan = planned(Canvas::chain(steps).given((1,)));
    let embed: Embed<'_> = plan.letters[0].options.embed.clone();
    assert_eq!(embed.chain().unwrap().len(), 9_999);
    assert_eq!(plan.result.parents.len(), 9_999);
}

#[test]
fn options_of_steps_are_kept() {
    let step = ADD
        .p((2,))
        .queue("slow")
        .priority(5)
        .countdown(std::time::Duration::from_secs(3));
    let chain = add(1, 1).then(step);
    let options = &message(&planned(chain).letters[0])["body"][2]["chain"][0]["options"];
    assert_eq!(
        (
            &options["queue"],
            &options["priority"],
            &options["countdown"]
        ),
        (&json!("slow"), &json!(5), &json!(3.0))
    );
}

fn canvases() -> impl Strategy<Value = Canvas> {
    let leaf = (0..5_i64, any::<bool>(), 0..3).prop_map(|(number, immutable, option)| {
        let task = Canvas::from(Signature::named("tasks.add", (number,), ()));
        let task = match option {
            0 => task.set("queue", "slow").set("mine", vec![number]),
            1 => task.stamp("env", number),
            _ => task,
        };
        if immutable { task.immutable() } else { task }
    });
    leaf.prop_recursive(5, 40, 4, |inner| {
        let several = || proptest::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            several().prop_map(Canvas::chain),
            several().prop_map(Canvas::group),
            (several(), inner.clone()).prop_map(|(header, body)| Canvas::chord(header, body)),
            (inner.clone(), inner.clone()).prop_map(|(one, next)| one.then(next)),
            (inner.clone(), inner.clone()).prop_map(|(one, link)| one.link(&link)),
            (inner.clone(), inner).prop_map(|(one, link)| one.link_error(&link)),
        ]
    })
}

proptest! {
    #[test]
    fn canvases_survive_the_wire(canvas in canvases()) {
        let wire = canvas.to_wire().unwrap();
        let again = Canvas::read(&wire).unwrap();
        prop_assert_eq!(&again.to_wire().unwrap(), &wire);
        // Both are sent alike, or are the same error.
        match (try_planned(canvas), try_planned(again)) {
            (Ok(ours), Ok(again)) => prop_assert_eq!(sent(&ours), sent(&again)),
            (ours, again) => prop_assert_eq!(ours.err(), again.err()),
        }
    }

    #[test]
    fn all_tasks_of_a_canvas_have_ids_of_their_own(canvas in canvases()) {
        let Ok(plan) = try_planned(canvas) else { return Ok(()) };
        let ids = plan.result.task_ids();
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        prop_assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[\\[\\]{}\":,a-z0-9]{0,200}") {
        let _ = Canvas::read(&Raw::json(&text));
    }
}

#[test]
fn a_letter_is_read_back_as_it_was_meant() {
    let plan = planned(group([add(1, 1), add(2, 2)]).then(XSUM.p(())));
    let letter = &plan.letters[0];
    let embed = &letter.options.embed;
    let body = letter
        .call
        .write(&ArgumentEncoder::new(Serializer::Json, embed))
        .unwrap();
    let raw = Raw::read(Serializer::Json, &body.body).unwrap();
    let read = Body::read(&raw).unwrap();
    let chord = Canvas::read(read.embed.chord.as_ref().unwrap()).unwrap();
    assert_eq!(chord.task(), "tasks.xsum");
    let (args, _) = arguments_of(&|writer| letter.call.write(writer)).unwrap();
    assert_eq!(args.as_json(), Some("[1,1]"));
    assert_eq!(
        plan.result,
        ResultTree::read(&Raw::from_value(plan.result.to_value())).unwrap()
    );
}
