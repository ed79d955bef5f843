//! A worker that is busy keeps nothing from one that is idle.

use std::collections::BTreeMap;

use crate::support::{RECORD, RunLog, RunningWorker, Setup, eventually, for_each_broker, within};

for_each_broker! {
    short_tasks_do_not_wait_behind_a_long_task: redis, rabbitmq, quorum;
    disabled_prefetch_reserves_nothing: redis, rabbitmq;
}

async fn short_tasks_do_not_wait_behind_a_long_task(setup: Setup) {
    tell(&setup.set("worker_prefetch_multiplier", 1)).await;
}

async fn disabled_prefetch_reserves_nothing(setup: Setup) {
    tell(&setup.set("worker_disable_prefetch", true)).await;
}

async fn tell(setup: &Setup) {
    let runs = RunLog::default();
    let app = setup.app();
    let start = async |name: &str| {
        let worker = app.worker(runs.tasks()).concurrency(1).hostname(name);
        RunningWorker::start(worker).await
    };
    let busy = start("busy@here").await;
    let client = setup.client();
    // It outlasts everything else that happens here, and the worker's end.
    let long = client.send(RECORD, (-1, 600_000)).await.unwrap();
    let inspect = app.inspect().limit(1);
    eventually("the long one runs", async || {
        let active = inspect.active().await.unwrap();
        let mut answers = active.answers();
        answers.any(|(_, tasks)| !tasks.is_empty()).then_some(())
    })
    .await;

    let idle = start("idle@here").await;
    let calls = (0..100).map(|number| RECORD.s((number, 0)));
    let sent = client.apply_all(calls).await;
    let both = app.inspect().limit(2);
    let reserved = within("reserved", both.reserved()).await.unwrap();
    let reserved: BTreeMap<_, _> = reserved
        .answers()
        .map(|(node, tasks)| (node.to_owned(), tasks.len()))
        .collect();
    assert_eq!(reserved["busy@here"], 0);
    // It has one slot, which its next task may be about to take.
    assert!(reserved["idle@here"] <= 1, "{reserved:?}");
    for result in sent {
        within("a short one", result.unwrap().get()).await.unwrap();
    }
    assert!(!runs.numbers().contains(&-1));

    app.control()
        .terminate([long.id()], "SIGTERM")
        .send()
        .await
        .unwrap();
    assert!(within("the long one", long.get()).await.is_err());
    busy.stop().await;
    idle.stop().await;
}
