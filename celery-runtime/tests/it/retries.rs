//! Retries: explicit, automatic and exhausted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use celery_protocol::{Exception, Map, State, Value};
use celery_runtime::{AutoRetry, Context, ResultError, RetryBackoff, Task, TaskError, Tasks};

use crate::support::{Setup, start_time, within};

#[derive(Debug, thiserror::Error)]
#[error("flaky")]
struct Flaky;

fn text(error: ResultError) -> String {
    match error {
        ResultError::Task(failure) => failure.exception.to_string(),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn retry_waits_and_keeps_id() {
    const RETRY: Task<(u32,), u32> = Task::new("tasks.retry").params(&["times=1"]);
    async fn retry(ctx: Context, times: u32) -> Result<u32, TaskError> {
        if ctx.retries() < times {
            return Err(TaskError::retry().after(Duration::from_secs(60)));
        }
        Ok(ctx.retries())
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(RETRY, retry));
    let result = setup.client().send(RETRY, (3,)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(result.state().await.unwrap(), State::Retry);
    assert_eq!(result.children().await.unwrap(), [result.id()]);
    assert_eq!(result.get().await.unwrap(), 3);
    assert_eq!(setup.elapsed().round() as u64, 180);
}

#[tokio::test(start_paused = true)]
async fn exhausted_retries_fail_with_cause() {
    const ALWAYS: Task<(), ()> = Task::new("tasks.always")
        .max_retries(2)
        .retry_delay(Duration::from_secs(1));
    let runs = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&runs);
    let always = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err::<(), _>(TaskError::retry().because(Flaky)))
    };
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ALWAYS, always));
    let result = setup.client().send(ALWAYS, ()).await.unwrap();
    let error = within(60, result.get()).await.unwrap_err();
    assert_eq!(text(error), "Flaky('flaky')");
    assert_eq!(runs.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn configured_error_is_retried_with_backoff() {
    const FLAKY: Task<(), u32> =
        Task::new("tasks.flaky")
            .max_retries(5)
            .autoretry(AutoRetry::on::<Flaky>().backoff(RetryBackoff {
                jitter: false,
                ..RetryBackoff::new(2)
            }));
    async fn flaky(ctx: Context) -> Result<u32, TaskError> {
        match ctx.retries() {
            0..3 => Err(Flaky.into()),
            retries => Ok(retries),
        }
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(FLAKY, flaky));
    let result = setup.client().send(FLAKY, ()).await.unwrap();
    assert_eq!(result.get().await.unwrap(), 3);
    // 2 + 4 + 8 seconds.
    assert_eq!(setup.elapsed().round() as u64, 14);
}

#[tokio::test(start_paused = true)]
async fn other_error_is_not_retried() {
    const PLAIN: Task<(), ()> = Task::new("tasks.plain").autoretry(AutoRetry::on::<Flaky>());
    async fn plain() -> Result<(), TaskError> {
        Err(TaskError::exception("KeyError", "k"))
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(PLAIN, plain));
    let result = setup.client().send(PLAIN, ()).await.unwrap();
    assert_eq!(
        text(within(5, result.get()).await.unwrap_err()),
        "KeyError('k')"
    );
}

#[tokio::test(start_paused = true)]
async fn retried_message_keeps_headers_and_gets_parent() {
    const ONCE: Task<(), (Option<String>, String)> = Task::new("tasks.once");
    async fn once(ctx: Context) -> Result<(Option<String>, String), TaskError> {
        if ctx.retries() == 0 {
            return Err(TaskError::retry().after(Duration::ZERO));
        }
        let trace = ctx
            .header("trace")
            .and_then(|value| value.as_str().map(str::to_owned));
        Ok((ctx.parent_id(), trace.unwrap_or_default()))
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ONCE, once));
    let result = setup
        .client()
        .apply(ONCE.s(()).header("trace", "t-1"))
        .await
        .unwrap();
    let (parent, trace) = within(5, result.get()).await.unwrap();
    assert_eq!(parent.as_deref(), Some(result.id()));
    assert_eq!(trace, "t-1");
}

#[tokio::test(start_paused = true)]
async fn retry_replaces_arguments() {
    const COPY: Task<(i64, i64, String), (i64, i64, String)> =
        Task::new("tasks.copy").params(&["from", "to", "label=\"\""]);
    async fn copy(
        ctx: Context,
        from: i64,
        to: i64,
        label: String,
    ) -> Result<(i64, i64, String), TaskError> {
        let again = TaskError::retry().after(Duration::ZERO);
        match ctx.retries() {
            0 => Err(again.args([(from + 1).into(), to.into()])),
            1 => Err(again.kwargs([("to", to + 1)])),
            _ => Ok((from, to, label)),
        }
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(COPY, copy));
    let kwargs = Map::from([
        ("from", Value::Int(1)),
        ("to", Value::Int(2)),
        ("label", "kept".into()),
    ]);
    let client = setup.client();
    let by_name = client.send_by_name("tasks.copy", (), kwargs).await;
    let result = client.result::<(i64, i64, String)>(by_name.unwrap().id());
    // The second retry replaces the keyword arguments.
    let expected = (2, 3, String::new());
    assert_eq!(within(5, result.get()).await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn retry_replaces_headers_and_expiry() {
    type Seen = (Option<i64>, bool, Option<u8>);
    const ONCE: Task<(), Seen> = Task::new("tasks.once");
    async fn once(ctx: Context) -> Result<Seen, TaskError> {
        if ctx.retries() == 0 {
            let expires = start_time() + Duration::from_secs(60);
            let again = TaskError::retry().after(Duration::ZERO);
            return Err(again.header("attempt", 2).expires_at(expires));
        }
        let custom = ctx.custom_headers();
        let attempt = custom.get("attempt").and_then(Value::as_i64);
        assert_eq!(custom.get("trace"), Some(&"t-1".into()));
        let in_a_minute = start_time() + Duration::from_secs(60);
        Ok((attempt, ctx.expires() == Some(in_a_minute), ctx.priority()))
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ONCE, once));
    let call = ONCE.s(()).header("trace", "t-1").priority(7);
    let result = setup.client().apply(call).await.unwrap();
    let seen = within(5, result.get()).await.unwrap();
    assert_eq!(seen, (Some(2), true, Some(7)));
}

#[tokio::test(start_paused = true)]
async fn renamed_failure_is_still_retried() {
    const FLAKY: Task<(), ()> = Task::new("tasks.flaky")
        .max_retries(1)
        .autoretry(AutoRetry::on::<Flaky>());
    async fn flaky() -> Result<(), TaskError> {
        let shown = Exception::new("builtins", "OSError", "").with_args([5.into(), "io".into()]);
        Err(TaskError::from(Flaky).shown_as(shown))
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(FLAKY, flaky));
    let result = setup.client().send(FLAKY, ()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(result.state().await.unwrap(), State::Retry);
    let error = within(300, result.get()).await.unwrap_err();
    assert_eq!(text(error), "OSError(5, 'io')");
}
