//! A Rust client with a Python worker.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use celery::{
    AsyncResult, Client, Map, ResultError, Sendable, Signature, State, TaskFailure, Value,
};
use serde::de::DeserializeOwned;

use crate::support::{MessageExt, Setup, TIMEOUT, eventually, for_each_broker, start_python};
use crate::tasks::Number::{Float, Int};
use crate::tasks::{ADD, DIVIDE, ECHO, FAIL, MUL, PROGRESS, RETRY, SLEEP, SUB, XSUM};

/// Sends a call and waits for its value.
async fn call<R, In>(client: &Client, call: Signature<R, In>) -> R
where
    R: DeserializeOwned,
    Signature<R, In>: Sendable<Result = AsyncResult<R>>,
{
    let task = call.task().to_owned();
    let sent = client.apply(call).await.unwrap();
    match sent.get_timeout(TIMEOUT).await {
        Ok(value) => value,
        Err(error) => panic!("{task}: {error}"),
    }
}

/// Sends a call and waits for its failure.
async fn failure<R, In>(client: &Client, call: Signature<R, In>) -> TaskFailure
where
    R: DeserializeOwned,
    Signature<R, In>: Sendable<Result = AsyncResult<R>>,
{
    let sent = client.apply(call).await.unwrap();
    match sent.get_timeout(TIMEOUT).await {
        Err(ResultError::Task(failure)) => *failure,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it returned a value"),
    }
}

for_each_broker! {
    typed_and_named_calls_run_in_both_protocols: redis, rabbitmq, quorum, rpc;
    python_failures_are_decoded: redis, rabbitmq, rpc;
    progress_and_result_are_read_by_id: redis, rabbitmq;
    call_options_arrive: redis, rabbitmq, quorum;
    python_worker_calls_callbacks_and_errbacks: redis, rabbitmq;
    batch_arrives_complete_and_in_order: redis, rabbitmq;
}

async fn typed_and_named_calls_run_in_both_protocols(setup: Setup) {
    // With one slot: with several, one may finish a retried task before another has
    // stored the retry, and Python then overwrites SUCCESS with RETRY.
    let python = start_python(setup.python_worker()).await;
    for protocol in [2, 1] {
        let client = setup.set("task_protocol", protocol).client();
        assert_eq!(call(&client, ADD.s((Int(2), Int(3)))).await, Int(5));
        assert_eq!(call(&client, SUB.s((Int(2), Float(0.5)))).await, Float(1.5));
        assert_eq!(
            call(&client, MUL.s((Int(1 << 31), Int(1 << 31)))).await,
            Int(1 << 62)
        );
        assert_eq!(call(&client, DIVIDE.s((Int(1), Int(4)))).await, 0.25);
        assert_eq!(
            call(&client, XSUM.s((vec![Int(1), Float(0.5)],))).await,
            Float(1.5)
        );
        assert_eq!(call(&client, SLEEP.s((0.01,))).await, 0.01);
        assert_eq!(call(&client, RETRY.s((2,))).await, 2);
        assert_eq!(call(&client, PROGRESS.s((1,))).await, 1);

        let kwargs = Map::from([("ключ", "значение")]);
        let echo = call(
            &client,
            ECHO.s((vec![1.into(), Value::Null], kwargs.clone())),
        )
        .await;
        assert_eq!(echo.args, [Value::from(1), Value::Null]);
        assert_eq!(echo.kwargs, kwargs);

        let by_name = [
            (Signature::named("tasks.add", (2, 3), ()), 5.into()),
            (
                Signature::named("tasks.add", (2,), Map::from([("y", 3)])),
                5.into(),
            ),
            (
                Signature::named("tasks.sub", (), Map::from([("y", 3), ("x", 2)])),
                (-1).into(),
            ),
            (Signature::named("tasks.retry", (), ()), 1.into()),
            (
                Signature::named("python.label", ("x",), Map::from([("text", "t")])),
                "t:x".into(),
            ),
        ];
        for (signature, expected) in by_name {
            assert_eq!(call(&client, signature).await, expected);
        }
    }
    python.terminate();
    setup.assert_drained().await;
}

async fn python_failures_are_decoded(setup: Setup) {
    let _python = start_python(setup.python_worker().concurrency(2)).await;
    let client = setup.client();

    let zero = failure(&client, DIVIDE.s((Int(1), Int(0)))).await;
    assert_eq!(zero.state, State::Failure);
    assert_eq!(zero.exception.exc_type, "ZeroDivisionError");
    assert_eq!(zero.exception.exc_module.as_deref(), Some("builtins"));
    assert_eq!(
        zero.exception.exc_message,
        [Value::from("division by zero")]
    );
    let traceback = zero.traceback.unwrap();
    assert!(
        traceback.starts_with("Traceback (most recent call last)"),
        "{traceback}"
    );

    let asked = failure(&client, FAIL.s(("as asked".to_owned(),))).await;
    assert_eq!(asked.exception.to_string(), "ValueError('as asked')");

    let bad = failure(&client, Signature::named("tasks.add", (1,), ())).await;
    assert_eq!(
        bad.exception.to_string(),
        r#"TypeError("add() missing 1 required positional argument: 'y'")"#
    );

    let unknown = failure(&client, Signature::named("tasks.nowhere", (), ())).await;
    assert_eq!(unknown.exception.exc_type, "NotRegistered");

    let expired = ADD.s((Int(1), Int(2))).expires_at(UNIX_EPOCH);
    let expired = failure(&client, expired).await;
    assert_eq!(expired.state, State::Revoked);
    assert_eq!(expired.exception.exc_type, "TaskRevokedError");
}

async fn progress_and_result_are_read_by_id(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let sent = setup.client().send(PROGRESS, (10,)).await.unwrap();

    // Another app, which shares only the server.
    let other = setup.client().result::<u32>(sent.id());
    let seen = eventually("progress is reported", async || {
        let state = other.state().await.unwrap();
        assert_ne!(
            state,
            State::Success,
            "the task ended before PROGRESS was seen"
        );
        let info = other.info().await.unwrap();
        (state.name() == "PROGRESS").then_some(info)
    })
    .await;
    assert_eq!(seen.get("total"), Some(&10.into()));
    assert_eq!(other.get_timeout(TIMEOUT).await.unwrap(), 10);
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), 10);
    assert!(sent.ready().await.unwrap());

    let program = format!("print(get(AsyncResult({:?}, app=app)))", sent.id());
    assert_eq!(setup.python(program).await.trim(), "10");

    other.forget().await.unwrap();
    assert_eq!(sent.state().await.unwrap(), State::Pending);
}

async fn call_options_arrive(setup: Setup) {
    let _python = start_python(setup.python_worker().queues(&["celery", "special"])).await;
    let client = setup.client();
    let request = || Signature::named("python.request", ("it's", 1), ());
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);

    let seen = call(
        &client,
        request()
            .task_id("my-own-id")
            .queue("special")
            .priority(6)
            .expires_in(hour)
            .soft_time_limit(Duration::from_millis(20_500))
            .time_limit(Duration::from_millis(30_500))
            .shadow("a shadow")
            .header("color", "blue"),
    )
    .await;
    let expected = [
        ("id", Value::from("my-own-id")),
        ("root_id", "my-own-id".into()),
        ("correlation_id", "my-own-id".into()),
        ("parent_id", Value::Null),
        ("group", Value::Null),
        ("retries", 0.into()),
        ("eta", Value::Null),
        (
            "timelimit",
            vec![Value::from(30.5), Value::from(20.5)].into(),
        ),
        ("shadow", "a shadow".into()),
        ("color", "blue".into()),
        ("priority", 6.into()),
        ("routing_key", "special".into()),
    ];
    for (name, value) in expected {
        assert_eq!(seen.get(name), Some(&value), "{name}");
    }
    let expires = time(&seen, "expires");
    assert!(
        expires >= now + hour && expires <= SystemTime::now() + hour,
        "{seen:?}"
    );

    let soon = Duration::from_millis(400);
    for waits in [request().countdown(soon), request().eta(now + soon)] {
        let seen = call(&client, waits).await;
        assert!(SystemTime::now() >= now + soon);
        assert!(
            time(&seen, "eta") >= now + soon - Duration::from_millis(1),
            "{seen:?}"
        );
    }

    let ignored = client.apply(request().ignore_result()).await.unwrap();
    // The worker has one slot, so the ignored task has ended.
    call(&client, request()).await;
    assert_eq!(ignored.state().await.unwrap(), State::Pending);
}

/// Parses a time that Python has written.
fn time(seen: &Value, name: &str) -> SystemTime {
    celery_protocol::time::parse(seen.get(name).unwrap().as_str().unwrap()).unwrap()
}

async fn python_worker_calls_callbacks_and_errbacks(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let client = setup.client();

    let first = ADD.s((Int(1), Int(2)));
    let linked = Signature::named("tasks.add", (10,), ()).task_id("linked");
    let errback = Signature::named("python.errback", (), ()).task_id("errback");
    let sent = client
        .apply(first.link(&linked).link_error(&errback))
        .await
        .unwrap();
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), Int(3));
    let linked = client.result::<i64>("linked");
    assert_eq!(linked.get_timeout(TIMEOUT).await.unwrap(), 13);
    assert_eq!(sent.children().await.unwrap(), ["linked"]);

    let failing = FAIL.s(("no".to_owned(),)).task_id("failing");
    let error = failure(&client, failing.link_error(&errback)).await;
    assert_eq!(error.id, "failing");
    let errback_result = client.result::<String>("errback");
    assert_eq!(
        errback_result.get_timeout(TIMEOUT).await.unwrap(),
        "failing failed"
    );
}

async fn batch_arrives_complete_and_in_order(setup: Setup) {
    let client = setup.client();
    let numbers = 0..100;
    let batch = numbers.clone().map(|number| ADD.s((Int(number), Int(1))));
    let sent = client.apply_all(batch).await;
    let ids: Vec<_> = sent.iter().map(|one| one.as_ref().unwrap().id()).collect();
    let waiting = setup.messages("celery").await;
    assert!(waiting.iter().map(MessageExt::id).eq(ids));

    let python = start_python(setup.python_worker()).await;
    for (number, sent) in numbers.zip(&sent) {
        let sum = sent.as_ref().unwrap().get_timeout(TIMEOUT).await.unwrap();
        assert_eq!(sum, Int(number + 1));
    }
    python.terminate();
    setup.assert_drained().await;
}
