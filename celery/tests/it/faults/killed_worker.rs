//! Killed workers on Redis: another worker, of either language, restores and runs
//! the deliveries that they had not acknowledged.

use crate::support::{
    RedisState, Setup, TIMEOUT, WorkerProcess, assert_sums, count_done, eventually, fast_restore,
    send_adds, send_sleeps, start_python,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn tasks_of_killed_rust_worker_run_on_rust_worker() {
    let setup = Setup::redis().set("broker_transport_options", fast_restore());
    let results = send_sleeps(&setup.client(), 60, 0.1).await;
    let first = WorkerProcess::start_acks_late(&setup, "4").await;
    eventually("the worker has finished ten tasks", async || {
        (count_done(&results).await >= 10).then_some(())
    })
    .await;

    first.kill().await;
    assert!(setup.redis.unacked() >= 4, "the worker held no deliveries");
    let second = WorkerProcess::start_acks_late(&setup, "4").await;

    for result in &results {
        let slept = result.get_timeout(TIMEOUT).await;
        assert_eq!(slept.unwrap(), 0.1);
    }
    second.signal("TERM");
    assert_eq!(second.wait().await, Some(0));
    assert_eq!(setup.redis.depth("celery"), 0);
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn tasks_of_killed_python_worker_run_on_rust_worker() {
    let setup = Setup::redis().set("broker_transport_options", fast_restore());
    let python = setup
        .python_worker()
        .environment("TEST_TRANSPORT_OPTIONS", fast_restore().to_string())
        .environment("TEST_ACKS_LATE", "1");
    let python = start_python(python.pool("prefork")).await;
    let client = setup.client();
    let sleeps = send_sleeps(&client, 1, 1.0).await;
    let adds = send_adds(&client, 8).await;
    // One task runs, the others are prefetched.
    eventually("the worker holds deliveries", async || {
        (setup.redis.unacked() >= 4).then_some(())
    })
    .await;
    python.kill();
    assert!(setup.redis.unacked() >= 4, "the worker held no deliveries");

    let worker = setup.worker().await;
    assert_eq!(sleeps[0].get_timeout(TIMEOUT).await.unwrap(), 1.0);
    assert_sums(&adds).await;
    worker.stop().await;
    setup.redis.assert_no_unacked();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python Celery; run cargo xtask test"]
async fn tasks_of_killed_rust_worker_run_on_python_worker() {
    let setup = Setup::redis().set("broker_transport_options", fast_restore());
    let client = setup.client();
    let sleeps = send_sleeps(&client, 1, 0.5).await;
    let adds = send_adds(&client, 8).await;
    let worker = WorkerProcess::start_acks_late(&setup, "1").await;
    eventually("the worker holds deliveries", async || {
        (setup.redis.unacked() == 4).then_some(())
    })
    .await;
    worker.kill().await;

    let python = setup
        .python_worker()
        .environment("TEST_TRANSPORT_OPTIONS", fast_restore().to_string());
    let python = start_python(python).await;
    assert_eq!(sleeps[0].get_timeout(TIMEOUT).await.unwrap(), 0.5);
    assert_sums(&adds).await;
    python.terminate();
    setup.redis.assert_no_unacked();
}
