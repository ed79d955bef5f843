//! Warm and cold shutdown, restarts, and the deliveries that are requeued.

use std::time::Duration;

use celery::{AsyncResult, Signature, State};
use tokio::sync::oneshot;

use crate::support::{
    MessageExt, RECORD, RunLog, Setup, TIMEOUT, WorkerProcess, assert_sums, count_done, eventually,
    fast_restore, for_each_broker, send_adds, send_sleeps, within,
};

for_each_broker! {
    sigterm_finishes_running_tasks_and_requeues_rest_in_order: redis, rabbitmq;
    second_sigterm_stops_without_waiting: redis, rabbitmq;
    rolling_restarts_under_load_lose_no_task: redis, rabbitmq;
    many_restarts_lose_and_repeat_no_task: redis, rabbitmq;
    delayed_tasks_run_once_with_short_visibility_timeout: redis, rabbitmq, native_delay;
}

async fn sigterm_finishes_running_tasks_and_requeues_rest_in_order(setup: Setup) {
    let client = setup.client();
    let sleeps = send_sleeps(&client, 2, 1.0).await;
    let adds = send_adds(&client, 10).await;
    let order: Vec<_> = adds.iter().map(|add| add.id().to_owned()).collect();

    let worker = WorkerProcess::start_acks_late(&setup, "2").await;
    for sleep in &sleeps {
        wait_until_started(sleep).await;
    }
    eventually("six more are prefetched", async || {
        (setup.depth("celery").await == 4).then_some(())
    })
    .await;
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));

    assert_eq!(count_done(&sleeps).await, 2);
    let waiting = setup.messages("celery").await;
    assert!(waiting.iter().map(MessageExt::id).eq(order));
    setup.assert_no_unacked().await;

    let second = WorkerProcess::start_acks_late(&setup, "2").await;
    assert_sums(&adds).await;
    second.signal("TERM");
    assert_eq!(second.wait().await, Some(0));
    setup.assert_drained().await;
}

async fn second_sigterm_stops_without_waiting(setup: Setup) {
    // The tasks run longer than the test waits for the worker's exit.
    let long = send_sleeps(&setup.client(), 2, 600.0).await;
    let worker = WorkerProcess::start_acks_late(&setup, "1").await;
    wait_until_started(&long[0]).await;
    eventually("the other task is prefetched", async || {
        (setup.depth("celery").await == 0).then_some(())
    })
    .await;
    worker.signal("TERM");
    eventually("the prefetched task is requeued", async || {
        (setup.depth("celery").await == 1).then_some(())
    })
    .await;
    worker.signal("TERM");
    worker.wait().await;

    let waiting = setup.messages("celery").await;
    let long = long.iter().map(AsyncResult::id);
    assert!(waiting.iter().map(MessageExt::id).eq(long));
    setup.assert_no_unacked().await;
}

async fn wait_until_started(result: &AsyncResult<f64>) {
    eventually("the task is started", async || {
        let state = result.state().await.unwrap();
        (state == State::Started).then_some(())
    })
    .await;
}

async fn rolling_restarts_under_load_lose_no_task(setup: Setup) {
    let client = setup.client();
    let (stop, mut stopped) = oneshot::channel();
    let producer = tokio::spawn(async move {
        let mut results = Vec::new();
        while stopped.try_recv().is_err() {
            let call = Signature::named("tasks.sleep", (0.01,), ());
            results.push(client.apply(call).await.unwrap());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        results
    });

    // With early acknowledgement, a started task must be finished.
    let settings = [("CELERY_WORKER_CONCURRENCY", "4")];
    let mut worker = WorkerProcess::start(&setup, &settings).await;
    for _ in 0..20 {
        let next = WorkerProcess::start(&setup, &settings).await;
        worker.signal("TERM");
        assert_eq!(worker.wait().await, Some(0));
        worker = next;
    }
    stop.send(()).unwrap();
    let results = within("the producer stops", producer).await.unwrap();
    println!("{} tasks over 20 restarts", results.len());
    for result in results {
        let slept = result.get_timeout(TIMEOUT).await.unwrap();
        assert_eq!(slept.as_f64(), Some(0.01));
    }
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
    setup.assert_drained().await;
}

async fn many_restarts_lose_and_repeat_no_task(setup: Setup) {
    const RESTARTS: usize = 500;
    let runs = RunLog::default();
    let client = setup.client();
    let (stop, mut stopped) = oneshot::channel();
    let producer = tokio::spawn(async move {
        let mut sent = 0;
        while stopped.try_recv().is_err() {
            let calls = (sent..sent + 5).map(|number| RECORD.s((number, 0)));
            for result in client.apply_all(calls).await {
                result.unwrap();
            }
            sent += 5;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sent
    });

    let mut worker = setup.serve(runs.tasks()).await;
    for _ in 0..RESTARTS {
        let next = setup.serve(runs.tasks()).await;
        worker.stop().await;
        worker = next;
    }
    stop.send(()).unwrap();
    let sent = within("the producer stops", producer).await.unwrap();
    println!("{sent} tasks over {RESTARTS} restarts");
    eventually("all tasks have run", async || {
        (runs.numbers().len() >= sent as usize).then_some(())
    })
    .await;
    worker.stop().await;
    let mut ran = runs.numbers();
    ran.sort_unstable();
    assert!(ran.into_iter().eq(0..sent));
    setup.assert_drained().await;
}

async fn delayed_tasks_run_once_with_short_visibility_timeout(setup: Setup) {
    let setup = setup.set("broker_transport_options", fast_restore());
    let runs = RunLog::default();
    let first = setup.serve(runs.tasks()).await;
    let second = setup.serve(runs.tasks()).await;
    let client = setup.client();
    // Twice the visibility timeout.
    let later = |number| RECORD.s((number, 0)).countdown(Duration::from_secs(4));
    let sent = client.apply_all((0..30).map(later)).await;
    setup.wait_for_delayed(30).await;

    first.stop().await;
    let third = setup.serve(runs.tasks()).await;
    for (number, sent) in (0..).zip(sent) {
        assert_eq!(sent.unwrap().get_timeout(TIMEOUT).await.unwrap(), number);
    }
    second.stop().await;
    third.stop().await;
    let mut ran = runs.numbers();
    ran.sort_unstable();
    assert!(ran.iter().copied().eq(0..30), "{ran:?}");
    setup.assert_drained().await;
}
