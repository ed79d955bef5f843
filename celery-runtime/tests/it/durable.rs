//! Durable revocation.

use std::sync::Arc;
use std::time::Duration;

use celery_runtime::memory::MemoryStore;
use celery_runtime::{App, Config, ResultError, Task, TaskError, Tasks};

use crate::support::{Running, Setup, within};

const ECHO: Task<(u64,), u64> = Task::new("tasks.echo").params(&["x"]);

async fn echo(x: u64) -> Result<u64, TaskError> {
    Ok(x)
}

fn setup_with_revokes(is_durable: bool) -> (Setup, App) {
    let mut config = Config::new();
    if is_durable {
        config = config.set("worker_durable_revokes", 3600).unwrap();
    }
    let setup = Setup::with_config(config);
    let store = MemoryStore::with_clock(setup.clock.clone());
    let app = setup.app.clone().with_store(Arc::new(store));
    (setup, app)
}

fn start(app: &App) -> Running {
    Running::start(app.worker(Tasks::new().with(ECHO, echo)))
}

#[tokio::test(start_paused = true)]
async fn durably_revoked_task_does_not_run_in_later_worker() {
    let (_setup, app) = setup_with_revokes(true);
    let client = app.client();
    let revoked = client.send(ECHO, (1,)).await.unwrap();
    let later = ECHO.s((2,)).countdown(Duration::from_secs(60));
    let later = client.apply(later).await.unwrap();
    let other = client.send(ECHO, (3,)).await.unwrap();
    let ids = [revoked.id(), later.id()];
    let control = app.control();
    let hour = Duration::from_secs(3600);
    control.revoke_durably(ids, hour).await.unwrap();

    let _worker = start(&app);

    for result in [revoked, later] {
        let error = within(120, result.get()).await.unwrap_err();
        assert!(
            matches!(&error, ResultError::Task(failure)
                if failure.exception.exc_type == "TaskRevokedError"),
            "{error}"
        );
    }
    assert_eq!(within(5, other.get()).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn revocation_reaches_worker_that_starts_later() {
    let (_setup, app) = setup_with_revokes(true);
    let first = start(&app);
    let client = app.client();
    let later = ECHO.s((2,)).countdown(Duration::from_secs(60));
    let later = client.apply(later).await.unwrap();
    // A plain revocation, which only running workers receive.
    let control = app.control().limit(1);
    within(60, async {
        while control.ping().await.unwrap().is_empty() {}
    })
    .await;
    let replies = control.revoke([later.id()]).replies();
    assert_eq!(replies.await.unwrap().len(), 1);
    first.stop().await.unwrap();

    let _second = start(&app);

    assert!(within(120, later.get()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn durable_revocation_is_ignored_unless_configured() {
    let (_setup, app) = setup_with_revokes(false);
    let client = app.client();
    let revoked = client.send(ECHO, (1,)).await.unwrap();
    let hour = Duration::from_secs(3600);
    let control = app.control();
    control.revoke_durably([revoked.id()], hour).await.unwrap();
    let _worker = start(&app);
    assert_eq!(within(5, revoked.get()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn durable_revocation_without_store_is_refused() {
    let setup = Setup::new();
    let hour = Duration::from_secs(3600);
    let control = setup.app.control();
    let error = control.revoke_durably(["id"], hour).await.unwrap_err();
    assert!(error.to_string().contains("no store"), "{error}");
}
