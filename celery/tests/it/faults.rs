//! Kills, pauses and outages in mid-work: what was acknowledged is not lost.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use celery::{AsyncResult, Client, ResultError, Signature, State};
use xtask::servers::RedisServer;

use crate::support::{
    Inspect, Ledger, MARK, PATIENCE, Running, Setup, WorkerProcess, eventually, impatient, start,
    within,
};
use crate::tasks::Number::{self, Int};
use crate::tasks::{ADD, SLEEP};

/// A worker process that acknowledges late, with the given settings beside.
async fn late_worker(setup: &Setup, concurrency: &str) -> WorkerProcess {
    let options = impatient().to_string();
    let settings = [
        ("CELERY_TASK_ACKS_LATE", "1"),
        ("CELERY_WORKER_CONCURRENCY", concurrency),
        ("CELERY_BROKER_TRANSPORT_OPTIONS", &options),
    ];
    WorkerProcess::start(setup, &settings).await
}

/// Sends calls that sleep this long each; all are acknowledged.
async fn send_sleeps(client: &Client, count: usize, seconds: f64) -> Vec<AsyncResult<f64>> {
    let calls = (0..count).map(|_| SLEEP.s((seconds,)));
    let sent = client.apply_all(calls).await;
    sent.into_iter().map(Result::unwrap).collect()
}

async fn count_done<R>(results: &[AsyncResult<R>]) -> usize {
    let mut done = 0;
    for result in results {
        done += usize::from(result.ready().await.unwrap());
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn what_a_killed_worker_held_is_done_by_another() {
    let setup = Setup::new().set("broker_transport_options", impatient());
    let results = send_sleeps(&setup.client(), 60, 0.1).await;
    let first = late_worker(&setup, "4").await;
    eventually("it is in mid-work", async || {
        (count_done(&results).await >= 10).then_some(())
    })
    .await;

    first.kill().await;
    assert!(setup.redis.held() >= 4, "it held nothing");
    let second = late_worker(&setup, "4").await;

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
#[ignore = "needs redis-server; run cargo xtask test"]
async fn redis_is_killed_five_times_under_load_and_nothing_is_lost() {
    let setup = Setup::durable()
        .set("broker_transport_options", impatient())
        .set("task_acks_late", true);
    let ledger = Ledger::default();
    let mut worker = setup.serve(ledger.tasks()).await;
    let (stop, stopped) = tokio::sync::oneshot::channel();
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

type Acknowledged = std::collections::HashMap<i64, AsyncResult<i64>>;

/// Sends numbers until it is told to stop; answers those that were taken.
async fn produce(client: Client, mut stop: tokio::sync::oneshot::Receiver<()>) -> Acknowledged {
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
    let adds = client
        .apply_all((0..8).map(|n| ADD.s((Int(n), Int(1)))))
        .await;
    // One runs, the others wait for it.
    eventually("it holds tasks", async || {
        (setup.redis.held() >= 4).then_some(())
    })
    .await;
    python.kill();
    assert!(setup.redis.held() >= 4, "it held nothing");

    let worker = setup.worker().await;
    assert_eq!(sleeps[0].get_timeout(PATIENCE).await.unwrap(), 1.0);
    assert_sums(adds).await;
    worker.stop().await;
    setup.redis.assert_nothing_held();
}

async fn assert_sums(adds: Vec<Result<AsyncResult<Number>, celery::SendError>>) {
    for (n, add) in (0..).zip(adds) {
        let sum = add.unwrap().get_timeout(PATIENCE).await.unwrap();
        assert_eq!(sum, Int(n + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn what_our_killed_worker_held_is_done_by_python() {
    let setup = Setup::new().set("broker_transport_options", impatient());
    let client = setup.client();
    let sleeps = send_sleeps(&client, 1, 0.5).await;
    let adds = client
        .apply_all((0..8).map(|n| ADD.s((Int(n), Int(1)))))
        .await;
    let worker = late_worker(&setup, "1").await;
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
    assert_sums(adds).await;
    python.terminate();
    setup.redis.assert_nothing_held();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn sigterm_finishes_what_runs_and_gives_the_rest_back_in_order() {
    let setup = Setup::new();
    let client = setup.client();
    let sleeps = send_sleeps(&client, 2, 1.0).await;
    let adds = client
        .apply_all((0..10).map(|n| ADD.s((Int(n), Int(1)))))
        .await;
    let order: Vec<_> = adds
        .iter()
        .map(|add| add.as_ref().unwrap().id().to_owned())
        .collect();

    let worker = late_worker(&setup, "2").await;
    eventually("two run and six are held", async || {
        (setup.redis.held() == 8).then_some(())
    })
    .await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));

    assert_eq!(count_done(&sleeps).await, 2);
    let waiting = setup.redis.messages("celery");
    assert!(waiting.iter().map(|message| message.id()).eq(order.iter()));
    setup.redis.assert_nothing_held();

    let second = late_worker(&setup, "2").await;
    assert_sums(adds).await;
    second.signal("TERM");
    assert_eq!(second.ended().await, Some(0));
    setup.redis.assert_nothing_held();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn a_second_sigterm_does_not_wait_for_running_tasks() {
    let setup = Setup::new();
    // Longer than the patience of this test with the worker's end.
    let long = send_sleeps(&setup.client(), 2, 600.0).await;
    let worker = late_worker(&setup, "1").await;
    eventually("one runs and one is held", async || {
        (setup.redis.held() == 2).then_some(())
    })
    .await;
    worker.signal("TERM");
    eventually("the held one is given back", async || {
        (setup.redis.depth("celery") == 1).then_some(())
    })
    .await;
    worker.signal("TERM");
    worker.ended().await;

    let waiting = setup.redis.messages("celery");
    assert!(
        waiting
            .iter()
            .map(|message| message.id())
            .eq(long.iter().map(AsyncResult::id))
    );
    setup.redis.assert_nothing_held();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn rolling_restarts_under_load_lose_nothing() {
    let setup = Setup::new();
    let client = setup.client();
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let producer = tokio::spawn(async move {
        let mut results = Vec::new();
        while stopped.try_recv().is_err() {
            let call = Signature::named("tasks.sleep", (0.01,), ());
            results.push(client.apply(call).await.unwrap());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        results
    });

    // Early acknowledgements: a task that was started must be finished.
    let settings = [("CELERY_WORKER_CONCURRENCY", "4")];
    let mut worker = WorkerProcess::start(&setup, &settings).await;
    for _ in 0..20 {
        let next = WorkerProcess::start(&setup, &settings).await;
        worker.signal("TERM");
        assert_eq!(worker.ended().await, Some(0));
        worker = next;
    }
    stop.send(()).unwrap();
    let results = within("the producer ends", producer).await.unwrap();
    println!("{} tasks over 20 restarts", results.len());
    for result in results {
        let slept = result.get_timeout(PATIENCE).await.unwrap();
        assert_eq!(slept.as_f64(), Some(0.01));
    }
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(setup.redis.depth("celery"), 0);
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
