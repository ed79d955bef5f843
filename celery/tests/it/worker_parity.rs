//! Rust and Python workers run the same sequence of commands and tasks; their
//! replies and events are compared.

use std::fs;
use std::path::PathBuf;

use celery::Worker;

use crate::support::{RunningWorker, Setup, for_each_broker, start_python, test_tasks};

for_each_broker! {
    rust_and_python_workers_reply_and_emit_alike: redis, rabbitmq;
}

/// The worker names.
const PYTHON: &str = "python@test";
const RUST: &str = "rust@test";

async fn rust_and_python_workers_reply_and_emit_alike(setup: Setup) {
    let worker = setup.python_worker().pool("prefork").concurrency(2);
    let worker = worker
        .argument("-E")
        .argument("--hostname")
        .argument(PYTHON);
    let python = start_python(worker).await;
    let from_python = perform(&setup, PYTHON).await;
    python.terminate();
    // One task is due in an hour.
    setup.python("app.control.purge()").await;

    let worker: Worker = setup.app().worker(test_tasks()).hostname(RUST);
    let rust = RunningWorker::start(worker.concurrency(2).task_events(true)).await;
    let from_rust = perform(&setup, RUST).await;
    rust.stop().await;

    let compare = format!(
        "from parity import *\ncompare(*(json.load(open(path)) for path in {:?}))",
        [
            write_file(&setup, from_python),
            write_file(&setup, from_rust)
        ]
    );
    println!("{}", setup.python(compare).await);
}

/// Runs the sequence with one worker and returns the replies and events as JSON.
async fn perform(setup: &Setup, node: &str) -> String {
    let program = format!("from parity import *\nprint(json.dumps(perform(Node({node:?}))))");
    setup.python(program).await.trim().to_owned()
}

/// Writes a file, deleted with the server, and returns its path.
fn write_file(setup: &Setup, text: String) -> PathBuf {
    let path = setup.new_log();
    fs::write(&path, text).unwrap();
    path
}
