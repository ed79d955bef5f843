//! Time limits.

use std::time::Duration;

use celery_runtime::{Config, Context, ResultError, Task, TaskError, Tasks};

use crate::support::{Setup, within};

const SLEEP: Task<(u64,), u64> = Task::new("tasks.sleep").params(&["seconds"]);

async fn sleep(seconds: u64) -> Result<u64, TaskError> {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    Ok(seconds)
}

fn text(error: ResultError) -> String {
    match error {
        ResultError::Task(failure) => failure.exception.to_string(),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn hard_time_limit_ends_task_and_frees_slot() {
    let config = Config::new().set("task_time_limit", 5).unwrap();
    let setup = Setup::with_config(config);
    let _worker = setup.start(Tasks::new().with(SLEEP, sleep));
    let client = setup.client();
    let long = client.apply_all((0..8).map(|_| SLEEP.s((1000,)))).await;
    for result in long {
        assert_eq!(
            text(within(60, result.unwrap().get()).await.unwrap_err()),
            "TimeLimitExceeded(5)"
        );
    }
    assert_eq!(setup.elapsed().round() as u64, 10);
    let short = client.send(SLEEP, (1,)).await.unwrap();
    assert_eq!(within(5, short.get()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn time_limit_of_message_overrides_task_and_configuration() {
    const LIMITED: Task<(u64,), u64> = Task::new("tasks.limited")
        .params(&["seconds"])
        .time_limits(None, Some(Duration::from_secs(20)));
    let config = Config::new().set("task_time_limit", 5).unwrap();
    let setup = Setup::with_config(config);
    let _worker = setup.start(Tasks::new().with(LIMITED, sleep));
    let client = setup.client();
    let declared = client.send(LIMITED, (1000,)).await.unwrap();
    assert_eq!(
        text(within(60, declared.get()).await.unwrap_err()),
        "TimeLimitExceeded(20)"
    );
    let sent = LIMITED.s((1000,)).time_limit(Duration::from_millis(1500));
    let sent = client.apply(sent).await.unwrap();
    assert_eq!(
        text(within(60, sent.get()).await.unwrap_err()),
        "TimeLimitExceeded(1.5)"
    );
}

#[tokio::test(start_paused = true)]
async fn soft_time_limit_ends_task_that_ignores_it() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(SLEEP, sleep));
    let call = SLEEP.s((1000,)).soft_time_limit(Duration::from_secs(3));
    let result = setup.client().apply(call).await.unwrap();
    assert_eq!(
        text(within(60, result.get()).await.unwrap_err()),
        "SoftTimeLimitExceeded()"
    );
    assert_eq!(setup.elapsed().round() as u64, 3);
}

#[tokio::test(start_paused = true)]
async fn task_that_awaits_soft_limit_may_finish() {
    async fn careful(ctx: Context, seconds: u64) -> Result<u64, TaskError> {
        tokio::select! {
            () = ctx.soft_time_limit() => {
                tokio::time::sleep(Duration::from_secs(2)).await;
                Ok(0)
            }
            () = tokio::time::sleep(Duration::from_secs(seconds)) => Ok(seconds),
        }
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(SLEEP, careful));
    let call = SLEEP.s((1000,)).soft_time_limit(Duration::from_secs(3));
    let result = setup.client().apply(call).await.unwrap();
    assert_eq!(within(60, result.get()).await.unwrap(), 0);
    assert_eq!(setup.elapsed().round() as u64, 5);
}

#[tokio::test(start_paused = true)]
async fn context_reports_time_limits() {
    type Seen = (Option<Duration>, Option<Duration>, bool);
    const LIMITS: Task<(), Seen> =
        Task::new("tasks.limits").time_limits(None, Some(Duration::from_secs(20)));
    async fn limits(ctx: Context) -> Result<Seen, TaskError> {
        let (soft, hard) = ctx.time_limits();
        Ok((soft, hard, ctx.eta().is_some()))
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(LIMITS, limits));
    let client = setup.client();
    let soft = Duration::from_secs(3);
    let call = LIMITS.s(()).soft_time_limit(soft).countdown(soft);
    let seen = client.apply(call).await.unwrap();
    let expected = (Some(soft), Some(Duration::from_secs(20)), true);
    assert_eq!(within(10, seen.get()).await.unwrap(), expected);
}
