//! A busy worker does not reserve tasks that an idle worker could run.

use std::collections::BTreeMap;

use crate::support::{RECORD, RunLog, RunningWorker, Setup, eventually, for_each_broker, within};

for_each_broker! {
    short_tasks_do_not_wait_behind_a_long_task: redis, rabbitmq, quorum;
    disabled_prefetch_reserves_nothing: redis, rabbitmq;
}

async fn short_tasks_do_not_wait_behind_a_long_task(setup: Setup) {
    assert_short_tasks_run(&setup.set("worker_prefetch_multiplier", 1)).await;
}

async fn disabled_prefetch_reserves_nothing(setup: Setup) {
    assert_short_tasks_run(&setup.set("worker_disable_prefetch", true)).await;
}

async fn assert_short_tasks_run(setup: &Setup) {
    let runs = RunLog::default();
    let app = setup.app();
    let start = async |name: &str| {
        let worker = app.worker(runs.tasks()).concurrency(1).hostname(name);
        RunningWorker::start(worker).await
    };
    let busy = start("busy@here").await;
    let client = setup.client();
    // The task runs for longer than the whole test.
    let long = client.send(RECORD, (-1, 600_000)).await.unwrap();
    let inspect = app.inspect().limit(1);
    eventually("the long task runs", async || {
        let active = inspect.active().await.unwrap();
        let mut answers = active.answers();
        answers.any(|(_, tasks)| !tasks.is_empty()).then_some(())
    })
    .await;

    let idle = start("idle@here").await;
    let calls = (0..100).map(|number| RECORD.s((number, 0)));
    let sent = client.apply_all(calls).await;
    let both = app.inspect().limit(2);
    // A reply may take longer than the timeout of one query on a busy machine.
    let reserved = eventually("both workers reply", async || {
        let reserved = both.reserved().await.unwrap();
        let reserved: BTreeMap<_, _> = reserved
            .answers()
            .map(|(node, tasks)| (node.to_owned(), tasks.len()))
            .collect();
        (reserved.len() == 2).then_some(reserved)
    })
    .await;
    assert_eq!(reserved["busy@here"], 0);
    // The next task may be about to take the one slot.
    assert!(reserved["idle@here"] <= 1, "{reserved:?}");
    for result in sent {
        within("a short task", result.unwrap().get()).await.unwrap();
    }
    assert!(!runs.numbers().contains(&-1));

    app.control()
        .terminate([long.id()], "SIGTERM")
        .send()
        .await
        .unwrap();
    assert!(within("the long task", long.get()).await.is_err());
    busy.stop().await;
    idle.stop().await;
}
