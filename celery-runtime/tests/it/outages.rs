//! Outages of the broker and the result backend.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_runtime::{
    Config, ConnectionEvent, ResultError, ServiceErrorKind, Task, TaskError, Tasks, WorkerError,
    group,
};

use crate::support::{Running, Setup, within};

const LATE: Task<(u32,), u32> = Task::new("tasks.late").params(&["number"]).acks_late();

fn counting(runs: &Arc<AtomicU32>) -> Tasks {
    let runs = Arc::clone(runs);
    Tasks::new().with(LATE, move |number: u32| {
        runs.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, TaskError>(number)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn worker_resumes_after_each_of_twenty_outages() {
    let runs = Arc::default();
    let setup = Setup::new();
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let worker = setup
        .app
        .worker(counting(&runs))
        .concurrency(4)
        .on_connection_event(move |event| {
            log.lock()
                .unwrap()
                .push(matches!(event, ConnectionEvent::Connected));
        });
    let _worker = Running::start(worker);
    for _ in 0..20 {
        let results = setup
            .client()
            .apply_all((0..10).map(|number| LATE.s((number,))))
            .await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        setup.broker.faults().go_down();
        tokio::time::sleep(Duration::from_secs(10)).await;
        setup.broker.faults().come_back();
        for result in results {
            within(10, result.unwrap().get()).await.unwrap();
        }
    }
    assert_eq!(setup.depth("celery").await, 0);
    let events = events.lock().unwrap();
    assert_eq!(events.iter().filter(|connected| **connected).count(), 21);
}

#[tokio::test(start_paused = true)]
async fn result_is_stored_after_backend_outage() {
    let runs = Arc::default();
    let setup = Setup::new();
    let _worker = setup.start(counting(&runs));
    setup.backend.faults().go_down();
    let result = setup.client().send(LATE, (5,)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        setup.broker.unsettled(),
        1,
        "not acknowledged without its result"
    );
    setup.backend.faults().come_back();
    assert_eq!(within(5, result.get()).await.unwrap(), 5);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn worker_with_one_slot_starts_next_task_after_result_is_stored() {
    const EARLY: Task<(), ()> = Task::new("tasks.early");
    for (concurrency, runs_before) in [(1, 1), (2, 2)] {
        let runs = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&runs);
        let tasks = Tasks::new().with(EARLY, move || {
            counter.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok::<_, TaskError>(()))
        });
        let setup = Setup::new();
        let calls = (0..2).map(|_| EARLY.s(()));
        let results = setup.client().apply_all(calls).await;
        setup.backend.faults().freeze();
        let _worker = Running::start(setup.app.worker(tasks).concurrency(concurrency));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(runs.load(Ordering::SeqCst), runs_before);
        setup.backend.faults().thaw();
        // A result that is refused for ever is not waited for.
        setup
            .backend
            .faults()
            .fail_next("store", ServiceErrorKind::Denied);
        for result in results {
            let _ = within(60, result.unwrap().get()).await;
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn lost_acknowledgement_loses_no_late_task() {
    let runs = Arc::default();
    let setup = Setup::new();
    let worker = setup.start(counting(&runs));
    let results = setup
        .client()
        .apply_all((0..8).map(|number| LATE.s((number,))))
        .await;
    setup
        .broker
        .faults()
        .fail_next("settle", ServiceErrorKind::Disconnected);
    for result in results {
        within(60, result.unwrap().get()).await.unwrap();
    }
    worker.stop().await.unwrap();
    assert_eq!(setup.broker.unsettled(), 0);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn redelivered_message_continues_running_late_task() {
    const LONG: Task<(), u32> = Task::new("tasks.long").acks_late();
    let runs = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&runs);
    let tasks = Tasks::new().with(LONG, move || {
        let run = counter.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok::<_, TaskError>(run)
        }
    });
    let setup = Setup::new();
    let worker = setup.start(tasks);
    let result = setup.client().send(LONG, ()).await.unwrap();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        setup.broker.faults().go_down();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(setup.broker.unsettled(), 0, "the message is requeued");
        setup.broker.faults().come_back();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(setup.broker.unsettled(), 1, "the message is redelivered");
    }
    assert_eq!(within(60, result.get()).await.unwrap(), 0);
    worker.stop().await.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(setup.broker.unsettled(), 0);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn early_task_starts_after_acknowledgement() {
    const EARLY: Task<(), ()> = Task::new("tasks.early");
    let runs = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&runs);
    let tasks = Tasks::new().with(EARLY, move || {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, TaskError>(()))
    });
    let setup = Setup::new();
    let _worker = setup.start(tasks);
    for _ in 0..5 {
        setup
            .broker
            .faults()
            .fail_next("settle", ServiceErrorKind::Disconnected);
    }
    let result = setup.client().send(EARLY, ()).await.unwrap();
    within(60, result.get()).await.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn send_to_unreachable_broker_fails_within_timeout() {
    let setup = Setup::new();
    setup.broker.faults().go_down();
    for _ in 0..3 {
        let before = setup.elapsed();
        let error = setup.client().send(LATE, (1,)).await.unwrap_err();
        assert!(error.is_transient());
        assert!(error.to_string().contains("tasks.late"), "{error}");
        assert!(setup.elapsed() - before <= 5.1);
    }
    setup.broker.faults().come_back();
    setup.client().send(LATE, (1,)).await.unwrap();
    setup.broker.faults().freeze();
    let error = within(6, setup.client().send(LATE, (1,)))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no answer within 5s"), "{error}");
    setup.broker.faults().block("the disk is full");
    let error = setup.client().send(LATE, (1,)).await.unwrap_err();
    let expected = "no answer within 5s: the disk is full";
    assert!(error.to_string().contains(expected), "{error}");
}

#[tokio::test(start_paused = true)]
async fn task_is_not_sent_if_prepare_fails() {
    let setup = Setup::new();
    let faults = setup.backend.faults();
    faults.fail_next("prepare", ServiceErrorKind::Denied);
    let ignored = LATE.s((2,)).ignore_result();
    let answers = setup.client().apply_all([LATE.s((1,)), ignored]).await;
    let error = answers[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("tasks.late"), "{error}");
    assert!(error.contains("planned by a test"), "{error}");
    answers[1].as_ref().unwrap();
    assert_eq!(setup.depth("celery").await, 1);

    // A transient error is retried.
    faults.fail_next("prepare", ServiceErrorKind::Disconnected);
    setup.client().send(LATE, (3,)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn read_from_unreachable_backend_fails_within_timeout() {
    let setup = Setup::new();
    let result = setup.client().send(LATE, (1,)).await.unwrap();
    setup.backend.faults().go_down();
    within(6, result.state()).await.unwrap_err();
    setup.backend.faults().come_back();
    setup.backend.faults().freeze();
    within(6, result.state()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn wait_during_outage_ends_only_with_the_callers_deadline() {
    let setup = Setup::new();
    let result = setup.client().send(LATE, (1,)).await.unwrap();
    let group = group((0..3).map(|number| LATE.s((number,))));
    let group = setup.client().apply(group).await.unwrap();
    setup.backend.faults().go_down();
    let limit = Duration::from_secs(600);
    let error = result.get_timeout(limit).await.unwrap_err();
    assert!(matches!(error, ResultError::TimedOut { .. }), "{error}");
    let error = group.get_timeout(limit).await.unwrap_err();
    assert!(matches!(error, ResultError::TimedOut { .. }), "{error}");

    let waiter = tokio::spawn(async move {
        let mut completed = group.as_completed::<u32>();
        let mut count = 0;
        while let Some((_, number)) = completed.next().await {
            number.unwrap();
            count += 1;
        }
        (result.get().await.unwrap(), count)
    });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    setup.backend.faults().come_back();
    let _worker = setup.start(counting(&Arc::default()));
    assert_eq!(within(10, waiter).await.unwrap(), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn permanent_error_ends_a_wait() {
    let setup = Setup::new();
    let result = setup.client().send(LATE, (1,)).await.unwrap();
    setup
        .backend
        .faults()
        .fail_next("wait", ServiceErrorKind::Denied);
    let error = within(1, result.get()).await.unwrap_err();
    let ResultError::Backend(cause) = error else {
        panic!("{error}");
    };
    assert_eq!(cause.kind(), ServiceErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn waiting_client_survives_short_backend_outage() {
    let runs = Arc::default();
    let setup = Setup::new();
    let result = setup.client().send(LATE, (1,)).await.unwrap();
    let waiter = tokio::spawn(async move { result.get().await });
    tokio::task::yield_now().await;
    for _ in 0..3 {
        setup.backend.faults().go_down();
        tokio::time::sleep(Duration::from_secs(2)).await;
        setup.backend.faults().come_back();
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let _worker = setup.start(counting(&runs));
    assert_eq!(within(10, waiter).await.unwrap().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn worker_stops_after_maximum_connection_retries() {
    let config = Config::new()
        .set("broker_connection_max_retries", 3)
        .unwrap();
    let setup = Setup::with_config(config);
    setup.broker.faults().go_down();
    let worker = setup.start(counting(&Arc::default()));
    let error = within(60, worker.wait()).await.unwrap_err();
    assert!(matches!(error, WorkerError::Broker(_)), "{error}");
}
