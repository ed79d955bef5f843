//! Tasks that start other tasks.

use celery::{Context, Task, TaskError, Tasks, Value, group};

use crate::State;
use crate::plain::TSUM;

const XY: [&str; 2] = ["x", "y"];

/// The task `add` without its third parameter.
pub(crate) const ADD_TWO: Task<(Value, Value), Value> =
    Task::new("t.integration.tasks.add").params(&XY);

const CHAIN_ADD: Task<(Value, Value), ()> = Task::new("t.integration.tasks.chain_add").params(&XY);
const CHORD_ADD: Task<(Value, Value), ()> = Task::new("t.integration.tasks.chord_add").params(&XY);
const BUILD_CHAIN_INSIDE_TASK: Task<(), Value> =
    Task::new("t.integration.tasks.build_chain_inside_task").params(&[]);
const ADD_TO_ALL_TO_CHORD: Task<(Vec<Value>, Value), u32> =
    Task::new("t.integration.tasks.add_to_all_to_chord").params(&["nums", "val"]);
const ADD_CHORD_TO_CHORD: Task<(Vec<Value>, Value), u32> =
    Task::new("t.integration.tasks.add_chord_to_chord").params(&["nums", "val"]);

pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .with(CHAIN_ADD, chain_add)
        .with(CHORD_ADD, chord_add)
        .with(BUILD_CHAIN_INSIDE_TASK, build_chain_inside_task)
        .with(ADD_TO_ALL_TO_CHORD, add_to_all_to_chord)
        .with(ADD_CHORD_TO_CHORD, add_chord_to_chord)
}

async fn chain_add(ctx: Context<State>, x: Value, y: Value) -> Result<(), TaskError> {
    let twice = ADD_TWO.s((x.clone(), x));
    ctx.apply(twice.then(ADD_TWO.p((y,)))).await?;
    Ok(())
}

async fn chord_add(ctx: Context<State>, x: Value, y: Value) -> Result<(), TaskError> {
    let twice = group([ADD_TWO.s((x.clone(), x))]);
    // The body gets the list of results as its first argument.
    ctx.apply(twice.then(ADD_TWO.p((y,)))).await?;
    Ok(())
}

async fn build_chain_inside_task(ctx: Context<State>) -> Result<Value, TaskError> {
    let plus = |number: i64| ADD_TWO.p((number.into(),));
    let two = ADD_TWO.s((1.into(), 1.into()));
    let both = two.then(plus(2)).then(group([plus(3), plus(4)]));
    let result = ctx.apply(both.then(plus(5))).await?;
    Ok(Value::from_serialize(&result)?)
}

async fn add_to_all_to_chord(
    ctx: Context<State>,
    numbers: Vec<Value>,
    value: Value,
) -> Result<u32, TaskError> {
    for number in numbers {
        ctx.add_to_chord(ADD_TWO.s((number, value.clone()))).await?;
    }
    Ok(0)
}

async fn add_chord_to_chord(
    ctx: Context<State>,
    numbers: Vec<Value>,
    value: Value,
) -> Result<u32, TaskError> {
    let sums = numbers
        .into_iter()
        .map(|number| ADD_TWO.s((number, value.clone())));
    ctx.add_to_chord(group(sums).then(TSUM.p(()))).await?;
    Ok(0)
}
