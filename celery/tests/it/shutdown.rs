//! Warm and cold stops, restarts, and what becomes of deliveries that wait.

use std::time::Duration;

use celery::{AsyncResult, Signature, State};
use tokio::sync::oneshot;

use crate::support::{
    Ledger, Look, MARK, PATIENCE, Setup, WorkerProcess, assert_sums, count_done, eventually,
    impatient, send_adds, send_sleeps, stories, within,
};

stories! {
    sigterm_finishes_what_runs_and_gives_the_rest_back_in_order: redis, rabbitmq;
    a_second_sigterm_does_not_wait_for_running_tasks: redis, rabbitmq;
    rolling_restarts_under_load_lose_nothing: redis, rabbitmq;
    very_many_restarts_lose_nothing_and_repeat_nothing: redis, rabbitmq;
    tasks_for_later_run_once_however_short_the_visibility_timeout: redis, rabbitmq, native;
}

async fn sigterm_finishes_what_runs_and_gives_the_rest_back_in_order(setup: Setup) {
    let client = setup.client();
    let sleeps = send_sleeps(&client, 2, 1.0).await;
    let adds = send_adds(&client, 10).await;
    let order: Vec<_> = adds.iter().map(|add| add.id().to_owned()).collect();

    let worker = WorkerProcess::late(&setup, "2").await;
    for sleep in &sleeps {
        wait_until_started(sleep).await;
    }
    eventually("six more are held", async || {
        (setup.depth("celery").await == 4).then_some(())
    })
    .await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));

    assert_eq!(count_done(&sleeps).await, 2);
    let waiting = setup.messages("celery").await;
    assert!(waiting.iter().map(Look::id).eq(order));
    setup.assert_nothing_held().await;

    let second = WorkerProcess::late(&setup, "2").await;
    assert_sums(&adds).await;
    second.signal("TERM");
    assert_eq!(second.ended().await, Some(0));
    setup.assert_nothing_left().await;
}

async fn a_second_sigterm_does_not_wait_for_running_tasks(setup: Setup) {
    // Longer than the patience of this test with the worker's end.
    let long = send_sleeps(&setup.client(), 2, 600.0).await;
    let worker = WorkerProcess::late(&setup, "1").await;
    wait_until_started(&long[0]).await;
    eventually("the other one is held", async || {
        (setup.depth("celery").await == 0).then_some(())
    })
    .await;
    worker.signal("TERM");
    eventually("the held one is given back", async || {
        (setup.depth("celery").await == 1).then_some(())
    })
    .await;
    worker.signal("TERM");
    worker.ended().await;

    let waiting = setup.messages("celery").await;
    let long = long.iter().map(AsyncResult::id);
    assert!(waiting.iter().map(Look::id).eq(long));
    setup.assert_nothing_held().await;
}

async fn wait_until_started(result: &AsyncResult<f64>) {
    eventually("it is started", async || {
        let state = result.state().await.unwrap();
        (state == State::Started).then_some(())
    })
    .await;
}

async fn rolling_restarts_under_load_lose_nothing(setup: Setup) {
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
    setup.assert_nothing_left().await;
}

async fn very_many_restarts_lose_nothing_and_repeat_nothing(setup: Setup) {
    const RESTARTS: usize = 500;
    let ledger = Ledger::default();
    let client = setup.client();
    let (stop, mut stopped) = oneshot::channel();
    let producer = tokio::spawn(async move {
        let mut sent = 0;
        while stopped.try_recv().is_err() {
            let calls = (sent..sent + 5).map(|number| MARK.s((number, 0)));
            for result in client.apply_all(calls).await {
                result.unwrap();
            }
            sent += 5;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sent
    });

    let mut worker = setup.serve(ledger.tasks()).await;
    for _ in 0..RESTARTS {
        let next = setup.serve(ledger.tasks()).await;
        worker.stop().await;
        worker = next;
    }
    stop.send(()).unwrap();
    let sent = within("the producer ends", producer).await.unwrap();
    println!("{sent} tasks over {RESTARTS} restarts");
    eventually("all have run", async || {
        (ledger.numbers().len() >= sent as usize).then_some(())
    })
    .await;
    worker.stop().await;
    let mut ran = ledger.numbers();
    ran.sort_unstable();
    assert!(ran.into_iter().eq(0..sent));
    setup.assert_nothing_left().await;
}

async fn tasks_for_later_run_once_however_short_the_visibility_timeout(setup: Setup) {
    let setup = setup.set("broker_transport_options", impatient());
    let ledger = Ledger::default();
    let first = setup.serve(ledger.tasks()).await;
    let second = setup.serve(ledger.tasks()).await;
    let client = setup.client();
    // Twice the time after which workers look after each other.
    let later = |number| MARK.s((number, 0)).countdown(Duration::from_secs(4));
    let sent = client.apply_all((0..30).map(later)).await;
    setup.wait_for_delayed(30).await;

    first.stop().await;
    let third = setup.serve(ledger.tasks()).await;
    for (number, sent) in (0..).zip(sent) {
        assert_eq!(sent.unwrap().get_timeout(PATIENCE).await.unwrap(), number);
    }
    second.stop().await;
    third.stop().await;
    let mut ran = ledger.numbers();
    ran.sort_unstable();
    assert!(ran.iter().copied().eq(0..30), "{ran:?}");
    setup.assert_nothing_left().await;
}
