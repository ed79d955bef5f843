//! Kills, silence and outages in mid-work: what was acknowledged is not lost.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use celery::{AsyncResult, Client, ResultError, State};
use test_servers::RedisServer;
use tokio::sync::oneshot;

use crate::support::{
    RECORD, RedisExt, RunLog, RunningWorker, Setup, TIMEOUT, WorkerProcess, assert_sums,
    count_done, eventually, fast_restore, send_adds, send_sleeps, start, within,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn tasks_of_killed_rust_worker_run_on_rust_worker() {
    let setup = Setup::new().set("broker_transport_options", fast_restore());
    let results = send_sleeps(&setup.client(), 60, 0.1).await;
    let first = WorkerProcess::start_acks_late(&setup, "4").await;
    eventually("it is in mid-work", async || {
        (count_done(&results).await >= 10).then_some(())
    })
    .await;

    first.kill().await;
    assert!(setup.redis.unacked() >= 4, "it held nothing");
    let second = WorkerProcess::start_acks_late(&setup, "4").await;

    for result in &results {
        let slept = result.get_timeout(TIMEOUT).await;
        assert_eq!(slept.unwrap(), 0.1);
    }
    second.signal("TERM");
    assert_eq!(second.wait().await, Some(0));
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn tasks_of_killed_python_worker_run_on_rust_worker() {
    let setup = Setup::new().set("broker_transport_options", fast_restore());
    let python = setup
        .python_worker()
        .environment("TEST_TRANSPORT_OPTIONS", fast_restore().to_string())
        .environment("TEST_ACKS_LATE", "1");
    let python = start(python.pool("prefork")).await;
    let client = setup.client();
    let sleeps = send_sleeps(&client, 1, 1.0).await;
    let adds = send_adds(&client, 8).await;
    // One runs, the others wait for it.
    eventually("it holds tasks", async || {
        (setup.redis.unacked() >= 4).then_some(())
    })
    .await;
    python.kill();
    assert!(setup.redis.unacked() >= 4, "it held nothing");

    let worker = setup.worker().await;
    assert_eq!(sleeps[0].get_timeout(TIMEOUT).await.unwrap(), 1.0);
    assert_sums(&adds).await;
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn tasks_of_killed_rust_worker_run_on_python_worker() {
    let setup = Setup::new().set("broker_transport_options", fast_restore());
    let client = setup.client();
    let sleeps = send_sleeps(&client, 1, 0.5).await;
    let adds = send_adds(&client, 8).await;
    let worker = WorkerProcess::start_acks_late(&setup, "1").await;
    eventually("it holds tasks", async || {
        (setup.redis.unacked() == 4).then_some(())
    })
    .await;
    worker.kill().await;

    let python = setup
        .python_worker()
        .environment("TEST_TRANSPORT_OPTIONS", fast_restore().to_string());
    let python = start(python).await;
    assert_eq!(sleeps[0].get_timeout(TIMEOUT).await.unwrap(), 0.5);
    assert_sums(&adds).await;
    python.terminate();
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn killed_redis_loses_no_task() {
    let setup = Setup::durable()
        .set("broker_transport_options", fast_restore())
        .set("task_acks_late", true);
    let runs = RunLog::default();
    let mut worker = setup.serve(runs.tasks()).await;
    let (stop, stopped) = oneshot::channel();
    let producer = tokio::spawn(produce(setup.client(), stopped));

    for round in 1..=5 {
        let before = runs.numbers().len();
        eventually("work goes on", async || {
            (runs.numbers().len() > before + 100).then_some(())
        })
        .await;
        setup.redis.kill();
        worker.lost(round).await;
        // What ran without the server was received before.
        let before = runs.numbers().len();
        let back = Instant::now();
        setup.redis.restart();
        eventually("tasks run again", async || {
            (runs.numbers().len() > before).then_some(())
        })
        .await;
        println!(
            "kill {round} of redis: the first task {:?} after it was started again",
            back.elapsed()
        );
    }

    stop.send(()).unwrap();
    let acknowledged = within("the producer ends", producer).await.unwrap();
    eventually("all have run that were acknowledged", async || {
        let ran: HashSet<i64> = runs.numbers().into_iter().collect();
        acknowledged
            .keys()
            .all(|number| ran.contains(number))
            .then_some(())
    })
    .await;
    for (number, result) in &acknowledged {
        assert_eq!(result.get_timeout(TIMEOUT).await.unwrap(), *number);
    }
    println!(
        "{} acknowledged, {} runs",
        acknowledged.len(),
        runs.numbers().len()
    );
    worker.stop().await;
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_no_unacked();
}

type Acknowledged = HashMap<i64, AsyncResult<i64>>;

/// Sends numbers until it is told to stop; answers those that were taken.
async fn produce(client: Client, mut stop: oneshot::Receiver<()>) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    let mut number = 0;
    while stop.try_recv().is_err() {
        number += 1;
        // A failed one may have arrived all the same; it does not count.
        if let Ok(result) = client.send(RECORD, (number, 5)).await {
            acknowledged.insert(number, result);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn unresponsive_redis_times_out_and_worker_resumes() {
    const SILENCE: Duration = Duration::from_secs(8);
    const DEADLINE: Duration = Duration::from_secs(2);
    let setup = Setup::new();
    let runs = RunLog::default();
    let worker = setup.serve(runs.tasks()).await;
    let client = setup.set("deadline", DEADLINE.as_secs()).client();
    let sent = client.send(RECORD, (0, 0)).await.unwrap();
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), 0);

    setup.redis.pause();
    let silence = Instant::now();
    while silence.elapsed() < SILENCE {
        // Twice the deadline is an error of the test, not of a slow machine.
        let sent = tokio::time::timeout(DEADLINE * 2, client.send(RECORD, (1, 0))).await;
        let error = sent.expect("the deadline is kept").unwrap_err();
        assert!(error.is_transient(), "{error}");
        let state = tokio::time::timeout(DEADLINE * 2, client.result::<i64>("any").state()).await;
        state.expect("the deadline is kept").unwrap_err();
    }
    setup.redis.resume();

    let sent = eventually("the broker takes tasks again", async || {
        client.send(RECORD, (2, 0)).await.ok()
    })
    .await;
    let back = Instant::now();
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), 2);
    println!(
        "the first task after a silence of {SILENCE:?} took {:?}",
        back.elapsed()
    );
    // The server may have received some of the others, too, and nobody waits
    // a visibility timeout for them.
    eventually("what was received in the silence has run", async || {
        (setup.redis.depth("celery") == 0 && setup.redis.unacked() == 0).then_some(())
    })
    .await;
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn late_task_is_acked_after_its_result_is_stored() {
    let backend = RedisServer::builder().append_only().start();
    let setup = Setup::new()
        .set("result_backend", backend.url())
        .set("task_acks_late", true);
    let runs = RunLog::default();
    let worker = RunningWorker::start(setup.app().worker(runs.tasks()).concurrency(20)).await;
    let client = setup.client();

    backend.kill();
    let sent = client.apply_all((0..20).map(|n| RECORD.s((n, 0)))).await;
    eventually("all have run", async || {
        (runs.numbers().len() == 20).then_some(())
    })
    .await;
    let error = sent[0].as_ref().unwrap().state().await.unwrap_err();
    assert!(matches!(error, ResultError::Backend(_)), "{error}");
    assert_eq!(setup.redis.unacked(), 20, "acknowledged without a result");

    backend.restart();
    for (number, sent) in (0..).zip(sent) {
        let sent = sent.unwrap();
        assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), number);
        assert_eq!(sent.state().await.unwrap(), State::Success);
    }
    assert_eq!(runs.numbers().len(), 20, "none ran twice");
    worker.stop().await;
    setup.redis.assert_no_unacked();
}
