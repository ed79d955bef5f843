//! Many workers, commands and tasks.

use std::time::Duration;

use super::{ADD, SLEEP, start, tasks};
use crate::support::{Running, Setup};

#[tokio::test(start_paused = true)]
async fn thousand_workers_send_few_messages() {
    let setup = Setup::new();
    let published = crate::counting_broker::CountingBroker::new(&setup.broker);
    let app = published.app(&setup);
    let start = |number: usize| {
        let worker = app
            .worker(tasks())
            .hostname(format!("worker-{number}@host"));
        Running::start(worker.concurrency(1).mingle(false).task_events(true))
    };
    let workers: Vec<_> = (0..1000).map(start).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = published.broadcasts();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let sent = published.broadcasts() - before;
    assert!(sent >= 2000, "heartbeats are missing: {sent} messages");
    assert!(sent <= 6 * 1000, "{sent} messages in 6 s");
    // A new worker sends one hello, and each other worker answers once.
    let before = published.broadcasts();
    let worker = app.worker(tasks()).hostname("joins@host");
    let _joining = Running::start(worker);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sent = published.broadcasts() - before;
    assert!((2000..=2100).contains(&sent), "{sent} messages in 2 s");
    drop(workers);
}

/// In real time: a paused clock does not advance while there is work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_limit_holds_during_flood_of_commands() {
    let setup = Setup::new();
    let _worker = start(&setup, 1);
    setup.query("ping", ()).await;
    let call = SLEEP.s((60,)).time_limit(Duration::from_millis(300));
    let start_time = std::time::Instant::now();
    let limited = setup.client().apply(call).await.unwrap();
    let flood = async {
        loop {
            // Answering takes longer than decoding.
            setup.send_command("stats", ()).await;
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::select! {
        ended = limited.get_timeout(Duration::from_secs(10)) => ended,
        () = flood => unreachable!("the flood does not end"),
    };
    assert!(ended.is_err());
    let took = start_time.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_is_answered_during_flood_of_tasks() {
    let setup = Setup::new();
    let calls = (0..20_000).map(|number| ADD.s((number, 1)).ignore_result());
    setup.client().apply_all(calls).await;
    let _worker = start(&setup, 1);
    setup.query("ping", ()).await;
    assert!(setup.depth("celery").await > 10_000);
}
