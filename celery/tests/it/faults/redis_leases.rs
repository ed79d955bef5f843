//! Tasks that are held longer than the visibility timeout of Redis, and workers that
//! die with many deliveries in hand, beside Python workers.

use std::time::Instant;

use serde_json::{Value as Json, json};
use test_servers::Proxy;

use crate::support::{
    RECORD, RedisState, RunLog, RunningWorker, Setup, TIMEOUT, WorkerProcess, count_done,
    eventually, send_sleeps, start_python,
};

/// A visibility timeout of 3 s, and workers of both languages that look for expired
/// deliveries all the time.
fn short_timeout() -> Json {
    json!({
        "visibility_timeout": 3,
        "unacked_restore_interval": 0.2,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 1,
    })
}

/// Starts a Python worker that restores expired deliveries, and serves another queue.
async fn sweeping_python(setup: &Setup) -> test_servers::PythonWorker {
    let python = setup
        .python_worker()
        .environment("TEST_TRANSPORT_OPTIONS", short_timeout().to_string())
        .queues(&["python"]);
    start_python(python).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn late_task_longer_than_the_visibility_timeout_runs_once() {
    let setup = Setup::redis()
        .set("broker_transport_options", short_timeout())
        .set("task_acks_late", true);
    let python = sweeping_python(&setup).await;
    let runs = RunLog::default();
    let first = setup.serve(runs.tasks()).await;
    let second = setup.serve(runs.tasks()).await;
    let client = setup.client();
    let sent = client.apply_all((0..8).map(|number| RECORD.s((number, 10_000))));
    for (number, sent) in (0..).zip(sent.await) {
        assert_eq!(sent.unwrap().get_timeout(TIMEOUT).await.unwrap(), number);
    }
    first.stop().await;
    second.stop().await;
    python.terminate();
    let mut ran = runs.numbers();
    ran.sort_unstable();
    assert!(ran.iter().copied().eq(0..8), "{ran:?}");
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn prefetched_tasks_that_wait_longer_than_the_visibility_timeout_run_once() {
    let setup = Setup::redis().set("broker_transport_options", short_timeout());
    let python = sweeping_python(&setup).await;
    let runs = RunLog::default();
    let worker = setup.app().worker(runs.tasks()).concurrency(1);
    let worker = RunningWorker::start(worker).await;
    let other = setup.app().worker(runs.tasks()).concurrency(1);
    let other = RunningWorker::start(other).await;
    let client = setup.client();
    let sent = client.apply_all((0..8).map(|number| RECORD.s((number, 2000))));
    for (number, sent) in (0..).zip(sent.await) {
        assert_eq!(sent.unwrap().get_timeout(TIMEOUT).await.unwrap(), number);
    }
    worker.stop().await;
    other.stop().await;
    python.terminate();
    let mut ran = runs.numbers();
    ran.sort_unstable();
    assert!(ran.iter().copied().eq(0..8), "{ran:?}");
    setup.redis.assert_no_unacked();
}

/// The visibility timeout is an hour. By default the deliveries of a dead worker are
/// restored within 30 seconds (with `CELERY_TEST_LONG`), here within ten.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn tasks_of_a_killed_worker_run_long_before_the_visibility_timeout() {
    let options = match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => json!({}),
        None => json!({"rescue_after": 8}),
    };
    let setup = Setup::redis().set("broker_transport_options", options.clone());
    let client = setup.client();
    let results = send_sleeps(&client, 100, 0.05).await;
    let options = options.to_string();
    let settings = [
        ("CELERY_TASK_ACKS_LATE", "1"),
        ("CELERY_WORKER_CONCURRENCY", "1"),
        ("CELERY_WORKER_PREFETCH_MULTIPLIER", "100"),
        ("CELERY_BROKER_TRANSPORT_OPTIONS", &options),
    ];
    let first = WorkerProcess::start(&setup, &settings).await;
    eventually("the worker holds all tasks", async || {
        (setup.redis.depth("celery") == 0 && count_done(&results).await > 0).then_some(())
    })
    .await;
    let killed = Instant::now();
    first.kill().await;
    let held = setup.redis.unacked();
    assert!(held > 50, "the worker held {held} deliveries");

    let python = start_python(setup.python_worker()).await;
    let second = setup.worker().await;
    for result in &results {
        assert_eq!(result.get_timeout(TIMEOUT * 2).await.unwrap(), 0.05);
    }
    println!(
        "{held} tasks of a killed worker had run {:?} after its end",
        killed.elapsed()
    );
    second.stop().await;
    python.terminate();
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_no_unacked();
}

/// A worker that was frozen for longer than the time after which it counts as dead
/// starts nothing that another worker has.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn frozen_worker_starts_no_task_that_another_worker_has() {
    let options = json!({"rescue_after": 2});
    let setup = Setup::redis()
        .set("broker_transport_options", options.clone())
        .set("task_acks_late", true);
    let client = setup.client();
    let results = send_sleeps(&client, 20, 0.4).await;
    let options = options.to_string();
    let settings = [
        ("CELERY_TASK_ACKS_LATE", "1"),
        ("CELERY_WORKER_CONCURRENCY", "1"),
        ("CELERY_WORKER_PREFETCH_MULTIPLIER", "20"),
        ("CELERY_BROKER_TRANSPORT_OPTIONS", &options),
        ("CELERY_WORKER_HOSTNAME", "frozen@test"),
    ];
    let frozen = WorkerProcess::start(&setup, &settings).await;
    eventually("the worker holds all tasks", async || {
        (setup.redis.depth("celery") == 0 && count_done(&results).await > 0).then_some(())
    })
    .await;
    frozen.signal("STOP");
    let second = WorkerProcess::start(&setup, &settings[..4]).await;
    eventually("the deliveries are restored", async || {
        (count_done(&results).await > 10).then_some(())
    })
    .await;
    frozen.signal("CONT");
    for result in &results {
        assert_eq!(result.get_timeout(TIMEOUT).await.unwrap(), 0.4);
    }
    let mut runs = 0;
    for worker in [frozen, second] {
        worker.signal("TERM");
        runs += runs_until_the_end(worker).await;
    }
    // The task that ran when the worker was frozen runs again elsewhere.
    assert!((20..=21).contains(&runs), "{runs} runs of 20 tasks");
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_no_unacked();
}

/// Waits for the end of a worker and returns how many tasks it has run.
async fn runs_until_the_end(worker: WorkerProcess) -> u64 {
    let log = worker.log_path();
    assert_eq!(worker.wait().await, Some(0));
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let (_, end) = log.split_once("worker stopped: ").expect("the last line");
    let count = end.split(' ').next().and_then(|count| count.parse().ok());
    count.expect("a number of tasks")
}

/// How a test returns the message of a running task to its queue.
#[derive(Clone, Copy, PartialEq)]
enum Redelivery {
    /// As kombu restores an expired delivery.
    Restored,
    /// The delivery stays unacknowledged: the queue has the message a second time.
    Doubled,
    /// As `Restored`, but with the body of another message.
    OtherBody,
}

/// Returns the message of the only unacknowledged delivery to the queue, flagged as
/// redelivered.
fn redeliver(setup: &Setup, redelivery: Redelivery) {
    let tags = setup.redis.command(&["HKEYS", "unacked"]).texts();
    let [tag] = tags.as_slice() else {
        panic!("one delivery: {tags:?}");
    };
    let entry = setup.redis.command(&["HGET", "unacked", tag]).text();
    let mut entry: Json = serde_json::from_str(&entry).unwrap();
    let envelope = &mut entry[0];
    envelope["headers"]["redelivered"] = json!(true);
    envelope["properties"]["delivery_info"]["redelivered"] = json!(true);
    if redelivery == Redelivery::OtherBody {
        // `[[2, 0], {}, {}]` in base64.
        envelope["body"] = json!("W1syLCAwXSwge30sIHt9XQ==");
    }
    if redelivery != Redelivery::Doubled {
        setup.redis.command(&["HDEL", "unacked", tag]);
        setup.redis.command(&["ZREM", "unacked_index", tag]);
    }
    let envelope = envelope.to_string();
    setup.redis.command(&["RPUSH", "celery", &envelope]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn redelivery_of_a_running_task_is_adopted_by_identity() {
    for (redelivery, expected) in [
        (Redelivery::Restored, vec![1]),
        (Redelivery::Doubled, vec![1, 1]),
        (Redelivery::OtherBody, vec![1, 2]),
    ] {
        let setup = Setup::redis().set("task_acks_late", true);
        let runs = RunLog::default();
        let worker = setup.serve(runs.tasks()).await;
        let sent = setup.client().send(RECORD, (1, 2000)).await.unwrap();
        eventually("the task has started", async || {
            (setup.redis.unacked() == 1 && setup.redis.depth("celery") == 0).then_some(())
        })
        .await;
        redeliver(&setup, redelivery);
        eventually("the worker has taken the message", async || {
            (setup.redis.depth("celery") == 0).then_some(())
        })
        .await;
        sent.get_timeout(TIMEOUT).await.unwrap();
        eventually("all messages are settled", async || {
            let is_settled = setup.redis.depth("celery") == 0 && setup.redis.unacked() == 0;
            (is_settled && runs.count() == expected.len()).then_some(())
        })
        .await;
        worker.stop().await;
        let mut ran = runs.numbers();
        ran.sort_unstable();
        assert_eq!(ran, expected);
        setup.redis.assert_no_unacked();
    }
}

/// The worker learns of the loss from the connection that it opens after the partition.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn waiting_tasks_that_were_lost_in_a_partition_run_once() {
    let options = json!({"rescue_after": 2, "socket_timeout": 0.5});
    let setup = Setup::redis()
        .set("broker_transport_options", options)
        .set("task_acks_late", true)
        .set("worker_prefetch_multiplier", 10);
    let proxy = Proxy::to(setup.redis.port());
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let (cut_off_runs, other_runs) = (RunLog::default(), RunLog::default());
    let cut_off = setup.set("broker_url", url).app();
    let cut_off = cut_off.worker(cut_off_runs.tasks()).concurrency(1);
    let cut_off = RunningWorker::start(cut_off).await;
    let client = setup.client();
    client.send(RECORD, (0, 9000)).await.unwrap();
    for number in 1..=5 {
        client.send(RECORD, (number, 0)).await.unwrap();
    }
    eventually("the worker holds all tasks", async || {
        (setup.redis.unacked() == 6).then_some(())
    })
    .await;
    let other = setup.serve(other_runs.tasks()).await;
    proxy.silence();
    eventually("the other worker has run the waiting ones", async || {
        (other_runs.count() >= 5).then_some(())
    })
    .await;
    proxy.reset();
    proxy.heal();
    eventually("all tasks have ended", async || {
        let is_settled = setup.redis.depth("celery") == 0 && setup.redis.unacked() == 0;
        (is_settled && cut_off_runs.count() > 0).then_some(())
    })
    .await;
    cut_off.stop().await;
    other.stop().await;
    assert_eq!(cut_off_runs.numbers(), [0]);
    setup.redis.assert_no_unacked();
}

/// The visibility timeout is an hour.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn task_of_a_dropped_worker_runs_on_the_next_one_of_its_app() {
    let setup = Setup::redis()
        .set("broker_transport_options", json!({"rescue_after": 2}))
        .set("task_acks_late", true);
    let app = setup.app();
    let (first_runs, next_runs) = (RunLog::default(), RunLog::default());
    let first = RunningWorker::start(app.worker(first_runs.tasks()).concurrency(1)).await;
    setup.client().send(RECORD, (1, 60_000)).await.unwrap();
    setup.client().send(RECORD, (2, 0)).await.unwrap();
    eventually("the worker holds both tasks", async || {
        (setup.redis.unacked() == 2).then_some(())
    })
    .await;
    first.kill().await;
    let next = RunningWorker::start(app.worker(next_runs.tasks()).concurrency(2)).await;
    eventually("the waiting task runs", async || {
        next_runs.numbers().contains(&2).then_some(())
    })
    .await;
    assert_eq!(first_runs.count(), 0);
    next.kill().await;
}
