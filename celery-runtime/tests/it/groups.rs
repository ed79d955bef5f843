//! Large groups.

use std::sync::Arc;

use celery_runtime::{Task, TaskError, Tasks, group};

use crate::counting_broker::CountingBroker;
use crate::support::{Running, Setup, within};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);

fn tasks() -> Tasks {
    Tasks::new().with(ADD, async |x: i64, y: i64| Ok::<_, TaskError>(x + y))
}

#[tokio::test(start_paused = true)]
async fn large_group_is_sent_and_read_in_batches() {
    let setup = Setup::new();
    let broker = CountingBroker::new(&setup.broker);
    let app = broker.app(&setup);
    let app = app.with_backend(Arc::new(setup.backend.clone()));
    let all = group((0..3_500).map(|number| ADD.s((number, 1))));
    let sent = app.client().apply(all).await.unwrap();
    assert_eq!(broker.batches(), [1_000, 1_000, 1_000, 500]);
    assert!(!sent.ready().await.unwrap());

    let waiting = tokio::spawn({
        let sent = sent.clone();
        async move { sent.get().await }
    });
    let _worker = Running::start(app.worker(tasks()).concurrency(4));
    let values = within(60, waiting).await.unwrap().unwrap();
    assert!(values.into_iter().eq(1..=3_500));
    assert!(sent.ready().await.unwrap());
    sent.forget().await.unwrap();
    assert_eq!(sent.completed_count().await.unwrap(), 0);
}

/// The completed member is not among the first that are awaited.
#[tokio::test(start_paused = true)]
async fn completed_member_of_large_group_is_returned_first() {
    let setup = Setup::new();
    let members = (0..3_500).map(|number| match number {
        3_210 => ADD.s((number, 1)).queue("quick"),
        _ => ADD.s((number, 1)),
    });
    let sent = setup.client().apply(group(members)).await.unwrap();
    let mut completed = sent.as_completed::<i64>();
    let quick = setup.app.worker(tasks()).queue("quick");
    let _quick = Running::start(quick);
    let (place, value) = within(5, completed.next()).await.unwrap();
    assert_eq!((place, value.unwrap()), (3_210, 3_211));

    let _worker = setup.start(tasks());
    let mut places = vec![place];
    while let Some((place, value)) = within(60, completed.next()).await {
        value.unwrap();
        places.push(place);
    }
    places.sort_unstable();
    assert!(places.into_iter().eq(0..3_500));
}

#[tokio::test(start_paused = true)]
async fn large_group_to_unreachable_broker_fails_within_timeout() {
    let setup = Setup::new();
    setup.broker.faults().go_down();
    let all = group((0..3_500).map(|number| ADD.s((number, 1))));
    let error = setup.client().apply(all).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(setup.elapsed() < 6.0, "{}", setup.elapsed());
}
