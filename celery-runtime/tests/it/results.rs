//! Storing of results.

use std::time::Duration;

use celery_protocol::{State, Value};
use celery_runtime::{App, Config, Context, ResultError, Task, TaskError, Tasks, UpdateError};

use crate::support::{Setup, within};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);

async fn add(x: i64, y: i64) -> Result<i64, TaskError> {
    Ok(x + y)
}

#[tokio::test(start_paused = true)]
async fn progress_is_read_while_task_runs() {
    const SLOW: Task<(), u32> = Task::new("tasks.slow").track_started();
    async fn slow(ctx: Context) -> Result<u32, TaskError> {
        tokio::time::sleep(Duration::from_secs(10)).await;
        ctx.update_state(
            "PROGRESS",
            [("done", 1)]
                .into_iter()
                .collect::<std::collections::BTreeMap<_, _>>(),
        )
        .await?;
        let refused = ctx.update_state("SUCCESS", 1).await.unwrap_err();
        assert!(matches!(refused, UpdateError::Reserved(_)));
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(1)
    }
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(SLOW, slow));
    let result = setup.client().send(SLOW, ()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(result.state().await.unwrap(), State::Started);
    assert!(result.info().await.unwrap().get("pid").is_some());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(result.state().await.unwrap().name(), "PROGRESS");
    assert_eq!(
        result.info().await.unwrap().get("done"),
        Some(&Value::Int(1))
    );
    assert_eq!(result.get().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn ignored_result_is_not_stored() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let client = setup.client();
    let ignored = client.apply(ADD.s((1, 2)).ignore_result()).await.unwrap();
    let kept = client.send(ADD, (1, 2)).await.unwrap();
    within(5, kept.get()).await.unwrap();
    assert_eq!(ignored.state().await.unwrap(), State::Pending);
    let error = ignored
        .get_timeout(Duration::from_secs(3))
        .await
        .unwrap_err();
    assert!(matches!(error, ResultError::TimedOut { .. }));
    kept.forget().await.unwrap();
    assert_eq!(kept.state().await.unwrap(), State::Pending);
}

#[tokio::test(start_paused = true)]
async fn extended_result_describes_call() {
    let config = Config::new().set("result_extended", true).unwrap();
    let setup = Setup::with_config(config);
    let worker = setup
        .app
        .worker(Tasks::new().with(ADD, add))
        .hostname("w@host");
    let _worker = crate::support::Running::start(worker);
    let result = setup.client().send(ADD, (1, 2)).await.unwrap();
    within(5, result.get()).await.unwrap();
    let document = result.document().await.unwrap().unwrap();
    assert_eq!(document.name.as_deref(), Some("tasks.add"));
    assert_eq!(document.worker.as_deref(), Some("w@host"));
    assert_eq!(document.queue.as_deref(), Some("celery"));
    assert_eq!(
        document.args.unwrap().decode::<(i64, i64)>().unwrap(),
        (1, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn unencodable_value_is_encode_error() {
    const ODD: Task<(), std::collections::BTreeMap<(i32, i32), i32>> = Task::new("tasks.odd");
    let setup = Setup::new();
    let _worker =
        setup.start(Tasks::new().with(ODD, async || Ok::<_, TaskError>([((1, 2), 3)].into())));
    let result = setup.client().send(ODD, ()).await.unwrap();
    match within(5, result.get()).await.unwrap_err() {
        ResultError::Task(failure) => {
            assert_eq!(failure.exception.exc_type, "EncodeError");
            assert_eq!(
                failure.exception.exc_module.as_deref(),
                Some("kombu.exceptions")
            );
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn task_without_backend_runs_and_has_no_result() {
    let setup = Setup::new();
    let app = App::new(std::sync::Arc::new(setup.broker.clone()));
    let worker = crate::support::Running::start(app.worker(Tasks::new().with(ADD, add)));
    let result = app.client().send(ADD, (1, 2)).await.unwrap();
    let error = result.get().await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no result_backend is configured"),
        "{error}"
    );
    worker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn result_expires_after_a_day() {
    let setup = Setup::new();
    let _worker = setup.start(Tasks::new().with(ADD, add));
    let result = setup.client().send(ADD, (1, 2)).await.unwrap();
    within(5, result.get()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(86_300)).await;
    assert!(result.ready().await.unwrap());
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(!result.ready().await.unwrap());
}
