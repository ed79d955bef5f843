//! Tasks that fail deliberately.

use celery::{Context, Exception, Requeue, Task, TaskError, Tasks, Value};

use crate::{MODULE, State};

pub(crate) const FAIL: Task<(Vec<Value>,), ()> =
    Task::new("t.integration.tasks.fail").params(&["*args"]);
pub(crate) const RAISE_ERROR: Task<(Vec<Value>,), ()> =
    Task::new("t.integration.tasks.raise_error").params(&["*args"]);
const FAIL_UNPICKLEABLE: Task<(Value, Value), ()> =
    Task::new("t.integration.tasks.fail_unpickleable").params(&["foo", "bar"]);
const REJECT_WITHOUT_REQUEUE: Task<(), ()> =
    Task::new("t.integration.tasks.reject_without_requeue").params(&[]);
const REJECT_THEN_SUCCEED: Task<(), String> = Task::new("t.integration.tasks.reject_then_succeed")
    .params(&[])
    .acks_late();

pub(crate) fn add_to(tasks: Tasks<State>) -> Tasks<State> {
    tasks
        .with(FAIL, fail)
        .with(RAISE_ERROR, async |_| {
            Err::<(), _>(TaskError::exception("ValueError", "deliberate error"))
        })
        .with(FAIL_UNPICKLEABLE, async |first, _| {
            Err::<(), _>(TaskError::failed(unpickleable(first)))
        })
        .with(REJECT_WITHOUT_REQUEUE, async || {
            Err::<(), _>(TaskError::reject("rejected", Requeue::No))
        })
        .with(REJECT_THEN_SUCCEED, reject_then_succeed)
}

/// Returns the exception that the suite expects.
pub(crate) fn expected(args: impl IntoIterator<Item = Value>) -> Exception {
    Exception::new(MODULE, "ExpectedException", "").with_args(args)
}

/// Returns the exception that Python stores instead of one that cannot be
/// pickled: with its module, name, arguments and text.
pub(crate) fn unpickleable(first: Value) -> Exception {
    let inner = Exception::new(MODULE, "UnpickleableException", "").with_args([first]);
    let printed = inner.to_string();
    Exception::new(
        "celery.utils.serialization",
        "UnpickleableExceptionWrapper",
        "",
    )
    .with_args([
        MODULE.into(),
        inner.exc_type.into(),
        Value::Array(inner.exc_message),
        printed.into(),
    ])
}

async fn fail(args: Vec<Value>) -> Result<(), TaskError> {
    let text = Value::from("Task expected to fail");
    Err(TaskError::failed(expected([text].into_iter().chain(args))))
}

async fn reject_then_succeed(ctx: Context<State>) -> Result<String, TaskError> {
    if ctx.is_redelivered() {
        Ok("second-pass".to_owned())
    } else {
        Err(TaskError::reject("first pass", Requeue::Yes))
    }
}
