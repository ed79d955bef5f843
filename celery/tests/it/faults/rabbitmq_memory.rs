//! RabbitMQ refuses publications, by its memory alarm or by permissions: sends
//! fail in time, and workers continue with what they have.

use std::time::{Duration, Instant};

use celery::SendError;

use super::rabbitmq_server::{OwnRabbit, RESUME_LIMIT, assert_ran_once};
use crate::support::{RECORD, RunLog, eventually, within};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn memory_alarm_fails_sends_and_worker_continues() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let setup = OwnRabbit::start()
        .await
        .set("deadline", DEADLINE.as_secs())
        .set("task_acks_late", true);
    let runs = RunLog::default();
    let client = setup.client();
    for sent in client
        .apply_all((0..300).map(|number| RECORD.s((number, 20))))
        .await
    {
        sent.unwrap();
    }
    let worker = setup.serve(&runs).await;
    eventually("tasks run", async || (runs.count() > 20).then_some(())).await;
    setup.raise_memory_alarm().await;
    let raised = Instant::now();

    for _ in 0..3 {
        let started = Instant::now();
        let error = client.send(RECORD, (1_000, 0)).await.unwrap_err();
        assert!(
            started.elapsed() < DEADLINE + Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );
        assert!(
            error.is_transient() && error.to_string().contains("memory"),
            "{error}"
        );
    }
    let sends: Vec<_> = (0..40)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(RECORD, (1_000, 0)).await.unwrap_err() })
        })
        .collect();
    for send in sends {
        let error = within("a send fails", send).await.unwrap();
        assert!(matches!(error, SendError::Broker { .. }), "{error}");
        assert!(error.to_string().contains("memory"), "{error}");
    }
    eventually("the tasks sent before the alarm have run", async || {
        (0..300).all(|number| runs.times(number) > 0).then_some(())
    })
    .await;
    println!("the memory alarm lasted {:?}", raised.elapsed());
    setup.clear_memory_alarm().await;

    let back = Instant::now();
    eventually("the broker accepts a task", async || {
        client.send(RECORD, (2_000, 0)).await.ok()
    })
    .await;
    assert_ran_once(&runs, 2_000).await;
    println!(
        "the first task ran {:?} after the memory alarm",
        back.elapsed()
    );
    assert!(back.elapsed() < RESUME_LIMIT, "{:?}", back.elapsed());
    worker.stop().await;
    setup.assert_drained().await;
}

/// A worker that cannot publish a delayed task to its delay queue still runs the
/// due tasks.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn memory_alarm_on_delayed_tasks_does_not_stop_due_tasks() {
    let setup = OwnRabbit::start().await;
    let runs = RunLog::default();
    let client = setup.client();
    let calls = (0..200).map(|number| match number % 10 {
        9 => RECORD.s((number, 5)).countdown(HOUR),
        _ => RECORD.s((number, 5)),
    });
    for sent in client.apply_all(calls).await {
        sent.unwrap();
    }
    setup.raise_memory_alarm().await;
    let worker = setup
        .serve_with(&runs, |worker| worker.concurrency(10))
        .await;

    let started = Instant::now();
    let due_tasks = async {
        eventually("the due tasks have run", async || {
            (runs.count() == 180).then_some(())
        })
        .await
    };
    let ran = tokio::time::timeout(Duration::from_secs(20), due_tasks).await;
    println!(
        "during the memory alarm {} of 180 tasks ran within {:?}",
        runs.count(),
        started.elapsed()
    );
    setup.clear_memory_alarm().await;
    setup.assert_drained().await;
    // A task that has left the queue is with the worker, and runs now at the latest.
    let all_due_tasks = async {
        eventually("the due tasks have run", async || {
            (runs.distinct().len() == 180).then_some(())
        })
        .await
    };
    let finally = tokio::time::timeout(Duration::from_secs(10), all_due_tasks).await;
    println!("connections: {:?}", worker.connection_counts());
    worker.stop().await;
    assert!(
        finally.is_ok(),
        "{} of 180 are lost",
        180 - runs.distinct().len()
    );
    assert_eq!(
        setup.depth("celery_delayed_11").await,
        20,
        "delayed messages"
    );
    assert!(ran.is_ok(), "delayed tasks block due tasks");
}

/// A user without the permission to declare the delay queues cannot delay tasks,
/// but all other tasks run.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server; run cargo xtask test"]
async fn undelayable_tasks_do_not_lose_other_tasks() {
    let setup = OwnRabbit::start().await;
    setup.control(&["add_user", "ann", "word"]).await;
    setup
        .control(&["set_permissions", "ann", "^celery$", ".*", ".*"])
        .await;
    let url = setup.server.url().replace("guest:guest@", "ann:word@");
    let setup = setup.broker_url(url);
    let runs = RunLog::default();
    let client = setup.client();
    let calls = (0..200).map(|number| match number % 4 {
        3 => RECORD.s((number, 1)).countdown(Duration::from_secs(4)),
        _ => RECORD.s((number, 1)),
    });
    for sent in client.apply_all(calls).await {
        sent.unwrap();
    }
    let worker = setup.serve(&runs).await;
    // A task that has neither run nor is in the queue is lost.
    let all_tasks = async {
        eventually("all tasks have run", async || {
            (runs.distinct().len() == 200).then_some(())
        })
        .await;
    };
    let all_ran = tokio::time::timeout(Duration::from_secs(12), all_tasks).await;
    let (ready, unacked) = setup.counts("celery").await;
    let ran = runs.distinct();
    let due = (0..200)
        .filter(|number| number % 4 != 3 && ran.contains(number))
        .count();
    println!(
        "{due} of 150 due tasks ran, {} of 50 delayed tasks; {ready} ready, {unacked} \
         unacknowledged",
        ran.len() - due
    );
    assert_eq!(due, 150, "accepted tasks were lost");
    assert!(all_ran.is_ok(), "delayed tasks never run");
    worker.stop().await;
}
