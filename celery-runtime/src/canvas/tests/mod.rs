//! Tests of canvases of all shapes.

mod decoding;
mod links;
mod planning;
mod properties;
mod recorded;
mod typed;

use celery_protocol::{Raw, Serializer};
use serde_json::{Value as Json, json};

use crate::canvas::*;
use crate::config::WireStyle;
use crate::task::{ArgumentEncoder, Task};

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
    plan(canvas.expand_chunks()?, &PlanContext::default(), ids)
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

fn message(task: &PlannedTask) -> Json {
    let options = &task.options;
    let body = task
        .call
        .write(&ArgumentEncoder::new(Serializer::Json, &options.embed))
        .unwrap()
        .body;
    let body: Json = serde_json::from_slice(&body).unwrap();
    let id = options.task_id.clone();
    let stamped: Vec<_> = options.stamps.keys().map(|name| name.as_str()).collect();
    json!({
        "headers": {
            "task": task.call.task, "id": id, "group": options.group_id,
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
        .map(|chord| json!([chord.start.group_id, chord.start.size]));
    let trees = plan.chords.iter().filter_map(|chord| {
        let start = &chord.start;
        let tree = start.tree.as_ref()?;
        Some(json!([start.group_id, {"result": tree.to_value()}]))
    });
    json!({
        "sent": plan.tasks.iter().map(message).collect::<Vec<_>>(),
        "sizes": sizes.collect::<Vec<_>>(),
        "trees": trees.collect::<Vec<_>>(),
        "result": plan.result.to_value(),
    })
}

fn add(x: i64, y: i64) -> Signature<i64> {
    ADD.s((x, y))
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
