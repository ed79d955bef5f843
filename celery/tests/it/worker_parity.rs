//! A worker of each language goes through one scenario: what they answer and
//! tell is compared.

use std::fs;
use std::path::PathBuf;

use celery::Worker;

use crate::support::{RunningWorker, Setup, for_each_broker, start_python, test_tasks};

for_each_broker! {
    rust_and_python_workers_reply_and_emit_alike: redis, rabbitmq;
}

/// Who the scenario is played with.
const THEIRS: &str = "python@test";
const OURS: &str = "rust@test";

async fn rust_and_python_workers_reply_and_emit_alike(setup: Setup) {
    let worker = setup.python_worker().pool("prefork").concurrency(2);
    let worker = worker
        .argument("-E")
        .argument("--hostname")
        .argument(THEIRS);
    let python = start_python(worker).await;
    let theirs = perform(&setup, THEIRS).await;
    python.terminate();
    // What is due in an hour.
    setup.python("app.control.purge()").await;

    let worker: Worker = setup.app().worker(test_tasks()).hostname(OURS);
    let rust = RunningWorker::start(worker.concurrency(2).task_events(true)).await;
    let ours = perform(&setup, OURS).await;
    rust.stop().await;

    let compare = format!(
        "from parity import *\ncompare(*(json.load(open(path)) for path in {:?}))",
        [keep(&setup, theirs), keep(&setup, ours)]
    );
    println!("{}", setup.python(compare).await);
}

async fn perform(setup: &Setup, node: &str) -> String {
    let program = format!("from parity import *\nprint(json.dumps(perform(Node({node:?}))))");
    setup.python(program).await.trim().to_owned()
}

/// The path of a file with this text, removed with the server.
fn keep(setup: &Setup, text: String) -> PathBuf {
    let path = setup.new_log();
    fs::write(&path, text).unwrap();
    path
}
