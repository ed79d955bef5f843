//! A worker that is busy keeps nothing from one that is idle.

use std::collections::BTreeMap;

use crate::support::{Ledger, MARK, Running, Setup, eventually, stories, within};

stories! {
    short_tasks_do_not_wait_behind_a_long_one: redis, rabbitmq, quorum;
    without_prefetch_nothing_is_reserved_either: redis, rabbitmq;
}

async fn short_tasks_do_not_wait_behind_a_long_one(setup: Setup) {
    tell(&setup.set("worker_prefetch_multiplier", 1)).await;
}

async fn without_prefetch_nothing_is_reserved_either(setup: Setup) {
    tell(&setup.set("worker_disable_prefetch", true)).await;
}

async fn tell(setup: &Setup) {
    let ledger = Ledger::default();
    let app = setup.app();
    let start = async |name: &str| {
        let worker = app.worker(ledger.tasks()).concurrency(1).hostname(name);
        Running::start(worker).await
    };
    let busy = start("busy@here").await;
    let client = setup.client();
    // It outlasts everything else that happens here, and the worker's end.
    let long = client.send(MARK, (-1, 600_000)).await.unwrap();
    let inspect = app.inspect().limit(1);
    eventually("the long one runs", async || {
        let active = inspect.active().await.unwrap();
        let mut answers = active.answers();
        answers.any(|(_, tasks)| !tasks.is_empty()).then_some(())
    })
    .await;

    let idle = start("idle@here").await;
    let calls = (0..100).map(|number| MARK.s((number, 0)));
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
    assert!(!ledger.numbers().contains(&-1));

    app.control()
        .terminate([long.id()], "SIGTERM")
        .send()
        .await
        .unwrap();
    assert!(within("the long one", long.get()).await.is_err());
    busy.stop().await;
    idle.stop().await;
}
