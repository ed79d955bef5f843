//! A Python client, a Rust worker.

use test_servers::paths;

use crate::support::{Ledger, Look, Running, Setup, eventually, start, stories, story};

stories! {
    the_example_client_finds_no_difference: redis, rabbitmq, quorum, rpc;
    arguments_come_by_place_by_name_and_mixed_in_both_protocols: redis, rabbitmq;
    failures_are_pythons_own: redis, rabbitmq, rpc;
    states_are_seen_while_a_task_is_on_its_way: redis, rabbitmq, rpc;
    times_are_kept: redis, rabbitmq, quorum;
    zero_is_the_highest_priority: redis;
    headers_of_the_sender_arrive_and_ignored_results_are_not_stored: redis, rabbitmq;
    chains_run_through_both_languages: redis, rabbitmq, quorum, native, rpc;
    callbacks_follow_success_and_errbacks_failure: redis, rabbitmq, rpc;
    values_of_every_type_come_back_as_they_were_sent: redis, rabbitmq, rpc;
    workflows_of_every_shape_are_run: redis, rabbitmq;
    a_chord_without_a_backend_that_counts_is_refused: rpc;
    pickle_is_refused_and_kept: redis, rabbitmq;
    extended_results_describe_the_call: redis, rabbitmq, rpc;
    a_lone_surrogate_fails_the_task_and_says_so: redis, rabbitmq;
}

async fn the_example_client_finds_no_difference(setup: Setup) {
    let worker = setup.worker().await;
    let output = setup.python("import client; client.main()").await;
    let expected = paths::python_app().join("client.expected");
    assert_eq!(output, std::fs::read_to_string(expected).unwrap());
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn arguments_come_by_place_by_name_and_mixed_in_both_protocols(setup: Setup) {
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
    setup.assert_nothing_left().await;
}

async fn failures_are_pythons_own(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error

for app.conf.task_protocol in (2, 1):
    # What Python raises when the function is called here.
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
    setup.assert_nothing_left().await;
}

async fn states_are_seen_while_a_task_is_on_its_way(setup: Setup) {
    let setup = setup.set("task_track_started", true);
    let worker = setup.serve(story()).await;
    let program = r#"
slow = send("tasks.sleep", (1.0,))
until("it is started", lambda: slow.state == "STARTED")
assert slow.info["pid"] > 0 and "@" in slow.info["hostname"], slow.info

waiting = send("story.wait")
until("it has progressed", lambda: waiting.state == "PROGRESS")
same(waiting.info, {"current": 1, "total": 2})
assert not waiting.ready()

later = send("story.later")
until("it is to be retried", lambda: later.state == "RETRY")
assert isinstance(later.info, Exception), later.info
assert not later.ready()

# Over rpc, Python sees no state but the last one after its first `get`.
send("story.open")
same(get(waiting), "opened")
same(get(slow), 1.0)
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_nothing_held().await;
    // The one to be retried in an hour.
    assert_eq!(setup.undone().await, 1);
}

async fn times_are_kept(setup: Setup) {
    let worker = setup.serve(story()).await;
    let program = r#"
utc = datetime.datetime.now(timezone.utc)
soon, past, hour = timedelta(seconds=0.6), timedelta(seconds=-5), timedelta(hours=1)
elsewhere = timezone(timedelta(hours=5, minutes=30))
for app.conf.task_protocol in (2, 1):
    begun = time.time()
    utc = datetime.datetime.now(timezone.utc)
    waiting = [
        send("story.now", countdown=0.6),
        send("story.now", eta=utc + soon),
        send("story.now", eta=(utc + soon).astimezone(elsewhere)),
        send("story.now", eta=(utc + soon).replace(tzinfo=None)),
        send("story.now", countdown=0.6, expires=3600),
    ]
    at_once = [
        send("story.now", eta=utc + past),
        send("story.now", expires=3600),
        send("story.now", expires=utc + hour),
        send("story.now", expires=(utc + hour).astimezone(elsewhere)),
    ]
    expired = [
        send("story.now", expires=-1),
        send("story.now", expires=utc + past),
        send("story.now", countdown=0.6, expires=0.3),
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
    setup.assert_nothing_left().await;
}

async fn zero_is_the_highest_priority(setup: Setup) {
    let program = r#"
for number, priority in enumerate([9, 6, 3, 0, None]):
    send("story.mark", (number,), priority=priority)
"#;
    setup.python(program).await;

    let ledger = Ledger::default();
    let worker = setup.app().worker(ledger.tasks()).concurrency(1);
    let worker = Running::start(worker).await;
    eventually("all have run", async || {
        (ledger.numbers().len() == 5).then_some(())
    })
    .await;
    // Without one it is 0.
    assert_eq!(ledger.numbers(), [3, 4, 2, 1, 0]);
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn headers_of_the_sender_arrive_and_ignored_results_are_not_stored(setup: Setup) {
    let worker = setup.serve(story()).await;
    let program = r#"
found = get(send("story.header", ("trace",), headers={"trace": {"id": [1, "two"]}}))
same(found, {"id": [1, "two"]})
same(get(send("story.header", ("trace",))), None)

ignored = send("tasks.add", (1, 2), ignore_result=True)
failed = send("tasks.fail", ("ignored",), ignore_result=True)
# Both are over when one of a queue of one worker is, that was sent after them.
for _ in range(8):
    call("tasks.sleep", 0.01)
for result in (ignored, failed):
    same(app.backend.client.exists(f"celery-task-meta-{result.id}"), 0)
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn chains_run_through_both_languages(setup: Setup) {
    let worker = setup.worker().await;
    let _python = start(setup.python_worker().queues(&["python"])).await;
    let program = r#"
add, sub, mul, echo, fail = (app.tasks[f"tasks.{name}"] for name in ("add", "sub", "mul", "echo", "fail"))
def label(*args, **kwargs):
    return app.signature("more.label", args, kwargs, queue="python")

ours = (add.s(2, 3) | mul.s(4) | sub.s(1)).apply_async()
same(get(ours), 19)
same([get(ours.parent), get(ours.parent.parent)], [20, 5])

mixed = (add.s(1, 2) | label() | echo.s("more", to="come") | label(text="end")).apply_async()
same(get(mixed.parent), {"args": ["python:3", "more"], "kwargs": {"to": "come"}})
same(get(mixed), "end:" + str({"args": ["python:3", "more"], "kwargs": {"to": "come"}}))

alone = (add.s(1, 2) | add.si(10, 20) | add.s(y=5)).apply_async()
same(get(alone), 35)

broken = (add.s(1, 2) | fail.si("in the middle") | add.s(1)).apply_async()
# The steps after the one that failed fail with it.
for error in (failure(broken.parent), failure(broken)):
    same((type(error), str(error)), (ValueError, "in the middle"))

app.conf.task_protocol = 1
same(get((add.s(2, 3) | label() | echo.s()).apply_async()), {"args": ["python:5"], "kwargs": {}})
"#;
    setup.python(program).await;
    worker.stop().await;
    assert_eq!(setup.depth("celery.dead").await, 0);
}

async fn callbacks_follow_success_and_errbacks_failure(setup: Setup) {
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
    setup.assert_nothing_left().await;
}

async fn values_of_every_type_come_back_as_they_were_sent(setup: Setup) {
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
    setup.assert_nothing_left().await;
}

async fn workflows_of_every_shape_are_run(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
add, mul, xsum, fail = (app.tasks[f"tasks.{name}"] for name in ("add", "mul", "xsum", "fail"))
for app.conf.task_protocol in (2, 1):
    def value(canvas):
        return canvas.apply_async().get(timeout=PATIENCE)

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
def raises(names, result):
    try:
        result.get(timeout=PATIENCE)
    except Exception as error:
        assert type(error).__name__ in names, repr(error)
    else:
        raise AssertionError("it did not fail")
"#;
    let program = [raises, program].concat();
    setup.python(&program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn a_chord_without_a_backend_that_counts_is_refused(setup: Setup) {
    let worker = setup.worker().await;
    // The client cannot know that the step in the middle is a chord to be.
    let program = r#"
add, xsum = app.tasks["tasks.add"], app.tasks["tasks.xsum"]
body = xsum.s().set(task_id="body", reply_to=app.thread_oid)
pair = dict(chord([add.s(1), add.s(2)], body))
first = app.signature("tasks.add", (1, 1)).set(link=pair).apply_async()
try:
    first.get(timeout=PATIENCE)
except Exception as error:
    same("does not support chords" in str(error), True)
else:
    raise AssertionError("it did not fail")
"#;
    setup.python(program).await;
    worker.stop().await;
}

async fn pickle_is_refused_and_kept(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
print(send("tasks.add", (2, 3), serializer="pickle").id)
same(call("tasks.add", 2, 3), 5)
"#;
    let id = setup.python(program).await;
    let kept = setup.kept().await;
    assert_eq!(kept.id(), id.trim());
    assert_eq!(kept.text("x-dead-reason"), "refused-content-type");
    let detail = kept.text("x-dead-detail");
    assert!(
        detail.contains("application/x-python-serialize"),
        "{detail}"
    );
    let content_type = &kept.properties.content_type;
    assert_eq!(content_type, "application/x-python-serialize");
    worker.stop().await;
    setup.assert_nothing_left().await;
}

async fn extended_results_describe_the_call(setup: Setup) {
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

/// Python can write half of a character into JSON; no Rust text can hold it.
async fn a_lone_surrogate_fails_the_task_and_says_so(setup: Setup) {
    let worker = setup.worker().await;
    let program = r#"
error = failure(send("tasks.echo", ("\ud800",)))
assert "lone surrogate" in str(error), repr(error)
"#;
    setup.python(program).await;
    worker.stop().await;
    setup.assert_nothing_left().await;
}
