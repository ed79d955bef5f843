//! Kills, silence and outages in mid-work: what was acknowledged is not lost.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use celery::{AsyncResult, Client, ResultError, State};
use test_servers::RedisServer;
use tokio::sync::oneshot;

use crate::support::{
    Inspect, Ledger, MARK, PATIENCE, Running, Setup, WorkerProcess, assert_sums, count_done,
    eventually, impatient, send_adds, send_sleeps, start, within,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn what_a_killed_worker_held_is_done_by_another() {
    let setup = Setup::new().set("broker_transport_options", impatient());
    let results = send_sleeps(&setup.client(), 60, 0.1).await;
    let first = WorkerProcess::late(&setup, "4").await;
    eventually("it is in mid-work", async || {
        (count_done(&results).await >= 10).then_some(())
    })
    .await;

    first.kill().await;
    assert!(setup.redis.held() >= 4, "it held nothing");
    let second = WorkerProcess::late(&setup, "4").await;

    for result in &results {
        let slept = result.get_timeout(PATIENCE).await;
        assert_eq!(slept.unwrap(), 0.1);
    }
    second.signal("TERM");
    assert_eq!(second.ended().await, Some(0));
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_nothing_held();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn what_a_killed_python_worker_held_is_done_by_ours() {
    let setup = Setup::new().set("broker_transport_options", impatient());
    let python = setup
        .python_worker()
        .environment("MORE_TRANSPORT_OPTIONS", impatient().to_string())
        .environment("MORE_ACKS_LATE", "1");
    let python = start(python.pool("prefork")).await;
    let client = setup.client();
    let sleeps = send_sleeps(&client, 1, 1.0).await;
    let adds = send_adds(&client, 8).await;
    // One runs, the others wait for it.
    eventually("it holds tasks", async || {
        (setup.redis.held() >= 4).then_some(())
    })
    .await;
    python.kill();
    assert!(setup.redis.held() >= 4, "it held nothing");

    let worker = setup.worker().await;
    assert_eq!(sleeps[0].get_timeout(PATIENCE).await.unwrap(), 1.0);
    assert_sums(&adds).await;
    worker.stop().await;
    setup.redis.assert_nothing_held();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn what_our_killed_worker_held_is_done_by_python() {
    let setup = Setup::new().set("broker_transport_options", impatient());
    let client = setup.client();
    let sleeps = send_sleeps(&client, 1, 0.5).await;
    let adds = send_adds(&client, 8).await;
    let worker = WorkerProcess::late(&setup, "1").await;
    eventually("it holds tasks", async || {
        (setup.redis.held() == 4).then_some(())
    })
    .await;
    worker.kill().await;

    let python = setup
        .python_worker()
        .environment("MORE_TRANSPORT_OPTIONS", impatient().to_string());
    let python = start(python).await;
    assert_eq!(sleeps[0].get_timeout(PATIENCE).await.unwrap(), 0.5);
    assert_sums(&adds).await;
    python.terminate();
    setup.redis.assert_nothing_held();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn redis_is_killed_five_times_under_load_and_nothing_is_lost() {
    let setup = Setup::durable()
        .set("broker_transport_options", impatient())
        .set("task_acks_late", true);
    let ledger = Ledger::default();
    let mut worker = setup.serve(ledger.tasks()).await;
    let (stop, stopped) = oneshot::channel();
    let producer = tokio::spawn(produce(setup.client(), stopped));

    for round in 1..=5 {
        let before = ledger.numbers().len();
        eventually("work goes on", async || {
            (ledger.numbers().len() > before + 100).then_some(())
        })
        .await;
        setup.redis.kill();
        worker.lost(round).await;
        // What ran without the server was received before.
        let before = ledger.numbers().len();
        let back = Instant::now();
        setup.redis.restart();
        eventually("tasks run again", async || {
            (ledger.numbers().len() > before).then_some(())
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
        let ran: HashSet<i64> = ledger.numbers().into_iter().collect();
        acknowledged
            .keys()
            .all(|number| ran.contains(number))
            .then_some(())
    })
    .await;
    for (number, result) in &acknowledged {
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), *number);
    }
    println!(
        "{} acknowledged, {} runs",
        acknowledged.len(),
        ledger.numbers().len()
    );
    worker.stop().await;
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_nothing_held();
}

type Acknowledged = HashMap<i64, AsyncResult<i64>>;

/// Sends numbers until it is told to stop; answers those that were taken.
async fn produce(client: Client, mut stop: oneshot::Receiver<()>) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    let mut number = 0;
    while stop.try_recv().is_err() {
        number += 1;
        // A failed one may have arrived all the same; it does not count.
        if let Ok(result) = client.send(MARK, (number, 5)).await {
            acknowledged.insert(number, result);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_silent_redis_is_an_error_in_time_and_work_resumes_after_it() {
    const SILENCE: Duration = Duration::from_secs(8);
    const DEADLINE: Duration = Duration::from_secs(2);
    let setup = Setup::new();
    let ledger = Ledger::default();
    let worker = setup.serve(ledger.tasks()).await;
    let client = setup.set("deadline", DEADLINE.as_secs()).client();
    let sent = client.send(MARK, (0, 0)).await.unwrap();
    assert_eq!(sent.get_timeout(PATIENCE).await.unwrap(), 0);

    setup.redis.pause();
    let silence = Instant::now();
    while silence.elapsed() < SILENCE {
        // Twice the deadline is an error of the test, not of a slow machine.
        let sent = tokio::time::timeout(DEADLINE * 2, client.send(MARK, (1, 0))).await;
        let error = sent.expect("the deadline is kept").unwrap_err();
        assert!(error.is_transient(), "{error}");
        let state = tokio::time::timeout(DEADLINE * 2, client.result::<i64>("any").state()).await;
        state.expect("the deadline is kept").unwrap_err();
    }
    setup.redis.resume();

    let sent = eventually("the broker takes tasks again", async || {
        client.send(MARK, (2, 0)).await.ok()
    })
    .await;
    let back = Instant::now();
    assert_eq!(sent.get_timeout(PATIENCE).await.unwrap(), 2);
    println!(
        "the first task after a silence of {SILENCE:?} took {:?}",
        back.elapsed()
    );
    // The server may have received some of the others, too, and nobody waits
    // a visibility timeout for them.
    eventually("what was received in the silence has run", async || {
        (setup.redis.depth("celery") == 0 && setup.redis.held() == 0).then_some(())
    })
    .await;
    worker.stop().await;
    setup.redis.assert_nothing_held();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn no_task_is_over_before_its_result_is_stored() {
    let backend = RedisServer::builder().append_only().start();
    let setup = Setup::new()
        .set("result_backend", backend.url())
        .set("task_acks_late", true);
    let ledger = Ledger::default();
    let worker = Running::start(setup.app().worker(ledger.tasks()).concurrency(20)).await;
    let client = setup.client();

    backend.kill();
    let sent = client.apply_all((0..20).map(|n| MARK.s((n, 0)))).await;
    eventually("all have run", async || {
        (ledger.numbers().len() == 20).then_some(())
    })
    .await;
    let error = sent[0].as_ref().unwrap().state().await.unwrap_err();
    assert!(matches!(error, ResultError::Backend(_)), "{error}");
    assert_eq!(setup.redis.held(), 20, "acknowledged without a result");

    backend.restart();
    for (number, sent) in (0..).zip(sent) {
        let sent = sent.unwrap();
        assert_eq!(sent.get_timeout(PATIENCE).await.unwrap(), number);
        assert_eq!(sent.state().await.unwrap(), State::Success);
    }
    assert_eq!(ledger.numbers().len(), 20, "none ran twice");
    worker.stop().await;
    setup.redis.assert_nothing_held();
}
