//! The memory that one large group needs, in its client and its worker.

use std::process::Command;

use crate::support::{Setup, WorkerProcess, blocking, example};

/// Bytes per member in the client, which sends it and reads its result.
const PER_TASK: usize = 3_000;

/// Bytes in the client for the members that are sent or awaited at a time.
const IN_CLIENT: usize = 24 << 20;

/// Bytes in the worker for the whole group.
const IN_WORKER: usize = 16 << 20;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn memory_for_large_group_is_bounded() {
    let tasks = match std::env::var_os("CELERY_TEST_LONG") {
        Some(_) => 100_000,
        None => 10_000,
    };
    let setup = Setup::redis();
    let worker = WorkerProcess::start(&setup, &[("CELERY_WORKER_CONCURRENCY", "16")]).await;
    // The memory of a small group: connections and buffers.
    let base = memory_of_client(&setup, 100).await;
    let before = worker.resident_memory();
    let memory = memory_of_client(&setup, tasks).await;
    let (client, worker_grew) = (
        memory.saturating_sub(base),
        worker.resident_memory().saturating_sub(before),
    );
    println!(
        "a group of {tasks}: {} kB in the client, {} kB in the worker",
        client >> 10,
        worker_grew >> 10
    );
    let most = IN_CLIENT + tasks * PER_TASK;
    assert!(client <= most, "{client} bytes in the client");
    assert!(
        worker_grew <= IN_WORKER,
        "{worker_grew} bytes in the worker"
    );
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(0));
}

/// Runs the example `large_group` and returns its peak memory in bytes.
async fn memory_of_client(setup: &Setup, tasks: usize) -> usize {
    let mut client = Command::new(example("large_group"));
    client.args([setup.broker_url(), setup.result_backend_url()]);
    client.arg(tasks.to_string());
    let output = blocking(move || client.output().unwrap()).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let line = printed
        .lines()
        .find_map(|line| line.strip_prefix("memory: "));
    let kilobytes = line.and_then(|line| line.strip_suffix(" kB")).unwrap();
    kilobytes.trim().parse::<usize>().unwrap() << 10
}
