//! Tasks that are replaced by other tasks.

use celery::{Canvas, Context, Raw, Signature, Task, TaskError, Tasks, Value, group};

use crate::State;
use crate::failing::{FAIL, RAISE_ERROR};
use crate::plain::{IDENTITY, REPLACED_WITH_ME};
use crate::redis_writes::push;
use crate::workflows::ADD_TWO;

/// The task `redis_echo` without its parameter for the list.
const ECHO: Task<(Value,), ()> = Task::new("t.integration.tasks.redis_echo").params(&["message"]);

const ADD_REPLACED: Task<(Value, Value), Value> =
    Task::new("t.integration.tasks.add_replaced").params(&["x", "y"]);
const FAIL_REPLACED: Task<(Vec<Value>,), ()> =
    Task::new("t.integration.tasks.fail_replaced").params(&["*args"]);
const ADD_REPLACED_WITH_CHAIN: Task<(Value, Value), Value> =
    Task::new("t.integration.tasks.add_replaced_with_chain").params(&["x", "y"]);
const REPLACE_WITH_CHAIN: Task<(Vec<Value>, Option<Value>), Value> =
    Task::new("t.integration.tasks.replace_with_chain").params(&["*args", "link_msg=null"]);
const REPLACE_WITH_CHAIN_WHICH_RAISES: Task<(Vec<Value>, Option<Value>), Value> =
    Task::new("t.integration.tasks.replace_with_chain_which_raises")
        .params(&["*args", "link_msg=null"]);
const REPLACE_WITH_EMPTY_CHAIN: Task<(Vec<Value>,), ()> =
    Task::new("t.integration.tasks.replace_with_empty_chain").params(&["*_"]);
const REPLACE_WITH_CHAIN_WHICH_CONTAINS_A_GROUP: Task<(), Vec<Value>> =
    Task::new("t.integration.tasks.replace_with_chain_which_contains_a_group").params(&[]);
const ADD_TO_ALL: Task<(Vec<Value>, Value), Vec<Value>> =
    Task::new("t.integration.tasks.add_to_all").params(&["nums", "val"]);
const SECOND_ORDER_REPLACE1: Task<(bool,), ()> =
    Task::new("t.integration.tasks.second_order_replace1").params(&["state=false"]);
const SECOND_ORDER_REPLACE2: Task<(bool,), ()> =
    Task::new("t.integration.tasks.second_order_replace2").params(&["state=false"]);
const REPLACE_WITH_STAMPED_TASK: Task<(Option<Value>,), Value> =
    Task::new("t.integration.tasks.replace_with_stamped_task").params(&["replace_with=null"]);
const RECORD_REPLACED_TASK_NESTING: Task<(u32, Option<Vec<u32>>), Vec<u32>> =
    Task::new("t.integration.tasks.record_replaced_task_nesting")
        .params(&["replacements", "nesting=null"]);

pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .with(ADD_REPLACED, async |x, y| {
            Err::<Value, _>(ADD_REPLACED.replaced_by(ADD_TWO.s((x, y))))
        })
        .with(FAIL_REPLACED, async |args| {
            Err::<(), _>(TaskError::replace(FAIL.si((args,))))
        })
        .with(ADD_REPLACED_WITH_CHAIN, async |x, y| {
            let sum = ADD_TWO.s((x, y)).then(IDENTITY.p(()));
            Err::<Value, _>(ADD_REPLACED_WITH_CHAIN.replaced_by(sum))
        })
        .with(REPLACE_WITH_CHAIN, replace_with_chain)
        .with(
            REPLACE_WITH_CHAIN_WHICH_RAISES,
            replace_with_chain_which_raises,
        )
        .with(REPLACE_WITH_EMPTY_CHAIN, async |_| {
            Err::<(), _>(TaskError::replace(Canvas::chain([])))
        })
        .with(REPLACE_WITH_CHAIN_WHICH_CONTAINS_A_GROUP, async || {
            let plus_one = || ADD_TWO.p((1.into(),));
            let three = ADD_TWO.s((1.into(), 2.into()));
            let four = three.then(group([plus_one(), plus_one()]));
            Err::<Vec<Value>, _>(TaskError::replace(four))
        })
        .with(ADD_TO_ALL, async |numbers: Vec<Value>, value: Value| {
            let sums = numbers
                .into_iter()
                .map(|number| ADD_TWO.s((number, value.clone())));
            Err::<Vec<Value>, _>(TaskError::replace(group(sums)))
        })
        .with(SECOND_ORDER_REPLACE1, second_order_replace1)
        .with(SECOND_ORDER_REPLACE2, second_order_replace2)
        .with(REPLACE_WITH_STAMPED_TASK, replace_with_stamped_task)
        .with(RECORD_REPLACED_TASK_NESTING, record_replaced_task_nesting)
}

/// Returns `identity` with any number of arguments.
fn identity(args: Vec<Value>) -> Canvas {
    Signature::named(IDENTITY.name(), args, ()).into()
}

/// Returns `redis_echo` with the message, or with the result of the task that it is linked to.
fn echo(message: Option<Value>) -> Canvas {
    match message {
        Some(message) => ECHO.si((message,)).into(),
        None => ECHO.p(()).into(),
    }
}

async fn replace_with_chain(args: Vec<Value>, message: Option<Value>) -> Result<Value, TaskError> {
    let chain = identity(args).then(IDENTITY.p(()).into());
    Err(TaskError::replace(chain.link(&echo(message))))
}

async fn replace_with_chain_which_raises(
    args: Vec<Value>,
    message: Option<Value>,
) -> Result<Value, TaskError> {
    let raise: Canvas = Signature::named(RAISE_ERROR.name(), (), ()).into();
    let chain = identity(args).then(raise);
    Err(TaskError::replace(chain.link_error(&echo(message))))
}

/// The list to which the two tasks below write.
const REDIS_ECHO: &str = "redis-echo";

async fn second_order_replace1(ctx: Context<State>, state: bool) -> Result<(), TaskError> {
    if state {
        return push(&ctx, REDIS_ECHO, "Out A".into()).await;
    }
    push(&ctx, REDIS_ECHO, "In A".into()).await?;
    let inner = SECOND_ORDER_REPLACE2.s((false,));
    let chain = inner.then(SECOND_ORDER_REPLACE1.si((true,)));
    Err(SECOND_ORDER_REPLACE1.replaced_by(chain))
}

async fn second_order_replace2(ctx: Context<State>, state: bool) -> Result<(), TaskError> {
    if state {
        return push(&ctx, REDIS_ECHO, "Out B".into()).await;
    }
    push(&ctx, REDIS_ECHO, "In B".into()).await?;
    let echo = ECHO.s(("In/Out C".into(),));
    let chain = echo.then(SECOND_ORDER_REPLACE2.si((true,)));
    Err(SECOND_ORDER_REPLACE2.replaced_by(chain))
}

async fn replace_with_stamped_task(replacement: Option<Value>) -> Result<Value, TaskError> {
    let replacement = match replacement {
        Some(signature) => Canvas::read(&Raw::from_value(signature))?,
        None => REPLACED_WITH_ME.s(()).into(),
    };
    let stamped = replacement.stamp("StampOnReplace", "This is the replaced task");
    Err(TaskError::replace(stamped))
}

async fn record_replaced_task_nesting(
    ctx: Context<State>,
    replacements: u32,
    nesting: Option<Vec<u32>>,
) -> Result<Vec<u32>, TaskError> {
    let mut nesting = nesting.unwrap_or_default();
    nesting.push(ctx.headers()?.replaced_task_nesting);
    if replacements == 0 {
        return Ok(nesting);
    }
    let next = RECORD_REPLACED_TASK_NESTING.s((replacements - 1, Some(nesting)));
    Err(RECORD_REPLACED_TASK_NESTING.replaced_by(next))
}
