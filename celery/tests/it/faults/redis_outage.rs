//! Redis is killed, unresponsive or without its result backend under load: no
//! accepted task is lost, and work resumes.

use std::time::{Duration, Instant};

use celery::{ResultError, State, group};
use test_servers::RedisServer;

use super::{assert_all_ran, wait_for_runs};
use crate::support::{
    Producer, RECORD, RedisState, RunLog, RunningWorker, Setup, TIMEOUT, eventually, fast_restore,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn killed_redis_loses_no_task() {
    let setup = Setup::redis_append_only()
        .set("broker_transport_options", fast_restore())
        .set("task_acks_late", true);
    let runs = RunLog::default();
    let mut worker = setup.serve(runs.tasks()).await;
    let producer = Producer::start(setup.client());

    for round in 1..=5 {
        wait_for_runs(&runs, 100).await;
        setup.redis.kill();
        worker.wait_for_losses(round).await;
        // Tasks delivered before the kill run without the server.
        let before = runs.count();
        let back = Instant::now();
        setup.redis.restart();
        eventually("tasks run again", async || {
            (runs.count() > before).then_some(())
        })
        .await;
        println!(
            "kill {round} of Redis: the first task ran {:?} after the restart",
            back.elapsed()
        );
    }

    let accepted = producer.stop().await;
    assert_all_ran(&runs, &accepted).await;
    for (number, result) in &accepted {
        assert_eq!(result.get_timeout(TIMEOUT).await.unwrap(), *number);
    }
    worker.stop().await;
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn unresponsive_redis_times_out_and_worker_resumes() {
    const PAUSE: Duration = Duration::from_secs(8);
    const DEADLINE: Duration = Duration::from_secs(2);
    let setup = Setup::redis();
    let runs = RunLog::default();
    let worker = setup.serve(runs.tasks()).await;
    let client = setup.set("deadline", DEADLINE.as_secs()).client();
    let sent = client.send(RECORD, (0, 0)).await.unwrap();
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), 0);

    setup.redis.pause();
    let paused = Instant::now();
    while paused.elapsed() < PAUSE {
        // A send that takes twice its deadline fails the test, even on a slow machine.
        let sent = tokio::time::timeout(DEADLINE * 2, client.send(RECORD, (1, 0))).await;
        let error = sent.expect("the deadline is kept").unwrap_err();
        assert!(error.is_transient(), "{error}");
        let state = tokio::time::timeout(DEADLINE * 2, client.result::<i64>("any").state()).await;
        state.expect("the deadline is kept").unwrap_err();
    }
    setup.redis.resume();

    let sent = eventually("the broker accepts a task", async || {
        client.send(RECORD, (2, 0)).await.ok()
    })
    .await;
    let back = Instant::now();
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), 2);
    println!(
        "the first task after a pause of {PAUSE:?} took {:?}",
        back.elapsed()
    );
    // Redis may have received some of the failed sends. They have to run without a
    // wait for the visibility timeout.
    eventually("the tasks received during the pause have run", async || {
        (setup.redis.depth("celery") == 0 && setup.redis.unacked() == 0).then_some(())
    })
    .await;
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn waits_outlast_a_result_server_that_is_silent_for_longer_than_the_response_timeout() {
    const WAITERS: i64 = 50;
    const SILENCE: Duration = Duration::from_secs(12);
    let backend = RedisServer::start();
    let setup = Setup::redis().set("result_backend", backend.url());
    let client = setup.client();
    let calls = group((0..WAITERS).map(|number| RECORD.s((number, 0))));
    let group = client.apply(calls).await.unwrap();
    let waiters: Vec<_> = (0..group.len())
        .map(|index| {
            let member = group.member::<i64>(index).unwrap();
            tokio::spawn(async move { member.get_timeout(TIMEOUT).await })
        })
        .collect();
    let values = tokio::spawn(async move { group.get_timeout(TIMEOUT).await });
    eventually("all waiters are subscribed", async || {
        let channels = backend.command(&["PUBSUB", "CHANNELS"]).texts();
        (channels.len() == waiters.len()).then_some(())
    })
    .await;

    backend.pause();
    let paused = Instant::now();
    while paused.elapsed() < SILENCE {
        client.result::<i64>("any").state().await.unwrap_err();
    }
    backend.resume();

    let worker = setup.serve(RunLog::default().tasks()).await;
    for (number, waiter) in (0..).zip(waiters) {
        assert_eq!(waiter.await.unwrap().unwrap(), number);
    }
    assert_eq!(values.await.unwrap().unwrap(), Vec::from_iter(0..WAITERS));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn late_task_is_acked_after_its_result_is_stored() {
    let backend = RedisServer::builder().append_only().start();
    let setup = Setup::redis()
        .set("result_backend", backend.url())
        .set("task_acks_late", true);
    let runs = RunLog::default();
    let worker = RunningWorker::start(setup.app().worker(runs.tasks()).concurrency(20)).await;
    let client = setup.client();

    backend.kill();
    let sent = client.apply_all((0..20).map(|n| RECORD.s((n, 0)))).await;
    eventually("all tasks have run", async || {
        (runs.count() == 20).then_some(())
    })
    .await;
    let error = sent[0].as_ref().unwrap().state().await.unwrap_err();
    assert!(matches!(error, ResultError::Backend(_)), "{error}");
    assert_eq!(setup.redis.unacked(), 20, "unacknowledged deliveries");

    backend.restart();
    for (number, sent) in (0..).zip(sent) {
        let sent = sent.unwrap();
        assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), number);
        assert_eq!(sent.state().await.unwrap(), State::Success);
    }
    assert_eq!(runs.count(), 20, "a task ran twice");
    worker.stop().await;
    setup.redis.assert_no_unacked();
}
