//! RabbitMQ closes a worker's channel: a deleted queue is declared and consumed
//! again, and a task over the server's `consumer_timeout` is not run twice.

use std::time::Duration;

use celery::Worker;

use super::rabbitmq_server::{OwnRabbit, assert_ran_once};
use crate::support::{RECORD, RunLog, eventually};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn deleted_queue_is_consumed_again() {
    let setup = OwnRabbit::start().await;
    let runs = RunLog::default();
    let mut worker = setup.serve(&runs).await;
    let client = setup.client();
    for round in 1..=3 {
        client.send(RECORD, (round, 0)).await.unwrap();
        assert_ran_once(&runs, round).await;
        let delayed = RECORD
            .s((100 + round, 0))
            .countdown(Duration::from_millis(1_500));
        client.apply(delayed).await.unwrap();
        assert_ran_once(&runs, 100 + round).await;
        setup.control(&["delete_queue", "celery"]).await;
        worker.wait_for_losses(round as usize).await;
    }
    client.send(RECORD, (0, 0)).await.unwrap();
    assert_ran_once(&runs, 0).await;
    worker.stop().await;
    setup.assert_drained().await;
}

/// A server that closes a channel with a delivery that is unacknowledged for
/// three seconds.
async fn short_consumer_timeout() -> OwnRabbit {
    let setup = OwnRabbit::start().await.set("task_acks_late", true);
    for set in [
        "application:set_env(rabbit, consumer_timeout, 3000).",
        "application:set_env(rabbit, channel_tick_interval, 1000).",
    ] {
        setup
            .on_server(move |server| server.control(&["eval", set]))
            .await;
    }
    setup
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn task_over_consumer_timeout_runs_once_beside_others() {
    let setup = short_consumer_timeout().await;
    let runs = RunLog::default();
    let client = setup.client();
    let mut worker = setup.serve(&runs).await;
    client.send(RECORD, (0, 10_000)).await.unwrap();
    let mut short = 0;
    while runs.times(0) == 0 {
        short += 1;
        client.send(RECORD, (short, 20)).await.unwrap();
        eventually("a short task runs", async || {
            (runs.times(short) > 0).then_some(())
        })
        .await;
        assert!(short < 5_000, "the long task never ends");
    }
    worker.wait_for_losses(1).await;
    setup.assert_drained().await;
    let repeated = (1..=short).filter(|number| runs.times(*number) > 1).count();
    println!(
        "{short} short tasks beside the long task, {repeated} of them ran twice; {:?}",
        worker.connection_counts()
    );
    assert_eq!(runs.times(0), 1, "the long task");
    worker.stop().await;
    assert_eq!(runs.times(0), 1, "the long task");
}

/// A worker with no room for another delivery detects the closed channel only
/// when it acknowledges. With many queues it takes a while to open a new one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn task_over_consumer_timeout_runs_once_alone() {
    let setup = short_consumer_timeout().await;
    let runs = RunLog::default();
    let client = setup.client();
    let queues = (0..40).map(|number| format!("other-{number}"));
    let worker = setup
        .serve_with(&runs, |worker| {
            let worker = worker.concurrency(1).prefetch_multiplier(1).queue("celery");
            queues.fold(worker, Worker::queue)
        })
        .await;
    client.send(RECORD, (1, 6_000)).await.unwrap();
    client.send(RECORD, (2, 0)).await.unwrap();
    eventually("the second task runs", async || {
        (runs.times(2) > 0).then_some(())
    })
    .await;
    // An unsettled message would be redelivered meanwhile.
    client.send(RECORD, (3, 6_000)).await.unwrap();
    eventually("the last task runs", async || {
        (runs.times(3) > 0).then_some(())
    })
    .await;
    setup.assert_drained().await;
    worker.stop().await;
    assert_eq!([1, 2, 3].map(|number| runs.times(number)), [1, 1, 1]);
}
