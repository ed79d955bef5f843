//! RabbitMQ is killed, closes connections or stops responding under load: no
//! accepted task is lost, and work resumes.

use std::time::{Duration, Instant};

use test_servers::{Proxy, RabbitServer};

use super::rabbitmq_server::{OwnRabbit, RESUME_LIMIT, assert_ran_once, wait_for_handshake};
use super::{assert_all_ran, wait_for_runs};
use crate::support::{Producer, RECORD, RunLog, eventually, within};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn killed_rabbitmq_loses_no_task() {
    let setup = OwnRabbit::start().await.set("task_acks_late", true);
    let runs = RunLog::default();
    let mut worker = setup.serve(&runs).await;
    let producer = Producer::start(setup.client());
    let mut delays = Vec::new();
    for round in 1..=5 {
        wait_for_runs(&runs, 100).await;
        setup.on_server(RabbitServer::kill).await;
        worker.wait_for_losses(round).await;
        let (back, ()) = tokio::join!(
            wait_for_handshake(setup.server.port()),
            setup.on_server(RabbitServer::restart)
        );
        let first = eventually("tasks run again", async || runs.first_after(back)).await;
        delays.push(first - back);
        println!(
            "kill {round} of RabbitMQ: the first task ran {:?} after the restart",
            first - back
        );
    }
    assert_all_ran(&runs, &producer.stop().await).await;
    worker.stop().await;
    setup.assert_drained().await;
    assert!(
        delays.iter().all(|delay| *delay <= RESUME_LIMIT),
        "{delays:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn closed_connections_lose_no_task() {
    let setup = OwnRabbit::start().await.set("task_acks_late", true);
    let runs = RunLog::default();
    let mut worker = setup.serve(&runs).await;
    let producer = Producer::start(setup.client());
    for round in 1..=5 {
        wait_for_runs(&runs, 50).await;
        setup
            .control(&["close_all_connections", "maintenance"])
            .await;
        worker.wait_for_losses(round).await;
        let lost = Instant::now();
        let first = eventually("tasks run again", async || runs.first_after(lost)).await;
        println!(
            "close {round}: the next task ran {:?} after the worker detected it",
            first - lost
        );
        assert!(first - lost < RESUME_LIMIT);
    }
    assert_all_ran(&runs, &producer.stop().await).await;
    worker.stop().await;
    setup.assert_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(unix)]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn unresponsive_rabbitmq_times_out_and_worker_resumes() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let silence = match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => Duration::from_secs(60),
        None => Duration::from_secs(8),
    };
    let setup = OwnRabbit::start()
        .await
        .set("deadline", DEADLINE.as_secs())
        .set("task_acks_late", true);
    let runs = RunLog::default();
    let worker = setup.serve(&runs).await;
    let client = setup.client();
    client.send(RECORD, (0, 0)).await.unwrap();
    assert_ran_once(&runs, 0).await;

    setup.on_server(RabbitServer::pause).await;
    let paused = Instant::now();
    while paused.elapsed() < silence {
        let started = Instant::now();
        let sends = (0..8).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(RECORD, (1, 0)).await })
        });
        for sent in sends.collect::<Vec<_>>() {
            let error = within("a send fails", sent).await.unwrap().unwrap_err();
            assert!(error.is_transient(), "{error}");
        }
        assert!(
            started.elapsed() < DEADLINE + Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
    }
    setup.on_server(RabbitServer::resume).await;

    let back = Instant::now();
    eventually("the broker accepts a task", async || {
        client.send(RECORD, (2, 0)).await.ok()
    })
    .await;
    let sent = back.elapsed();
    assert_ran_once(&runs, 2).await;
    println!(
        "after a pause of {silence:?} a task was accepted after {sent:?} and had run after {:?}",
        back.elapsed()
    );
    assert!(back.elapsed() < RESUME_LIMIT, "{:?}", back.elapsed());
    worker.stop().await;
    setup.assert_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn heartbeat_detects_silent_network_and_worker_resumes() {
    let setup = OwnRabbit::start().await.set("task_acks_late", true);
    let network = Proxy::to(setup.server.port());
    let client = setup.client();
    let url = format!("amqp://127.0.0.1:{}?heartbeat=1", network.port());
    let setup = setup.broker_url(url);
    let runs = RunLog::default();
    let mut worker = setup.serve(&runs).await;
    client.send(RECORD, (1, 0)).await.unwrap();
    assert_ran_once(&runs, 1).await;
    // This task runs while the network is silent.
    client.send(RECORD, (2, 4_000)).await.unwrap();
    eventually("the task is delivered", async || {
        (setup.counts("celery").await == (0, 1)).then_some(())
    })
    .await;

    network.silence();
    let silent = Instant::now();
    worker.wait_for_losses(1).await;
    let detected = silent.elapsed();
    network.heal();
    let healed = Instant::now();
    client.send(RECORD, (3, 0)).await.unwrap();
    assert_ran_once(&runs, 3).await;
    println!(
        "detected after {detected:?} with heartbeats of 1 s; the next task ran {:?} after the \
         network recovered",
        healed.elapsed()
    );
    assert!(detected < RESUME_LIMIT, "{detected:?}");
    assert!(
        healed.elapsed() < RESUME_LIMIT + Duration::from_secs(2),
        "{:?}",
        healed.elapsed()
    );
    worker.stop().await;
    // RabbitMQ detects the loss by its own heartbeats, and redelivers the task.
    println!("the running task ran {} times", runs.times(2));
}
