//! Redis stops answering while acknowledgements are under way and the worker shuts
//! down: each accepted task has run, or its message is on the server.

use std::time::Duration;

use celery::WorkerError;
use serde_json::json;

use super::{assert_all_ran, wait_for_runs};
use crate::support::{
    Accepted, RECORD, RedisState, RunLog, RunningWorker, Setup, eventually, within,
};

/// Longer than the response timeout of 5 s, and shorter than the grace period.
const STALL: Duration = Duration::from_secs(7);

/// The grace period of the shutdowns.
const GRACE: Duration = Duration::from_secs(10);

/// How long after the beginning of a stall the worker is stopped.
const STOP_AFTER: Duration = Duration::from_millis(500);

/// Starts a worker with eight slots, whose prefetched tasks are acknowledged one after
/// the other, and waits until it works.
async fn under_load(setup: &Setup, runs: &RunLog) -> (RunningWorker, Accepted) {
    let worker = setup.app().worker(runs.tasks()).concurrency(8);
    let worker = worker.shutdown_grace(GRACE);
    let worker = RunningWorker::start(worker).await;
    let client = setup.client();
    let sent = client.apply_all((0..400).map(|number| RECORD.s((number, 20))));
    let accepted = (0..)
        .zip(sent.await.into_iter().map(Result::unwrap))
        .collect();
    wait_for_runs(runs, 50).await;
    (worker, accepted)
}

/// Runs what is left on the server, and checks that nothing else is left.
async fn assert_nothing_is_lost(setup: &Setup, runs: &RunLog, accepted: &Accepted) {
    let worker = setup.serve(runs.tasks()).await;
    assert_all_ran(runs, accepted).await;
    eventually("the queue is empty", async || {
        (setup.redis.depth("celery") == 0 && setup.redis.unacked() == 0).then_some(())
    })
    .await;
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn warm_shutdown_during_a_stall_loses_no_task() {
    let setup = Setup::redis();
    let runs = RunLog::default();
    let (mut worker, accepted) = under_load(&setup, &runs).await;

    setup.redis.pause();
    tokio::time::sleep(STOP_AFTER).await;
    worker.request_shutdown();
    tokio::time::sleep(STALL - STOP_AFTER).await;
    setup.redis.resume();
    within("the worker stops", worker.ended()).await.unwrap();

    assert_nothing_is_lost(&setup, &runs, &accepted).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn cold_shutdown_during_a_stall_loses_no_task_that_has_not_started() {
    let setup = Setup::redis();
    let runs = RunLog::default();
    let (mut worker, accepted) = under_load(&setup, &runs).await;

    setup.redis.pause();
    tokio::time::sleep(STOP_AFTER).await;
    worker.request_shutdown();
    worker.force_shutdown();
    tokio::time::sleep(STALL - STOP_AFTER).await;
    setup.redis.resume();
    within("the worker stops", worker.ended()).await.unwrap();

    assert_nothing_is_lost(&setup, &runs, &accepted).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn stall_without_shutdown_runs_each_task_once() {
    let setup = Setup::redis();
    let runs = RunLog::default();
    let (worker, accepted) = under_load(&setup, &runs).await;

    setup.redis.pause();
    tokio::time::sleep(STALL).await;
    setup.redis.resume();

    assert_all_ran(&runs, &accepted).await;
    let numbers = runs.numbers();
    let repeated = accepted.keys().filter(|number| {
        let runs = numbers.iter().filter(|ran| ran == number);
        runs.count() > 1
    });
    assert_eq!(repeated.count(), 0, "a task ran twice");
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn shutdown_without_an_answer_is_an_error_with_its_exit_code() {
    let setup = Setup::redis()
        .set("deadline", 1)
        .set("broker_transport_options", json!({"socket_timeout": 1}));
    let runs = RunLog::default();
    let (mut worker, _) = under_load(&setup, &runs).await;

    setup.redis.pause();
    tokio::time::sleep(STOP_AFTER).await;
    worker.request_shutdown();
    let error = within("the worker stops", worker.ended())
        .await
        .unwrap_err();
    println!("{error}");
    assert!(
        matches!(error, WorkerError::Unsettled { in_doubt: 1.., .. }),
        "{error}"
    );
    assert_eq!(error.exit_code(), 3);
    setup.redis.resume();
}
