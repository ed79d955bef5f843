//! A Python client with a Rust worker.

use test_servers::paths;

use crate::support::{
    MessageExt, RunLog, RunningWorker, Setup, eventually, for_each_broker, start_python, test_tasks,
};

for_each_broker! {
    python_example_client_prints_expected_output: redis, rabbitmq, quorum, rpc;
    arguments_bind_in_both_protocols: redis, rabbitmq;
    failures_raise_python_exceptions: redis, rabbitmq, rpc;
    intermediate_states_are_visible: redis, rabbitmq, rpc;
    eta_and_expires_are_respected: redis, rabbitmq, quorum;
    redis_priority_zero_runs_first: redis;
    headers_arrive_and_ignored_results_are_not_stored: redis, rabbitmq;
    chains_cross_languages: redis, rabbitmq, quorum, native_delay, rpc;
    callbacks_run_on_success_and_errbacks_on_failure: redis, rabbitmq, rpc;
    values_of_every_type_round_trip: redis, rabbitmq, rpc;
    workflows_of_every_shape_return_expected_values: redis, rabbitmq;
    pickled_message_is_dead_lettered: redis, rabbitmq;
    extended_result_describes_call: redis, rabbitmq, rpc;
    lone_surrogate_fails_task_with_reason: redis, rabbitmq;
}

async fn python_example_client_prints_expected_output(setup: Setup) {
    let worker = setup.worker().await;
    let output = setup.python("import client; client.main()").await;
    let expected = paths::python_app().join("client.expected");
    assert_eq!(output, std::fs::read_to_string(expected).unwrap());
    worker.stop().await;
    setup.assert_drained().await;
}

async fn arguments_bind_in_both_protocols(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
for app.conf.task_protocol in (2, 1):
    calls = [
        (send("tasks.add", (2, 3)), 5),
        (send("tasks.add", (2,), {"y": 3}), 5),
        (send("tasks.add", (), {"y": 3, "x": 2}), 5),
        (send("tasks.add", (2, 0.5)), 2.5),
        (send("tasks.sub", (), {"x": 2, "y": 3}), -1),
        (send("tasks.mul", (2**31, 2**31)), 2**62),
        (send("tasks.divide", (1,), {"y": 4}), 0.25),
        (send("tasks.xsum", ([1, 2, 3],)), 6),
        (send("tasks.xsum", (), {"numbers": [0.5, 2]}), 2.5),
        (send("tasks.sleep", (0.01,)), 0.01),
        (send("tasks.retry"), 1),
        (send("tasks.retry", (), {"times": 3}), 3),
        (send("tasks.progress"), 3),
        (send("tasks.echo"), {"args": [], "kwargs": {}}),
        (send("tasks.echo", (1, [None, True]), {"ключ": "значение"}),
         {"args": [1, [None, True]], "kwargs": {"ключ": "значение"}}),
    ]
    for result, expected in calls:
        same(get(result), expected)
        same(result.state, "SUCCESS")
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn failures_raise_python_exceptions(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error

for app.conf.task_protocol in (2, 1):
    # Calls that raise, here and in the worker.
    calls = [
        (tasks.divide, (1, 0), {}),
        (tasks.divide, (1.5, 0), {}),
        (tasks.fail, ("as it was asked to",), {}),
        (tasks.add, (1,), {}),
        (tasks.add, (), {}),
        (tasks.add, (1, 2, 3), {}),
        (tasks.add, (1,), {"x": 2}),
        (tasks.add, (1, 2), {"z": 3}),
        (tasks.xsum, (), {}),
    ]
    sent = [send(task.name, args, kwargs) for task, args, kwargs in calls]
    for (task, args, kwargs), result in zip(calls, sent):
        found, expected = failure(result), raised(task, *args, **kwargs)
        same(type(found), type(expected))
        same(str(found), str(expected))
        same(found.args, expected.args)
        same(result.state, "FAILURE")
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn intermediate_states_are_visible(setup: Setup) {
    let setup = setup.set("task_track_started", true);
    let worker = setup.serve(test_tasks()).await;
    let program = r#"
slow = send("tasks.sleep", (1.0,))
until("the task is started", lambda: slow.state == "STARTED")
assert slow.info["pid"] > 0 and "@" in slow.info["hostname"], slow.info

waiting = send("test.wait")
until("the task reports progress", lambda: waiting.state == "PROGRESS")
same(waiting.info, {"current": 1, "total": 2})
assert not waiting.ready()

later = send("test.retry_in_an_hour")
until("the task is to be retried", lambda: later.state == "RETRY")
assert isinstance(later.info, Exception), later.info
assert not later.ready()

# Over rpc, Python sees only the final state after its first `get`.
send("test.release")
same(get(waiting), "released")
same(get(slow), 1.0)
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_no_unacked().await;
    // The task to be retried in an hour.
    assert_eq!(setup.unfinished().await, 1);
}

async fn eta_and_expires_are_respected(setup: Setup) {
    let worker = setup.serve(test_tasks()).await;
    let program = r#"
utc = datetime.datetime.now(timezone.utc)
soon, past, hour = timedelta(seconds=0.6), timedelta(seconds=-5), timedelta(hours=1)
elsewhere = timezone(timedelta(hours=5, minutes=30))
for app.conf.task_protocol in (2, 1):
    begun = time.time()
    utc = datetime.datetime.now(timezone.utc)
    waiting = [
        send("test.now", countdown=0.6),
        send("test.now", eta=utc + soon),
        send("test.now", eta=(utc + soon).astimezone(elsewhere)),
        send("test.now", eta=(utc + soon).replace(tzinfo=None)),
        send("test.now", countdown=0.6, expires=3600),
    ]
    at_once = [
        send("test.now", eta=utc + past),
        send("test.now", expires=3600),
        send("test.now", expires=utc + hour),
        send("test.now", expires=(utc + hour).astimezone(elsewhere)),
    ]
    expired = [
        send("test.now", expires=-1),
        send("test.now", expires=utc + past),
        send("test.now", countdown=0.6, expires=0.3),
    ]
    for result in waiting:
        assert get(result) - begun >= 0.59, get(result) - begun
    for result in at_once:
        assert get(result) > 0
    for result in expired:
        error = failure(result)
        assert isinstance(error, TaskRevokedError) and str(error) == "expired", repr(error)
        same(result.state, "REVOKED")
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn redis_priority_zero_runs_first(setup: Setup) {
    let program = r#"
for number, priority in enumerate([9, 6, 3, 0, None]):
    send("test.record", (number,), priority=priority)
"#;
    setup.python(program).await;

    let runs = RunLog::default();
    let worker = setup.app().worker(runs.tasks()).concurrency(1);
    let worker = RunningWorker::start(worker).await;
    eventually("all tasks have run", async || {
        (runs.numbers().len() == 5).then_some(())
    })
    .await;
    // The default priority is 0.
    assert_eq!(runs.numbers(), [3, 4, 2, 1, 0]);
    worker.stop().await;
    setup.assert_drained().await;
}

async fn headers_arrive_and_ignored_results_are_not_stored(setup: Setup) {
    let worker = setup.serve(test_tasks()).await;
    let program = r#"
found = get(send("test.header", ("trace",), headers={"trace": {"id": [1, "two"]}}))
same(found, {"id": [1, "two"]})
same(get(send("test.header", ("trace",))), None)

ignored = send("tasks.add", (1, 2), ignore_result=True)
failed = send("tasks.fail", ("ignored",), ignore_result=True)
# The one worker has finished both when tasks that were sent later have run.
for _ in range(8):
    call("tasks.sleep", 0.01)
for result in (ignored, failed):
    same(app.backend.client.exists(f"celery-task-meta-{result.id}"), 0)
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn chains_cross_languages(setup: Setup) {
    let worker = setup.worker().await;
    let _python = start_python(setup.python_worker().queues(&["python"])).await;
    let program = r#"
add, sub, mul, echo, fail = (app.tasks[f"tasks.{name}"] for name in ("add", "sub", "mul", "echo", "fail"))
def label(*args, **kwargs):
    return app.signature("python.label", args, kwargs, queue="python")

ours = (add.s(2, 3) | mul.s(4) | sub.s(1)).apply_async()
same(get(ours), 19)
same([get(ours.parent), get(ours.parent.parent)], [20, 5])

mixed = (add.s(1, 2) | label() | echo.s("more", to="come") | label(text="end")).apply_async()
same(get(mixed.parent), {"args": ["python:3", "more"], "kwargs": {"to": "come"}})
same(get(mixed), "end:" + str({"args": ["python:3", "more"], "kwargs": {"to": "come"}}))

alone = (add.s(1, 2) | add.si(10, 20) | add.s(y=5)).apply_async()
same(get(alone), 35)

broken = (add.s(1, 2) | fail.si("in the middle") | add.s(1)).apply_async()
# The steps after the failed one fail with it.
for error in (failure(broken.parent), failure(broken)):
    same((type(error), str(error)), (ValueError, "in the middle"))

app.conf.task_protocol = 1
same(get((add.s(2, 3) | label() | echo.s()).apply_async()), {"args": ["python:5"], "kwargs": {}})
"#;
    setup.python(program).await;
    worker.stop().await;
    assert_eq!(setup.depth("celery.dead").await, 0);
}

async fn callbacks_run_on_success_and_errbacks_on_failure(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
def frozen(name, *args, **kwargs):
    signature = app.signature(name, args, kwargs)
    return signature, signature.freeze()

link, linked = frozen("tasks.add", 10)
other, also_linked = frozen("tasks.echo", "extra")
error, on_error = frozen("tasks.echo", "unused")
result = send("tasks.add", (1, 2), link=[link, other], link_error=error)
same(get(result), 3)
# Celery sends several callbacks as a group.
(both,) = result.children
same([child.id for child in both.children], [linked.id, also_linked.id])
same([get(child) for child in both.children], [13, {"args": [3, "extra"], "kwargs": {}}])
same(on_error.state, "PENDING")

link, linked = frozen("tasks.add", 10)
# Sent, since it takes one argument: the id of what failed.
error, on_error = frozen("tasks.fail")
result = send("tasks.fail", ("no",), link=link, link_error=error)
same(str(failure(result)), "no")
same(str(failure(on_error)), result.id)
same(linked.state, "PENDING")
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn values_of_every_type_round_trip(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
elsewhere = timezone(timedelta(hours=-3))
values = [
    None, True, False, 0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1,
    2**64, 2**80, -(2**200), 0.1, -0.0, 1e300, 5e-324, math.inf, -math.inf,
    "", "ünï©ødé \U0001f600 \x00 \u2028", b"", b"\x00\xff\xfe", [], {}, [[[[]]]],
    {"__type__": "no type of kombu's", "other": 1},
    datetime.datetime(2026, 2, 3, 4, 5, 6, 789), datetime.datetime(2026, 2, 3, tzinfo=timezone.utc),
    datetime.datetime(2026, 2, 3, 4, tzinfo=elsewhere), datetime.date(2026, 2, 28),
    datetime.time(23, 59, 59), Decimal("1.10"), Decimal("1E+20"), uuid.UUID(int=5),
]
found = call("tasks.echo", *values, **{"named": values, "не ascii": 1})
assert len(found["args"]) == len(values)
for one, other in zip(found["args"] + found["kwargs"]["named"], values + values):
    same(one, other)
    same(repr(one), repr(other))
same(math.isnan(call("tasks.echo", math.nan)["args"][0]), True)

deep = []
for _ in range(100):
    deep = [deep]
same(call("tasks.echo", deep)["args"], [deep])
large = "x" * 5_000_000
same(call("tasks.echo", large)["args"], [large])
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn workflows_of_every_shape_return_expected_values(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
add, mul, xsum, fail = (app.tasks[f"tasks.{name}"] for name in ("add", "mul", "xsum", "fail"))
for app.conf.task_protocol in (2, 1):
    def value(canvas):
        result = canvas.apply_async()
        try:
            return result.get(timeout=TIMEOUT)
        except TimeoutError as error:
            raise AssertionError(stored(result)) from error

    ten = group(add.s(n, n) for n in range(10))
    same(value(ten), [2 * n for n in range(10)])
    same(value(add.s(4, 4) | mul.s(8)), 64)
    same(value(ten | xsum.s()), 90)
    same(value(ten | xsum.s() | add.s(1) | group(add.s(1), add.s(2))), [92, 93])
    same(value(chord([chord([add.s(1, 1), add.s(2, 2)], xsum.s()) for _ in range(3)], xsum.s())), 18)
    same(value(add.s(1, 1) | group(add.s(1), add.s(2) | group(add.s(3), add.s(4)))), [3, [7, 8]])
    same(value(add.starmap([(1, 2), (3, 4)])), [3, 7])
    same(value(add.chunks([(n, n) for n in range(5)], 2).group()), [[0, 2], [4, 6], [8]])

    late = chord([add.s(1, 1), fail.s("on purpose")], xsum.s()).apply_async()
    raises(("ChordError", "ValueError"), late)
    late = (fail.si("on purpose") | add.s(1) | add.s(2)).apply_async()
    raises(("ValueError",), late.parent.parent)
same(app.backend.client.keys("celery-taskset-meta-*.[jtsd]") != [], True)
"#;
    let raises = r#"
from celery.exceptions import TimeoutError

# Whether the result was stored tells a lost notification from a lost task.
def stored(result):
    client, header = app.backend.client, getattr(result, "parent", None)
    return f"""{result!r} is not ready
protocol {app.conf.task_protocol}, stored: {[client.get(app.backend.get_key_for_task(r.id)) for r in getattr(result, "results", [result])]}
header: {header and [r.state for r in getattr(header, "results", [header])]}
keys of chords: {client.keys("celery-taskset-meta-*.[jtsdc]")}, channels: {client.pubsub_channels()}"""

def raises(names, result):
    try:
        result.get(timeout=TIMEOUT)
    except Exception as error:
        assert type(error).__name__ in names, repr(error)
    else:
        raise AssertionError("it did not fail")
"#;
    let program = [raises, program].concat();
    setup.python(&program).await;
    worker.stop().await;
    setup.assert_drained().await;
}

async fn pickled_message_is_dead_lettered(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
print(send("tasks.add", (2, 3), serializer="pickle").id)
same(call("tasks.add", 2, 3), 5)
"#;
    let id = setup.python(program).await;
    let dead = setup.dead_letter().await;
    assert_eq!(dead.id(), id.trim());
    assert_eq!(dead.text("x-dead-reason"), "refused-content-type");
    let detail = dead.text("x-dead-detail");
    assert!(
        detail.contains("application/x-python-serialize"),
        "{detail}"
    );
    let content_type = &dead.properties.content_type;
    assert_eq!(content_type, "application/x-python-serialize");
    worker.stop().await;
    setup.assert_drained().await;
}

async fn extended_result_describes_call(setup: Setup) {
    let setup = setup
        .set("result_extended", true)
        .set("worker_hostname", "rusty@here");
    let worker = setup.worker().await;
    let program = r#"
result = send("tasks.sub", (7,), {"y": 9})
same(get(result), -2)
same(result.name, "tasks.sub")
same(list(result.args), [7])
same(result.kwargs, {"y": 9})
same(result.worker, "rusty@here")
same(result.retries, 0)
same(result.queue, "celery")
assert datetime.datetime.now(timezone.utc) - result.date_done < timedelta(minutes=5)

retried = send("tasks.retry", (2,))
same(get(retried), 2)
same(retried.retries, 2)

failed = send("tasks.fail", ("no",))
failure(failed)
same((failed.name, list(failed.args)), ("tasks.fail", ["no"]))
"#;
    setup.python(program).await;
    worker.stop().await;
}

/// Python can write a lone surrogate into JSON, which no Rust string can hold.
async fn lone_surrogate_fails_task_with_reason(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
error = failure(send("tasks.echo", ("\ud800",)))
assert "lone surrogate" in str(error), repr(error)
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_drained().await;
}
