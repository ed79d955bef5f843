//! One group of very many tasks: neither its client nor its worker holds it all
//! several times.

use std::process::Command;

use crate::support::{Setup, WorkerProcess, blocking, example};

/// What one member may cost the client that sends it and reads its result, and
/// what all together: those that are sent or waited for at a time.
const PER_TASK: usize = 3_000;
const IN_CLIENT: usize = 24 << 20;

/// What the worker may need for them all.
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
    // Connections and the like.
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

/// The most that the example `crowd` had, in bytes.
async fn memory_of_client(setup: &Setup, tasks: usize) -> usize {
    let mut client = Command::new(example("crowd"));
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
